from __future__ import annotations

import numpy as np
import pytest

from mtnlp.data.shuffle import key_of, permuted, sample


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 10_007])
def test_a_shuffle_is_a_permutation_for_every_size_and_key(size):
    for key in (0, 1, key_of("x", 7), 2**64 - 1):
        assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


def test_sizes_and_keys_may_differ_from_element_to_element():
    index, size, key = np.array([0, 5, 2, 9]), np.array([1, 7, 3, 10]), np.array([3, 4, 5, 6], np.uint64)

    together = permuted(index, size, key)

    assert together.tolist() == [
        int(permuted(np.array([i]), n, k)[0]) for i, n, k in zip(index, size, key, strict=True)
    ]


@pytest.mark.parametrize("size", [3, 7, 10])
def test_every_index_goes_everywhere_equally_often(size):
    keys = 4_000
    each = np.repeat(np.array([key_of("key", k) for k in range(keys)], np.uint64), size)
    places = permuted(np.tile(np.arange(size), keys), size, each).reshape(keys, size)

    for index in range(size):
        found = np.bincount(places[:, index], minlength=size)

        assert abs(found - keys / size).max() < 5 * np.sqrt(keys / size)


def test_a_large_shuffle_leaves_no_trace_of_the_order():
    places = permuted(np.arange(50_000), 50_000, key_of("large")).astype(float)

    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(places, np.arange(50_000))[0, 1]) < 0.02


def test_a_sample_holds_distinct_rows_in_order_and_is_always_the_same():
    first = sample(1000, 50, "limit")

    assert len(set(first.tolist())) == 50 and (np.diff(first) > 0).all() and first.max() < 1000
    assert (sample(1000, 50, "limit") == first).all()
    assert sample(10, 50, "limit").tolist() == list(range(10))
