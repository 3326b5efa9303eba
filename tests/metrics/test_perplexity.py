"""Perplexities of texts against their definitions."""

from __future__ import annotations

import math

import pytest

from mtnlp import metrics
from mtnlp.errors import MtnlpError

TEXTS = [(-10.0, 5, 4, 20), (-2.0, 1, 1, 3), (-0.5, 3, 0, 1)]  # log-likelihood, tokens, words, bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perplexity", math.exp(12.5 / 9)),
        ("word_perplexity", math.exp(12.5 / 5)),
        ("byte_perplexity", math.exp(12.5 / 24)),
        ("bits_per_byte", 12.5 / 24 / math.log(2)),
    ],
)
def test_texts_count_by_their_length(name, expected):
    metric = metrics.get(name, "text")

    assert metric(TEXTS, [None] * 3) == pytest.approx(expected, abs=1e-12)
    assert not metric.greater_is_better


def test_a_model_that_guesses_bytes_needs_eight_bits_for_each():
    texts = [(-n * math.log(256), n, 1, n) for n in (3, 70)]

    assert metrics.get("byte_perplexity", "text")(texts, [None] * 2) == pytest.approx(256, abs=1e-9)
    assert metrics.get("bits_per_byte", "text")(texts, [None] * 2) == pytest.approx(8, abs=1e-12)


def test_what_has_no_perplexity_is_seen():
    perplexity = metrics.get("word_perplexity", "text")

    assert math.isnan(perplexity([(-1.0, 2, 0, 2)], [None]))  # no words
    assert math.isnan(perplexity([(math.nan, 2, 1, 2)], [None]))
    assert perplexity([(-math.inf, 2, 1, 2)], [None]) == math.inf
    assert perplexity([(-1e6, 2, 1, 2)], [None]) == math.inf
    with pytest.raises(MtnlpError, match=r"Text 0: expected \(log-likelihood, tokens, words, bytes\); got"):
        perplexity([(-1.0, 2)], [None])
