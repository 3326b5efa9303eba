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
        self._edges = [np.cumsum(in_units(phase.rates, examples_per_step)) for phase in phases]
        # Drawn before each phase; filled as far as asked.
        self._before = [np.zeros(len(self._edges[0]), np.int64)]
        self.examples_per_step = examples_per_step

    def counts(self, step: int) -> np.ndarray:
        """(T,) int64 examples of each task in step `step`; they sum to examples_per_step."""
        edges = self._edges[self._phase(step)]
        turn = (self.shift + step * GOLDEN) % ONE
        return np.diff(edges // ONE + (turn < edges % ONE), prepend=0)

    def drawn(self, step: int) -> np.ndarray:
        """(T,) int64 examples of each task in steps 0..step-1."""
        phase = self._phase(step)
        while len(self._before) <= phase:
            last = len(self._before) - 1
            self._before.append(self._before[last] + self._between(last, int(self.starts[last + 1])))
        return self._before[phase] + self._between(phase, step)

    def _phase(self, step: int) -> int:
        if not 0 <= step < ONE:
            raise MtnlpError(f"Step {step} is outside 0..{ONE - 1}, the steps that a plan exists for.")
        return int(np.searchsorted(self.starts, step, side="right")) - 1

    def _between(self, phase: int, stop: int) -> np.ndarray:
        """Drawn from the start of `phase` to before `stop`: [v < r] = floor(x) - floor(x - r) summed over
        steps."""
        start, edges = int(self.starts[phase]), self._edges[phase]
        first, steps = (self.shift + start * GOLDEN) % ONE, stop - start
        below = floor_sum(steps, ONE, GOLDEN, np.array([first])) - floor_sum(
            steps, ONE, GOLDEN, first - edges % ONE + ONE
        )
        return np.diff(steps * (edges // ONE) + below + steps, prepend=0)


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


def floor_sum(count: int, modulus: int, slope: int, offset: np.ndarray) -> np.ndarray:
    """sum of floor((slope * i + offset) / modulus) over i = 0..count-1, for (T,) offsets >= 0 at once; int64.

    Slope and modulus follow Euclid's algorithm whatever the offset is, so only counts and offsets are arrays.
    Needs count * slope + offset < 2^63.
    """
    offset = np.asarray(offset, np.int64)
    counts, total = np.full(offset.shape, count, np.int64), np.zeros(offset.shape, np.int64)
    while True:
        total += counts * (counts - 1) // 2 * (slope // modulus) + counts * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        last = slope * counts + offset
        counts, offset = last // modulus, last % modulus
        if not counts.any():
            return total
        slope, modulus = modulus, slope
