"""How much of a suite's test rows stands in a training mixture: equal texts, and texts that share n-grams.

Texts are compared as words: case folded, punctuation taken as space, spaces made one (`words_of`).

    exact   all words of the row are all words of a train row
    near    not exact, but at least `share` of the row's n-grams of words stand somewhere in train

A row of fewer than n words is one gram: all of it, somewhere in a train row. Of fewer than SHORTEST words it
can only be exact: five common words that follow one another are no sign of a copy.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (grams of 13 words, of short texts down to 8); Touvron
et al. 2023, Llama 2, arXiv:2307.09288, appendix A.6 (the share of a row that is found). Deviation: the share
is of the row's grams, not of its tokens, and grams that are frequent in train count.

The small side, test, is indexed; train is read once. A rolling hash of word ids finds candidates, and the
words themselves decide: nothing is reported because two hashes happen to be equal.
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, repeat
from typing import Any

import numpy as np

from mtnlp.bench import tables
from mtnlp.errors import MtnlpError, shown
from mtnlp.tasks.spec import Example, TaskSpec

N = 13  # words of a gram
SHORTEST = 8  # words that a row needs to be more than equal or unequal
SHARE = 0.5  # of a row's grams that makes it a near duplicate
SHOWN = 3  # rows that a task shows
LETTERS = 280  # of a text that is shown

CHUNK = 1 << 16  # words of train that are looked up at once
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the rolling hash; odd, so that no digit is lost
FILTER_BITS = 24  # at most, of the table that says which hashes may be known
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}  # scripts without word spaces

_Found = tuple[bool, float, int]  # exact, share of its grams, train row as counted over all tasks


@dataclass(frozen=True)
class Hit:
    """A test row that stands in train.

    Args:
        row: its number in its task.
        exact: the whole row does.
        share: of its grams, in (0, 1]; 1 for an exact one.
        train_task, train_row: the first train row that equals it; or, for a near one, the train row in which
            most of its grams were found first (of several, the first).
    """

    row: int
    exact: bool
    share: float
    train_task: str
    train_row: int


@dataclass(frozen=True)
class Pair:
    """A hit with the first LETTERS characters of both texts."""

    hit: Hit
    text: str
    train_text: str


@dataclass(frozen=True)
class TaskOverlap:
    """One test task.

    Args:
        rows: its rows; empty: those without a word; short: those that can only be exact; exact, near: those
            that stand in train (no row is both).
        sources: train task -> hits that came from it, the most frequent first.
        hits: all of them, by row.
        pairs: some of them to look at, exact ones first.
    """

    task: str
    rows: int
    empty: int
    short: int
    exact: int
    near: int
    sources: Mapping[str, int]
    hits: tuple[Hit, ...]
    pairs: tuple[Pair, ...]

    @property
    def fraction(self) -> float:
        """Of the rows that hold a word, those that stand in train; 0.0 where there are none."""
        return (self.exact + self.near) / max(self.rows - self.empty, 1)


@dataclass(frozen=True)
class Overlap:
    """The overlap of every test task with `train_rows` train rows; n and share as they were asked for."""

    tasks: tuple[TaskOverlap, ...]
    train_rows: int
    n: int
    share: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**asdict(self), "tasks": [{**asdict(task), "fraction": task.fraction} for task in self.tasks]}

    def print(self, console: Any = None) -> None:
        """The table on a rich console."""
        numbers = ("rows", "exact", "near", "overlap")
        table = tables.table(("task", *numbers, "mostly from"), numbers)
        for task in self.tasks:
            found = (f"{task.rows:,}", f"{task.exact:,}", f"{task.near:,}", f"{task.fraction:.1%}")
            table.add_row(task.task, *found, ", ".join(list(task.sources)[:SHOWN]))
        (console or tables.console()).print(table)


def text_of(spec: TaskSpec, example: Example) -> str:
    """All inputs of an example, in the order of its kind, one after the other; lists are joined by spaces."""
    names = (*spec.parts.inputs, *spec.parts.optional)
    found = [example.inputs[name] for name in names if name in example.inputs]
    return "\n".join(part if isinstance(part, str) else " ".join(part) for part in found)


def words_of(text: str) -> list[str]:
    """The words by which texts are compared.

    A letter of a script that puts no spaces between words (UNSPACED) is a word. Invisible characters, such as
    soft hyphens, are taken away. Symbols that are no punctuation (emoji) stay.
    """
    folded = text.casefold()
    if not folded.isascii():  # a letter with its accent is one character or two
        folded = unicodedata.normalize("NFC", folded)
    return folded.translate(_CHARACTERS).split()


class _Characters(dict[int, "str | None"]):
    """Code point -> what stands for it among words; made when a character is met first."""

    def __missing__(self, code: int) -> str | None:
        self[code] = _word_part(chr(code))
        return self[code]


def _word_part(letter: str) -> str | None:
    category = unicodedata.category(letter)
    if category == "Cf":
        return None
    if category[0] in "PZC" or category in ("Sm", "Sc", "Sk"):
        return " "
    script = unicodedata.name(letter, "").replace("-", " ").split(" ")[0]
    return f" {letter} " if script in UNSPACED else letter


_CHARACTERS = _Characters()


def overlap(
    train: Mapping[str, Iterable[str]],
    test: Mapping[str, Sequence[str]],
    *,
    n: int = N,
    share: float = SHARE,
) -> Overlap:
    """Which test rows stand in train.

    Args:
        train: task -> its texts, read once and in this order; may be generators.
        test: task -> its texts; held in memory. Make both sides by `text_of`.
        n: words of a gram.
        share: of a row's grams that makes it near, in (0, 1].

    Raises:
        MtnlpError: n or share out of range; one text where texts belong, or something that is no text.
    """
    if n < 1 or not 0 < share <= 1:
        raise MtnlpError(f"overlap: n={n}, share={share}; expected n of 1 or more and a share in (0, 1].")
    index = _Index((words_of(text) for task in test for text in _checked("test", task, test[task])), n)
    for task, texts in train.items():
        index.read(task, texts)
    hits, first, tasks = index.hits(share), 0, []
    for task, texts in test.items():
        stop = first + len(texts)
        own = {row - first: hits[row] for row in range(first, stop) if row in hits}
        tasks.append(_task(task, texts, index.lengths[first:stop], own, index))
        first = stop
    return Overlap(tuple(tasks), index.train_rows, n, share)


def _checked(side: str, task: str, texts: Iterable[str]) -> Iterable[str]:
    """The texts, each looked at."""
    if isinstance(texts, str):
        raise MtnlpError(f"overlap: {side} task {task}: found one text {shown(texts)}; expected many.")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            found = f"overlap: {side} task {task}, row {row}: found {shown(text)}"
            raise MtnlpError(f"{found}; expected a text. Make one of an example by text_of.")
        yield text


def _task(
    task: str, texts: Sequence[str], lengths: np.ndarray, found: Mapping[int, _Found], index: _Index
) -> TaskOverlap:
    """One task, from the lengths of its rows in words and the rows that were found."""
    hits = [Hit(row, exact, part, *index.source(place)) for row, (exact, part, place) in found.items()]
    best = sorted(hits, key=lambda hit: (not hit.exact, -hit.share, hit.row))[:SHOWN]
    train_texts = [index.train_texts[found[hit.row][2]] for hit in best]
    return TaskOverlap(
        task,
        len(texts),
        empty=int((lengths == 0).sum()),
        short=int(((lengths > 0) & (lengths < index.shortest)).sum()),
        exact=sum(hit.exact for hit in hits),
        near=sum(not hit.exact for hit in hits),
        sources=dict(Counter(hit.train_task for hit in hits).most_common()),
        hits=tuple(hits),
        pairs=tuple(Pair(hit, texts[hit.row][:LETTERS], text) for hit, text in zip(best, train_texts)),
    )


class _Index:
    """Texts and grams (of n words) of test rows, given as words, and the train row that first had each."""

    def __init__(self, rows: Iterable[list[str]], n: int) -> None:
        self.n, self.shortest = n, min(SHORTEST, n)
        self.keys: list[str] = []
        self.ids: dict[str, int] = {}  # word -> 1, 2 ...; 0 is a word that test does not have
        self.train_rows = 0
        self.train_texts: dict[int, str] = {}  # of train rows that were the first to hold something
        self.tasks: list[str] = []
        self.starts: list[int] = []  # train row with which each task begins
        lengths, words = array("q"), array("q")
        for row in rows:
            self.keys.append(" ".join(row))
            lengths.append(len(row))
            words.extend([self.ids.setdefault(word, len(self.ids) + 1) for word in row])
        self.exact = dict.fromkeys(filter(None, self.keys), -1)  # text -> its first train row
        self.lengths, self.words = np.array(lengths), np.array(words)
        self._index_grams(self.lengths)

    def _index_grams(self, lengths: np.ndarray) -> None:
        """Windows of all rows: `window_row` and `window_gram`, (W,) each; and one table for each size."""
        windows = np.where(lengths < self.shortest, 0, np.maximum(lengths - self.n + 1, 1))
        self.window_row = np.repeat(np.arange(len(lengths)), windows)
        place = np.arange(len(self.window_row)) - (np.cumsum(windows) - windows)[self.window_row]
        starts = (np.cumsum(lengths) - lengths)[self.window_row] + place
        sizes = np.minimum(lengths, self.n)[self.window_row]
        self.window_gram = np.zeros(len(starts), np.int64)
        for seed in count():  # until no two grams of test have one hash
            self.values = _values(len(self.ids) + 1, seed)
            if self._tabulate(starts, sizes):
                return

    def _tabulate(self, starts: np.ndarray, sizes: np.ndarray) -> bool:
        """Number the different grams, size by size; False if two of them have one hash."""
        self.tables: dict[int, _Table] = {}
        self.first = np.zeros(0, np.int64)
        for size, hashes in _rolling(self.values[self.words], np.unique(sizes).tolist()):
            own = np.flatnonzero(sizes == size)
            known, samples, gram = np.unique(hashes[starts[own]], return_index=True, return_inverse=True)
            samples = starts[own][samples]
            if not _same(self.words, starts[own], self.words, samples[gram], size).all():
                return False
            self.tables[size] = _Table(known, samples, base=len(self.first))
            self.window_gram[own] = gram + len(self.first)
            self.first = np.concatenate([self.first, np.full(len(known), -1)])
        return True

    def source(self, place: int) -> tuple[str, int]:
        """Task and row of a train row that is counted over all tasks."""
        task = bisect_right(self.starts, place) - 1  # of tasks without rows the last one
        return self.tasks[task], place - self.starts[task]

    def read(self, name: str, texts: Iterable[str]) -> None:
        """Look up all rows of one train task."""
        self.tasks.append(name)
        self.starts.append(self.train_rows)
        words: list[int] = []  # of some rows, with -1 after each so that no gram goes from one into the next
        kept: list[str] = []
        for text in _checked("train", name, texts):
            found = words_of(text)
            if self.exact.get(key := " ".join(found)) == -1:
                self.exact[key] = self.train_rows
                self.train_texts[self.train_rows] = text[:LETTERS]
            words.extend(map(self.ids.get, found, repeat(0)))
            words.append(-1)
            kept.append(text)
            self.train_rows += 1
            if len(words) >= CHUNK:
                self._look_up(np.array(words), kept)
                words, kept = [], []
        self._look_up(np.array(words, np.int64), kept)

    def _look_up(self, words: np.ndarray, texts: Sequence[str]) -> None:
        """Note which grams these rows, the last ones that were read, are the first to hold."""
        known, ends = _known_from(words), np.flatnonzero(words == -1)
        for size, hashes in _rolling(self.values[words], sorted(self.tables)):
            table = self.tables[size]
            starts, gram = table.find(hashes, np.flatnonzero(known[: len(hashes)] >= size))
            new = self.first[gram + table.base] < 0
            starts, gram = starts[new], gram[new]
            same = _same(words, starts, self.words, table.samples[gram], size)
            gram, earliest = np.unique(gram[same], return_index=True)
            rows = np.searchsorted(ends, starts[same][earliest])
            self.first[gram + table.base] = self.train_rows - len(texts) + rows
            for row in np.unique(rows).tolist():
                self.train_texts.setdefault(self.train_rows - len(texts) + row, texts[row][:LETTERS])

    def hits(self, share: float) -> dict[int, _Found]:
        """The test rows that stand in train."""
        places = self.first[self.window_gram]
        total = np.bincount(self.window_row, minlength=len(self.keys))
        there = np.bincount(self.window_row[places >= 0], minlength=len(self.keys))
        parts = (there / np.maximum(total, 1)).tolist()
        ends = np.cumsum(total).tolist()
        found = {}
        for row, key in enumerate(self.keys):
            if self.exact.get(key, -1) >= 0:
                found[row] = (True, 1.0, self.exact[key])
            elif parts[row] >= share:
                own = places[ends[row] - int(total[row]) : ends[row]]
                rows, often = np.unique(own[own >= 0], return_counts=True)
                found[row] = (False, parts[row], int(rows[often.argmax()]))
        return found


class _Table:
    """The G different grams of one size.

    Args:
        hashes: (G,) uint64, sorted.
        samples: (G,) where each stands among the words of test.
        base: number of the first one among the grams of all sizes.
    """

    def __init__(self, hashes: np.ndarray, samples: np.ndarray, *, base: int) -> None:
        self.hashes, self.samples, self.base = hashes, samples, base
        bits = min(FILTER_BITS, len(hashes).bit_length() + 4)
        self.shift = np.uint64(64 - bits)
        self.maybe = np.zeros(1 << bits, np.bool_)  # a look here spares most windows the search
        self.maybe[hashes >> self.shift] = True

    def find(self, hashes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the starts whose window has a known hash, and the number of the gram in this table."""
        starts = starts[self.maybe[hashes[starts] >> self.shift]]
        wanted = hashes[starts]
        gram = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        equal = self.hashes[gram] == wanted
        return starts[equal], gram[equal]


def _values(words: int, seed: int) -> np.ndarray:
    """(words,) uint64: the random number that stands for each word in a hash."""
    return np.random.default_rng(seed).integers(0, 2**64, words, np.uint64)


def _rolling(values: np.ndarray, sizes: Sequence[int]) -> Iterable[tuple[int, np.ndarray]]:
    """(size, (L - size + 1,) hashes of all windows of so many words), for each of the sizes, which rise.

    The hash of a longer window is made from that of the shorter one: h(w1 .. wm) = h(w1 .. wm-1) F + v(wm).
    """
    hashes, done = values.copy(), 1
    for size in sizes:
        for place in range(done, min(size, len(values))):
            hashes = hashes[: len(values) - place]
            hashes *= FACTOR
            hashes += values[place:]
        done = size
        if size > len(values):
            return
        yield size, hashes


def _known_from(words: np.ndarray) -> np.ndarray:
    """(L,): how many known words (ids from 1) follow one another from each word on."""
    places = np.arange(len(words))
    ends = np.where(words <= 0, places, len(words))
    return np.minimum.accumulate(ends[::-1])[::-1] - places


def _same(a: np.ndarray, a_starts: np.ndarray, b: np.ndarray, b_starts: np.ndarray, size: int) -> np.ndarray:
    """(W,) bool: are the `size` words from each start the same on both sides?"""
    same = np.ones(len(a_starts), np.bool_)
    for place in range(size):
        same &= a[a_starts + place] == b[b_starts + place]
    return same
