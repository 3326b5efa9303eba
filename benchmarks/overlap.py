"""Overlap of a suite with its training mixture: train rows looked up per minute of one core.

Run:     python benchmarks/overlap.py [--json overlap.json]
Cost:    two minutes and 1 GB; with --quick (4,000 train rows) a few seconds
Rows are sentences of about 30 words (Poisson) drawn from 50,000 words by Zipf's law. Of the test rows, the
first 2 % stand in train as they are but in capitals, and the next 2 % with their last words changed. A time
is that of the whole check: to index test, to read train, to report. Beside it, on the same rows, Python sets
of tuples of 13 words, the short way to write such a check: it knows one size of grams, and not where they
stand; and the split of texts into words alone, of which no check can be faster. Before timing: exactly the
planted rows must be found; else exit code 1.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from _kit import Row, Times, arguments, doing, middle, report, rounds

from mtnlp.bench.overlap import N, Overlap, overlap, words_of

WORDS, LENGTH = 50_000, 30
PER_MINUTE = 1_000_000
PLANTED = 0.02  # of the test rows, exact; and as many near


def vocabulary(draw: np.random.Generator, alphabet: str) -> np.ndarray:
    """(WORDS,) different words of 1 to 10 letters, the frequent ones short."""
    letters, found = np.array(list(alphabet)), {}
    while len(found) < WORDS:
        longest = 5 + 6 * len(found) // WORDS
        found["".join(letters[draw.integers(0, len(letters), draw.integers(1, longest))])] = None
    return np.array(list(found), dtype=object)


def sentences(draw: np.random.Generator, words: np.ndarray, rows: int) -> list[str]:
    """Rows of at least 20 words, so that none is short."""
    chance = 1 / np.arange(1, WORDS + 1)
    lengths = np.maximum(draw.poisson(LENGTH, rows), 20)
    drawn = words[draw.choice(WORDS, lengths.sum(), p=chance / chance.sum())]
    ends = np.cumsum(lengths)
    return [
        f"{' '.join(drawn[end - length : end])}.".capitalize()
        for end, length in zip(ends.tolist(), lengths.tolist())
    ]


def corpus(alphabet: str, train_rows: int, test_rows: int) -> tuple[list[str], list[str], int]:
    """Train, test, and how many rows of each sort were planted."""
    draw = np.random.default_rng(0)
    words = vocabulary(draw, alphabet)
    train, test = sentences(draw, words, train_rows), sentences(draw, words, test_rows)
    planted = max(int(PLANTED * test_rows), 1)
    places = draw.permutation(train_rows)[: 2 * planted].tolist()
    for row, place in enumerate(places):
        changed = " ".join([*test[row].split()[:-2], "something", "else"])
        train[place] = test[row].upper() if row < planted else changed
    return train, test, planted


def by_sets(train: Sequence[str], test: Sequence[str]) -> int:
    """Test rows half of whose grams are in train, by sets of tuples."""
    own = [words_of(text) for text in test]
    grams = [[tuple(words[i : i + N]) for i in range(len(words) - N + 1)] for words in own]
    wanted = {gram for row in grams for gram in row}
    there = set()
    for text in train:
        words = words_of(text)
        there.update(gram for i in range(len(words) - N + 1) if (gram := tuple(words[i : i + N])) in wanted)
    return sum(2 * sum(gram in there for gram in row) >= len(row) for row in grams)


def split(train: Sequence[str]) -> None:
    for text in train:
        words_of(text)


def right(found: Overlap, planted: int) -> bool:
    (task,) = found.tasks
    rows = [(hit.row, hit.exact) for hit in task.hits]
    return rows == [(row, row < planted) for row in range(2 * planted)]


def per_minute(times: Times, train_rows: int) -> list[Row]:
    rates = {name: [60 * train_rows / seconds for seconds in own] for name, own in times.items()}
    return [
        Row(
            f"{name}, rows per minute",
            "-",
            *middle(own),
            target=PER_MINUTE if name == "mtnlp" else None,
            most=False,
        )
        for name, own in rates.items()
    ]


def memory(name: str, check: Callable[[Sequence[str], Sequence[str]], object], test: Sequence[str]) -> Row:
    """What a check without train rows holds at most, the texts themselves left out."""
    tracemalloc.start()
    check([], test)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Row(f"{name}, bytes per test row", "-", *[most / len(test)] * 3)


def by_mtnlp(train: Sequence[str], test: Sequence[str]) -> Overlap:
    return overlap({"train": train}, {"test": test})


def main() -> int:
    options = arguments(__doc__).parse_args()
    train_rows, test_rows = (4_000, 400) if options.quick else (200_000, 20_000)
    count = options.rounds or (2 if options.quick else 5)
    groups, sound = {}, True
    for script, alphabet in (("Latin", "etaoinshrdlucmfw"), ("Cyrillic", "оеаинтсрвлкмдпуя")):
        doing(f"{script}: {train_rows:,} train rows")
        train, test, planted = corpus(alphabet, train_rows, test_rows)
        check = partial(by_mtnlp, train, test)
        sound &= right(check(), planted) and by_sets(train, test) == 2 * planted
        cases = {"mtnlp": check, "sets": partial(by_sets, train, test), "words alone": partial(split, train)}
        times = rounds(cases, count=count, threads=options.threads, warmup=0)
        groups[f"{script}: {train_rows:,} train, {test_rows:,} test rows"] = per_minute(times, train_rows)
    groups["memory"] = [memory("mtnlp", by_mtnlp, test), memory("sets", by_sets, test)]
    report("Train/test overlap", groups, options, planted_rows_found=sound)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
