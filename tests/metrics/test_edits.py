"""Edits with moves: the paper's example, bounds that hold for any text, and sacrebleu."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.metrics.edits import edits, tokens


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein's, by its definition."""
    table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


def altered(words: list[str], rng: np.random.Generator) -> list[str]:
    """The words with some runs moved, some words replaced and some left out."""
    said = list(words)
    for _ in range(rng.integers(1, 5)):
        i, j = sorted(rng.integers(0, len(said) + 1, 2))
        run, rest = said[i:j], said[:i] + said[j:]
        place = rng.integers(0, len(rest) + 1)
        said = rest[:place] + run + rest[place:]
    return [word if rng.random() < 0.9 else "new" for word in said if rng.random() < 0.9]


def pairs(seed: int, sizes: tuple[int, ...], n: int) -> list[tuple[list[str], list[str]]]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        words = rng.choice(list("abcdefgh"), rng.choice(sizes)).tolist()
        other = rng.choice(list("abcdefgh"), rng.choice(sizes)).tolist()
        found.append((altered(words, rng) if rng.random() < 0.7 else other, words))
    return found


def test_the_example_of_the_paper_takes_four_edits():
    reference = "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
    said = "THIS WEEK THE SAUDIS denied information published in the new york times"

    assert metrics.get("ter", "generate")([said], [(reference,)]) == pytest.approx(4 / 13, abs=1e-12)


def test_a_moved_run_is_one_edit_wherever_it_goes():
    words = list("abcdefgh")
    for start in range(7):
        for place in range(7):
            rest = words[:start] + words[start + 2 :]
            moved = rest[:place] + words[start : start + 2] + rest[place:]

            assert edits(moved, words) == (moved != words)


def test_moves_never_cost_more_than_none_and_bags_of_words_set_a_floor():
    for said, words in pairs(0, (0, 1, 4, 9), 120):
        missing = max(len(words), len(said)) - sum(min(said.count(w), words.count(w)) for w in set(words))

        assert missing <= edits(said, words) <= distance(said, words)


def test_orders_of_the_same_words_take_at_least_one_move_each():
    for said in permutations("abcd"):
        assert 0 < edits([*said], [*"abcd"]) + (said == tuple("abcd")) <= 3


def test_edges_are_those_of_the_measure():
    ter = metrics.get("ter", "generate")

    assert ter([""], [("a b",)]) == 1.0
    assert ter(["a b"], [("",)]) == 1.0
    assert ter([""], [("",)]) == 0.0
    assert ter(["a b c"], [("x",)]) == 3.0
    assert ter(["A b"], [("a  B",)]) == 0.0
    assert ter(["a b"], [("a b", "a b c d")]) == 0.0
    assert ter(["a c"], [("a b", "a b x x")]) == pytest.approx(1 / 3)  # nearest reference over mean length


@pytest.mark.parametrize(("sizes", "n"), [((0, 1, 3, 8), 250), ((15, 30), 40), ((1, 60, 90), 4)])
def test_edits_equal_sacrebleu(sizes, n):
    lib = pytest.importorskip("sacrebleu.metrics.lib_ter")

    for said, words in pairs(n, sizes, n):
        assert edits(said, words) == lib.translation_edit_rate(said, words)[0], (said, words)


def test_words_are_lower_case_and_keep_their_punctuation():
    assert tokens("  It's\tDONE.\n(really) ") == ["it's", "done.", "(really)"]
