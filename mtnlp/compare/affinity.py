"""Which tasks go together: cosines of gradients, inter-task affinity, task vectors, and groups out of these.

    cosine    cos(g_i, g_j) of two tasks' gradients; below 0, what one asks for the other resists
    affinity  Z[i, j] = 1 - L_j(theta - lr g_i) / L_j(theta): the share of task j's loss that goes away when
              the shared parameters theta take one step for task i alone; above 0, task i helps task j
    vectors   cos(W_a, W_b) of what two finished runs have learned

Sources: gradient cosines, Du et al. 2018, arXiv:1812.02224; affinity and groups, Fifty et al. 2021,
"Efficiently Identifying Task Groupings for Multi-Task Learning" (TAG), equation 1, arXiv:2109.04617; task
vectors, Ilharco et al. 2023, arXiv:2212.04089.
Deviations from TAG: groups are disjoint (there a task may be trained in several and is served by one), and a
task alone counts 0, which is what a step that nobody else takes does to it.
Shapes: T tasks, N measurements, V vectors, R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

EXACT = 8  # tasks of which every partition is looked at: there are 4140
Partition = tuple[tuple[int, ...], ...]
Adapter = Mapping[str, tuple[np.ndarray, np.ndarray]]  # layer -> (down (R, I), up (R, O)); W = up^T down


@dataclass(frozen=True)
class Matrix:
    """What was measured several times: mean (T, T) and its standard error (T, T), NaN = not known."""

    mean: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Grouping:
    """A partition of the tasks.

    groups: indices of tasks, ascending, in the order of their first ones. score: mean over all tasks of the
    mean affinity of its group onto it. alone: tasks that were set apart because nobody helps them. exact:
    whether every partition of the others was looked at.
    """

    groups: Partition
    score: float
    alone: tuple[int, ...]
    exact: bool


def cosines(gram: np.ndarray) -> np.ndarray:
    """(T, T) dot products of gradients -> (T, T) cosines; NaN where one of the two is zero."""
    norms = np.sqrt(np.diag(gram))
    norms = np.where(norms > 0, norms, np.nan)
    return np.clip(gram / np.outer(norms, norms), -1, 1)


def lookahead(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Affinities Z.

    Args:
        before: (T,) losses; after: (T, T), after[i, j] = loss of j when the shared parameters went for i.

    Returns:
        (T, T) 1 - after / before, no unit; NaN in the column of a task whose loss was not above 0.
    """
    return 1 - after / np.where(before > 0, before, np.nan)


def averaged(found: Sequence[np.ndarray]) -> Matrix:
    """N matrices (T, T) -> mean and standard error of the mean, entry by entry, over those that are no NaN.
    The error is NaN where fewer than two are."""
    stack = np.stack(found)
    there = ~np.isnan(stack)
    count = there.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, stack, 0).sum(0) / count
        square = np.where(there, stack - mean, 0) ** 2
        return Matrix(mean, np.sqrt(square.sum(0) / (count - 1) / count))


# Task vectors.


def product(first: Adapter, second: Adapter) -> float:
    """<W_a, W_b> over all layers, a layer that one of them leaves as it was being 0 there.

    By tr(down_a^T up_a up_b^T down_b) = sum of (up_a up_b^T) * (down_a down_b^T): products of (R, R), never
    (O, I).
    """
    total = 0.0
    for layer in first.keys() & second.keys():
        (down, up), (other_down, other_up) = first[layer], second[layer]
        total += float(((up @ other_up.T) * (down @ other_down.T)).sum())
    return total


def similarity(adapters: Sequence[Adapter]) -> np.ndarray:
    """(V, V) cosines of task vectors; NaN for one that is zero. Scales such as alpha / R do not matter."""
    wide = [{layer: tuple(np.asarray(part, np.float64) for part in pair) for layer, pair in one.items()}
            for one in adapters]  # fmt: skip
    return cosines(np.array([[product(first, second) for second in wide] for first in wide]))


# Groups.


def score(affinity: np.ndarray, groups: Partition) -> float:
    """Mean over all T tasks of the mean affinity that the rest of its group has onto a task; alone, it is 0.

    Args:
        affinity: (T, T), affinity[i, j] = of i onto j, without NaN.
    """
    return sum(_gained(affinity, group) for group in groups) / len(affinity)


def _gained(affinity: np.ndarray, group: tuple[int, ...]) -> float:
    """The sum over a group's tasks of the mean affinity of the others onto them."""
    if len(group) < 2:
        return 0.0
    own = affinity[np.ix_(group, group)]
    return float(own.sum() - np.trace(own)) / (len(group) - 1)


def grouped(affinity: np.ndarray, most: int | None = None) -> Grouping:
    """The groups with the best score; of equal ones the fewest.

    A task that nobody helps (no affinity of another one onto it is above 0) first gets a group of its own,
    unless there would be more than `most` groups then. Up to EXACT others: the best of all partitions. More:
    groups are joined, then tasks move one by one, each time in the best way there is; the result may be a
    local optimum.

    Args:
        affinity: (T, T); NaN counts as 0. most: groups that there may be; None = any number.
    """
    affinity = np.nan_to_num(affinity, nan=0.0)
    tasks = range(len(affinity))
    alone = [j for j in tasks if max((affinity[i, j] for i in tasks if i != j), default=0.0) <= 0]
    if most is not None and len(alone) + (len(alone) < len(tasks)) > most:
        alone = []
    rest = [j for j in tasks if j not in alone]
    own = affinity[np.ix_(rest, rest)]
    left = len(rest) if most is None else min(most - len(alone), len(rest))
    exact = len(rest) <= EXACT
    best = max(partitions(len(rest), left), key=_rank(own)) if exact else _improved(own, left)
    groups = [*((j,) for j in alone), *(tuple(rest[i] for i in group) for group in best)]
    found = tuple(sorted(groups))
    return Grouping(found, score(affinity, found), tuple(alone), exact)


def partitions(count: int, most: int) -> Iterator[Partition]:
    """Every partition of 0..count-1 into at most `most` groups, each once."""
    if count == 0:
        yield ()
        return
    last = count - 1
    for smaller in partitions(last, most):
        for i, group in enumerate(smaller):
            yield (*smaller[:i], (*group, last), *smaller[i + 1 :])
        if len(smaller) < most:
            yield (*smaller, (last,))


def _rank(affinity: np.ndarray) -> Callable[[Partition], tuple[float, int]]:
    """What partitions are compared by; sums that differ by rounding only are equal."""
    unit = float(np.abs(affinity).max(initial=0.0)) or 1.0
    gained = cache(partial(_gained, affinity / unit))  # partitions share most of their groups
    return lambda groups: (round(sum(map(gained, groups)), 9), -len(groups))


def _improved(affinity: np.ndarray, most: int) -> Partition:
    """Join groups one pair at a time, the best pair first, down to a single group; from every partition on
    this way that has few enough groups, move single tasks while that is better; the best that is reached."""
    rank = _rank(affinity)
    groups: Partition = tuple((i,) for i in range(len(affinity)))
    ways = [groups]
    while len(groups) > 1:
        groups = max(_joined(groups), key=rank)
        ways.append(groups)
    return max((_settled(groups, most, rank) for groups in ways if len(groups) <= most), key=rank)


def _settled(groups: Partition, most: int, rank: Callable[[Partition], tuple[float, int]]) -> Partition:
    """Move tasks one by one until nothing is better."""
    while rank(best := max(_moved(groups, most), key=rank, default=groups)) > rank(groups):
        groups = best
    return groups


def _joined(groups: Partition) -> Iterator[Partition]:
    for j in range(len(groups)):
        for i in range(j):
            rest = [group for k, group in enumerate(groups) if k not in (i, j)]
            yield (*rest, tuple(sorted(groups[i] + groups[j])))


def _moved(groups: Partition, most: int) -> Iterator[Partition]:
    """Every partition that differs in the place of one task."""
    for i, group in enumerate(groups):
        for task in group:
            left = tuple(other for other in group if other != task)
            rest = [*groups[:i], *([left] if left else []), *groups[i + 1 :]]
            for j, to in enumerate(rest):
                if to != left:
                    yield (*rest[:j], tuple(sorted((*to, task))), *rest[j + 1 :])
            if left and len(rest) < most:
                yield (*rest, (task,))
