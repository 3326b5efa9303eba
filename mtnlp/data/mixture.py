"""The mixture: which rows of which tasks a step draws, and how they are cut into micro-batches.

The plan of a step is a pure function of (seed, step, sizes, rates, and of which tasks end when): every rank
computes the same one, resuming needs no state of its own, and the world size may change. The k-th example of
a task is row perm(k mod n) of its (k div n)-th epoch, with a permutation keyed by (seed, name of the task,
epoch), so a task's stream of rows does not depend on the other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from mtnlp.data.batch import Batch
from mtnlp.data.collate import collate, cut_into_blocks, grouped
from mtnlp.data.cut import BLOCK_OVERHEAD, OVERHEAD, Stretch
from mtnlp.data.plan import Quota, StepPlan
from mtnlp.data.shuffle import key_of, mixed, permuted
from mtnlp.data.store import TokenStore
from mtnlp.errors import DataError
from mtnlp.samplers.base import Phase, without

__all__ = ["Mixture", "StepPlan"]


class Mixture:
    """Plans and batches of a run.

    Args:
        names: (T,) task names; they key the permutations.
        stores: (T,) training rows of each task, tokenised.
        phases: rates over the run, from a sampler.
        seed: of plans and permutations.
        examples_per_step: examples of one optimizer step over all tasks and ranks.
        max_tokens: most padded tokens of a micro-batch; an example that is larger alone gets its own.
        pad_id: token id of padding.
        form: "encoder", "encoder-decoder" or "decoder".
        flat: lay micro-batches out as streams of tokens, for a network that runs them so.

    Attributes:
        over: the step from which on no task is left to draw; None = there is always one. See `end`.

    Raises:
        DataError: a task without rows.
    """

    def __init__(
        self,
        names: Sequence[str],
        stores: Sequence[TokenStore],
        phases: Sequence[Phase],
        *,
        seed: int,
        examples_per_step: int,
        max_tokens: int,
        pad_id: int,
        form: str,
        flat: bool = False,
    ) -> None:
        empty = [name for name, store in zip(names, stores, strict=True) if not len(store)]
        if empty:
            raise DataError(
                f"No training rows in {', '.join(empty)}; every task of a mixture needs at least one."
            )
        self.names, self.stores, self.phases, self.seed = tuple(names), tuple(stores), tuple(phases), seed
        self.max_tokens, self.pad_id, self.form, self.flat = max_tokens, pad_id, form, flat
        self.sizes = np.array([len(store) for store in stores], np.int64)
        self.examples_per_step, self.over = examples_per_step, None
        self._quota = Quota(phases, examples_per_step=examples_per_step, seed=seed)
        self._keys = np.array([key_of("rows", seed, name) for name in names], np.uint64)

    def end(self, ends: Mapping[int, int]) -> None:
        """Draw task t no more from step ends[t] on: the rates of the others grow (`samplers.base.without`).
        Plans of earlier steps stay, and so does the order in which the others' rows come. Each call starts
        from the sampler's rates: name all tasks that end."""
        phases = without(self.phases, ends)
        self.over = next((phase.start for phase in phases if not phase.rates.any()), None)
        phases = [phase for phase in phases if phase.rates.any()]
        self._quota = Quota(phases, examples_per_step=self.examples_per_step, seed=self.seed)

    def drawn(self, step: int) -> np.ndarray:
        """(T,) int64 examples of each task in the steps before `step`."""
        return self._quota.drawn(step)

    def first(self, steps: int) -> np.ndarray:
        """(T,) int64 the first of the steps 0..steps-1 that draws each task; -1 = none does."""
        return self._quota.first(steps)

    def plan(self, step: int) -> StepPlan:
        """The rows of step `step` (0-based), the same on every rank."""
        counts = self._quota.counts(step)
        live = np.flatnonzero(counts)
        counts, cursors = counts[live], self._quota.drawn(step)[live]
        ends = np.cumsum(counts)
        task = np.repeat(live, counts)
        draw = np.arange(len(task)) + np.repeat(cursors - ends + counts, counts)
        return StepPlan(step, tuple(live.tolist()), tuple(np.split(self.rows(task, draw), ends[:-1])))

    def rows(self, task: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """(M,) int64 row numbers of the draws: of task[i] the one that follows draw[i] earlier ones."""
        sizes = self.sizes[task]
        keys = mixed(self._keys[task] + mixed((draw // sizes).astype(np.uint64)))
        return permuted(draw % sizes, sizes, keys)

    def batches(
        self,
        plan: StepPlan,
        *,
        rank: int = 0,
        world: int = 1,
        one_task: bool = False,
        max_tokens: int | None = None,
    ) -> list[Batch]:
        """This rank's micro-batches of a step, longest first (so that memory runs out at once or not at all).

        The step's rows are sorted by length and dealt to the ranks in turn, so ranks get equal work; each
        rank cuts its rows for least padding. Together the ranks hold every row of the plan once. How
        they are cut changes the gradient by rounding only, for its denominators are the plan's counts.

        Args:
            rank, world: whose part, of how many.
            one_task: cut within tasks, for balancers that need each task's gradient.
            max_tokens: budget in place of the mixture's, after running out of memory.
        """
        task = np.repeat(plan.tasks, plan.counts)
        rows = np.concatenate(plan.rows)
        sizes = np.concatenate(
            [self.stores[t].sizes(own) for t, own in zip(plan.tasks, plan.rows, strict=True)], axis=1
        )
        group = task if one_task else np.zeros(len(task), np.int64)
        mine = np.lexsort((rows, task, *sizes[::-1], group))[rank::world]
        stores = dict(zip(plan.tasks, (self.stores[t] for t in plan.tasks), strict=True))
        edges = np.flatnonzero(np.diff(group[mine], prepend=-1, append=-1)) if len(mine) else []
        batches = []
        for low, high in pairwise(edges):
            own = mine[low:high]
            for stretches in self._cut(sizes[:, own], max_tokens or self.max_tokens):
                chosen = own[stretches[0][0] : stretches[-1][1]]
                by_task = np.argsort(task[chosen], kind="stable")
                blocks = np.repeat(np.arange(len(stretches)), [stop - start for start, stop in stretches])
                batches.append(
                    collate(
                        grouped(stores, task[chosen], rows[chosen]),
                        pad_id=self.pad_id,
                        form=self.form,
                        blocks=blocks[by_task] if self.flat else None,
                    )
                )
        return batches

    def _cut(self, sizes: np.ndarray, max_tokens: int) -> list[list[Stretch]]:
        """Micro-batches of the sorted examples with (3, M) sizes, longest first; each as its blocks."""
        overhead = BLOCK_OVERHEAD if self.flat else OVERHEAD
        return cut_into_blocks(sizes, max_tokens, overhead, flat=self.flat)
