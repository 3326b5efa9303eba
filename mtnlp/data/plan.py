"""How many examples of each task a step draws, for any step, in closed form.

Step s has K places at (i + v_s) / K, i = 0..K-1, on the unit interval, which the tasks divide by their rates;
v_s is an additive (Kronecker) sequence with golden ratio, so the places of many steps together are spread
evenly too. With cumulative rates c_t, task t gets ceil(c_t K - v_s) - ceil(c_(t-1) K - v_s) places: less than
one away from K p_t, and K p_t exactly where that is an integer. Everything is integer arithmetic in units of
2^-30, so plans are equal on all machines, and sums over steps are floor sums, which a Euclidean recursion
gives in O(log steps).

Sources: systematic sampling, Madow 1949; floor sums as in Graham, Knuth and Patashnik, "Concrete
Mathematics", 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtnlp.data.shuffle import key_of
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase

ONE = 1 << 30  # the unit interval in our units; also the number of steps after which v repeats
GOLDEN = 663608853  # near ONE / golden ratio, with partial quotients of at most 3: v stays evenly spread
SNAP = 1e-9  # K p_t this close to an integer is that integer
AT_ONCE = 1 << 15  # floor sums in one call: enough to hide numpy's overhead, few enough for a cache


@dataclass(frozen=True)
class StepPlan:
    """The rows of one step.

    Args:
        step: 0-based.
        tasks: (U,) indices of the live tasks, ascending; every one has at least one row.
        rows: per live task (n_t,) int64 row numbers in its store, in the order in which they were drawn.
    """

    step: int
    tasks: tuple[int, ...]
    rows: tuple[np.ndarray, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """(U,) examples of each live task in the whole step, over all ranks: the denominators of the loss."""
        return tuple(len(rows) for rows in self.rows)


class Quota:
    """The counts of a whole run.

    Args:
        phases: from a sampler; the first starts at step 0, starts ascend.
        examples_per_step: K >= 1, over all ranks.
        seed: shifts the sequence v.
    """

    def __init__(self, phases: Sequence[Phase], *, examples_per_step: int, seed: int) -> None:
        starts = [phase.start for phase in phases]
        if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise MtnlpError(f"A sampler's phases must start at step 0 and ascend; these start at {starts}.")
        self.starts = np.array(starts, np.int64)
        self.shift = key_of("plan", seed) % ONE
        self.tasks, self.examples_per_step = len(phases[0].rates), examples_per_step
        units = [in_units(phase.rates, examples_per_step) for phase in phases]
        self._live = [np.flatnonzero(own) for own in units]  # of each phase: the tasks that it draws,
        self._edges = [np.cumsum([0, *own[live]]) for own, live in zip(units, self._live)]  # and their shares
        self._latest = 0, np.zeros(self.tasks, np.int64)  # a step, and what was drawn before it

    def counts(self, step: int) -> np.ndarray:
        """(T,) int64 examples of each task in step `step`; they sum to examples_per_step."""
        phase = self._phase(step)
        edges, turn = self._edges[phase], (self.shift + step * GOLDEN) % ONE
        found = np.zeros(self.tasks, np.int64)
        found[self._live[phase]] = np.diff(edges // ONE + (turn < edges % ONE))
        return found

    def drawn(self, step: int) -> np.ndarray:
        """(T,) int64 examples of each task in steps 0..step-1: one addition after the step before, floor sums
        after any other."""
        latest, found = self._latest
        if step == latest + 1:
            found = found + self.counts(latest)
        elif step != latest:
            found = self._drawn(step)
        self._latest = step, found
        return found

    def first(self, steps: int) -> np.ndarray:
        """(T,) int64 the first of the steps 0..steps-1 in which each task is drawn; -1 = in none.

        Halving, for all tasks together: a stretch in which none is drawn for the first time costs nothing.
        """
        found = np.full(self.tasks, -1, np.int64)
        todo = [(0, steps, np.flatnonzero(self.drawn(steps)))]
        while todo:
            low, high, among = todo.pop()
            if high - low == 1:
                found[among] = low
            elif len(among):
                middle = (low + high) // 2
                early = self.drawn(middle)[among] > 0
                todo += [(low, middle, among[early]), (middle, high, among[~early])]
        return found

    def _phase(self, step: int) -> int:
        if not 0 <= step < ONE:
            raise MtnlpError(f"Step {step} is outside 0..{ONE - 1}, the steps that a plan exists for.")
        return int(np.searchsorted(self.starts, step, side="right")) - 1

    def _drawn(self, step: int) -> np.ndarray:
        """In a phase, [v < r] = floor(x) - floor(x - r) is summed over its steps. Only the second floor
        counts: the first is the same for both edges of a task. Many phases go through one call together."""
        starts = self.starts[: self._phase(step) + 1]
        steps = np.diff(starts, append=step)
        first = (self.shift + starts * GOLDEN) % ONE
        found = np.zeros(self.tasks, np.int64)
        sizes = np.array([len(edges) for edges in self._edges[: len(starts)]])
        bounds = np.flatnonzero(np.diff(np.cumsum(sizes) // AT_ONCE)) + 1
        for low, high in pairwise([0, *bounds.tolist(), len(starts)]):
            edges, size = np.concatenate(self._edges[low:high]), sizes[low:high]
            count, offset = np.repeat(steps[low:high], size), np.repeat(first[low:high], size)
            placed = count * (edges // ONE) - floor_sum(count, ONE, GOLDEN, offset - edges % ONE + ONE)
            within = np.delete(np.diff(placed), np.cumsum(size)[:-1] - 1)  # not from phase to phase
            np.add.at(found, np.concatenate(self._live[low:high]), within)
        return found


def in_units(rates: np.ndarray, examples: int) -> np.ndarray:
    """(T,) rates -> (T,) int64 expected examples per step in units of 1/ONE; they sum to examples * ONE
    exactly.

    Raises:
        MtnlpError: the rates are negative, not finite, or do not sum to one.
    """
    rates = np.asarray(rates, np.float64)
    if not np.isfinite(rates).all() or (rates < 0).any() or abs(rates.sum() - 1) > 1e-6:
        raise MtnlpError(
            f"A sampler's rates must be >= 0 and sum to 1; got a sum of {rates.sum()} from {rates}."
        )
    if examples < 1:
        raise MtnlpError(f"examples_per_step must be at least 1, got {examples}.")
    expected = examples * (rates / rates.sum())
    whole = np.rint(expected)
    units = np.where(abs(expected - whole) < SNAP, whole * ONE, np.rint(expected * ONE)).astype(np.int64)
    left = examples * ONE - int(units.sum())
    if left:  # a few units of rounding go to the largest rate that is not held at an integer
        free = np.flatnonzero(units % ONE)
        units[free[np.argmax(units[free])] if len(free) else np.argmax(units)] += left
    return units


def floor_sum(count: np.ndarray | int, modulus: int, slope: int, offset: np.ndarray) -> np.ndarray:
    """sum of floor((slope * i + offset) / modulus) over i = 0..count-1, for (M,) offsets >= 0 and as many
    counts, or one for all, at once; int64.

    Slope and modulus follow Euclid's algorithm whatever the offset is, so only counts and offsets are arrays.
    Needs count * slope + offset < 2^63.
    """
    offset = np.array(offset, np.int64)
    counts, total = np.full(offset.shape, count, np.int64), np.zeros(offset.shape, np.int64)
    while True:
        quotient, slope = divmod(slope, modulus)
        whole = offset // modulus
        offset -= whole * modulus  # half the price of %
        total += counts * whole
        if quotient:
            total += counts * (counts - 1) // 2 * quotient
        last = slope * counts + offset
        counts = last // modulus
        offset = last - counts * modulus
        if not counts.any():
            return total
        slope, modulus = modulus, slope
