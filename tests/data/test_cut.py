from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlp.data.cut import cut


def cost(lengths, sequences, targets, groups, max_tokens, overhead):
    """Padded tokens and overhead of a division, None if a batch of several examples is over the budget."""
    total = 0
    for group in groups:
        padded = sum(sequences[i] for i in group) * (
            max(lengths[i] for i in group) + max(targets[i] for i in group)
        )
        if padded > max_tokens and len(group) > 1:
            return None
        total += padded + overhead
    return total


def stretches(n):
    for cuts in range(n):
        for places in combinations(range(1, n), cuts):
            edges = [0, *places, n]
            yield [range(a, b) for a, b in pairwise(edges)]


def partitions(items):
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


@settings(deadline=None, max_examples=150)
@given(
    examples=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 4), st.integers(0, 30)), min_size=1, max_size=8
    ),
    max_tokens=st.integers(1, 400),
    overhead=st.integers(0, 60),
)
def test_no_other_stretches_cost_less(examples, max_tokens, overhead):
    lengths, sequences, targets = zip(*sorted(examples), strict=True)
    found = cut(*map(np.array, (lengths, sequences, targets)), max_tokens=max_tokens, overhead=overhead)

    own = cost(lengths, sequences, targets, [range(a, b) for a, b in found], max_tokens, overhead)
    costs = [
        cost(lengths, sequences, targets, groups, max_tokens, overhead) for groups in stretches(len(examples))
    ]

    assert [found[0][0], *(b for _, b in found)] == [*(a for a, _ in found), len(examples)]
    assert own == min(c for c in costs if c is not None)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), overhead=st.integers(0, 60))
def test_sorting_first_loses_nothing_when_the_budget_is_ample(lengths, overhead):
    lengths, ones, zeros = sorted(lengths), [1] * len(lengths), [0] * len(lengths)
    found = cut(np.array(lengths), np.array(ones), np.array(zeros), max_tokens=10**6, overhead=overhead)

    own = cost(lengths, ones, zeros, [range(a, b) for a, b in found], 10**6, overhead)

    assert own == min(
        cost(lengths, ones, zeros, p, 10**6, overhead) for p in partitions(list(range(len(lengths))))
    )


def test_no_examples_make_no_batches():
    none = np.zeros(0, int)

    assert cut(none, none, none, max_tokens=10) == []
