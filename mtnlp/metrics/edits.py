"""Translation edit rate: words to insert, delete or replace and runs of words to move, per reference word.

Source: Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human Annotation"; moves are
chosen greedily within the limits of their program Tercom, as sacrebleu does by default: lower case, split at
white space, punctuation kept. Shapes: H said words, R reference words; row i of a table is about the first i
said words and column j about the first j reference words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

LONGEST, FARTHEST, TRIALS, BAND = 10, 50, 1000, 25  # words of a move, its distance, moves tried, half a band
Rows = list[list[float]]  # costs


def tokens(text: str) -> list[str]:
    """Lower-case words, split at white space."""
    return text.lower().split()


def edits(said: list[str], words: list[str]) -> int:
    """Edits that turn `said` into `words`, a move of any run of words counting as one."""
    if not words:
        return len(said)
    moves = tried = 0
    rows = _rows(said, words, [])
    while True:
        better, gain, tried = _best_move(said, words, rows, tried)
        if tried >= TRIALS or gain <= 0:
            return moves + int(rows[-1][-1])
        said, moves = better, moves + 1
        rows = _rows(said, words, [])


def ter(stats: np.ndarray) -> float:
    """(N, 2) edits and reference words -> edits per word; 1.0 for edits of an empty reference."""
    made, length = stats.sum(0)
    return float(made / length) if length else float(made > 0)


def _rows(said: Sequence[str], words: Sequence[str], known: Rows) -> Rows:
    """(H + 1, R + 1) least costs without moves; `known` are the first rows of the table.

    Only a band around the diagonal is computed, inf elsewhere, as Tercom does: of very different texts it may
    not hold the least cost, but it is part of the measure.
    """
    slope = len(words) / len(said) if said else 1.0
    width = max(BAND, math.ceil(slope / 2 + BAND)) if slope / 2 > BAND else BAND
    rows = known or [[float(j) for j in range(len(words) + 1)]]
    for i in range(len(rows), len(said) + 1):
        middle, word, above = math.floor(i * slope), said[i - 1], rows[-1]
        first = max(0, middle - width)
        end = len(words) + 1 if i == len(said) else min(len(words) + 1, middle + width)
        row = [math.inf] * (len(words) + 1)
        left = math.inf
        for j in range(first, end):
            left = min(left, above[j]) + 1
            if j and (through := above[j - 1] + (word != words[j - 1])) < left:
                left = through
            row[j] = left
        rows.append(row)
    return rows


def _aligned(
    said: Sequence[str], words: Sequence[str], rows: Rows
) -> tuple[list[int], list[bool], list[bool]]:
    """Where each reference word (R,) stands among the said ones, -1 = before them; which of the reference
    words (R,) and which of the said ones (H,) are wrong there.

    Of equally cheap ways: replace before delete before insert, from the end.
    """
    i, j = len(said), len(words)
    places, wrong, odd = [0] * j, [False] * j, [False] * i
    while i or j:
        through = rows[i - 1][j - 1] + (said[i - 1] != words[j - 1]) if i and j else math.inf
        if rows[i][j] == through:
            places[j - 1], wrong[j - 1] = i - 1, said[i - 1] != words[j - 1]
            odd[i - 1] = wrong[j - 1]
            i, j = i - 1, j - 1
        elif i and rows[i][j] == rows[i - 1][j] + 1:
            odd[i - 1] = True
            i -= 1
        else:
            places[j - 1], wrong[j - 1] = i - 1, True
            j -= 1
    return places, wrong, odd


def _best_move(said: list[str], words: list[str], rows: Rows, tried: int) -> tuple[list[str], float, int]:
    """The words after the move that saves most, what it saves, and how many moves have been tried by now.

    Of equal moves the longest, then the one from farthest left, then the one to farthest left.
    """
    places, wrong, odd = _aligned(said, words, rows)
    best, found = (-math.inf,), said
    for start, to, length in _common_runs(said, words):
        if not any(odd[start : start + length]) or not any(wrong[to : to + length]):
            continue
        if start <= places[to] < start + length:
            continue
        for target in _targets(places, to, length):
            moved, kept = _moved(said, start, length, target)
            cost = _rows(moved, words, rows[: kept + 1])[-1][-1]
            move = (rows[-1][-1] - cost, length, -start, -target)
            tried += 1
            if move > best:
                best, found = move, moved
        if tried >= TRIALS:
            break
    return found, max(best[0], 0), tried


def _common_runs(said: list[str], words: list[str]) -> Iterator[tuple[int, int, int]]:
    """(start in said, start in words, length) of all runs that stand in both."""
    for start in range(len(said)):
        for to in range(max(0, start - FARTHEST), min(len(words), start + FARTHEST + 1)):
            most = min(LONGEST, len(said) - start, len(words) - to)
            for length in range(1, most + 1):
                if said[start + length - 1] != words[to + length - 1]:
                    break
                yield start, to, length


def _targets(places: list[int], to: int, length: int) -> list[int]:
    """Places in `said` before which a run may go: after what is aligned with the word before the run in the
    reference, with its first word, and so on."""
    after = [0 if to == 0 else places[to - 1] + 1, *(place + 1 for place in places[to : to + length])]
    return [place for n, place in enumerate(after) if n == 0 or place != after[n - 1]]


def _moved(said: list[str], start: int, length: int, target: int) -> tuple[list[str], int]:
    """`said` with a run moved to before `target`, and how many of its first words stay.

    A target inside the run counts as that many words farther right.
    """
    run, rest = said[start : start + length], said[:start] + said[start + length :]
    place = target - length if target > start + length else target
    return rest[:place] + run + rest[place:], min(start, place)
