"""Scores of texts: exact match, token F1, ROUGE, BLEU and chrF, all between 0 and 1, and TER from 0.

sacrebleu prints BLEU, chrF and TER times 100; everything else about them is the same. ROUGE reads a-z and 0-9
only, without stemming, as its reference implementation does, so it says nothing about other scripts: use chrF
there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from string import punctuation
from typing import Any

import numpy as np

from mtnlp.metrics.base import Metric, ratio, scored
from mtnlp.metrics.edits import edits, ter, tokens

BOTH = ("span", "generate")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", punctuation)


def texts(reference: Sequence[Any]) -> list[str]:
    """The reference texts of a generate target (texts) or a span target ((text, start) pairs; none = "")."""
    return [r if isinstance(r, str) else r[0] for r in reference] or [""]


def plain(text: str) -> str:
    """SQuAD's reading of an answer: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def same_text(prediction: str, reference: Sequence[Any]) -> float:
    """1.0 if the prediction is a reference: span answers as SQuAD reads them, texts word by word."""
    is_span = not reference or not isinstance(reference[0], str)
    read = plain if is_span else (lambda text: " ".join(text.split()))
    return float(any(read(prediction) == read(text) for text in texts(reference)))


def _f1(common: float, predicted: float, true: float) -> float:
    return 2 * common / (predicted + true) if common else 0.0


def squad_f1(prediction: str, reference: Sequence[Any]) -> float:
    """F1 of the bags of words, best reference; nothing matches only nothing (Rajpurkar et al. 2018)."""
    said = plain(prediction).split()

    def one(text: str) -> float:
        words = plain(text).split()
        if not said or not words:
            return float(said == words)
        return _f1((Counter(said) & Counter(words)).total(), len(said), len(words))

    return max(map(one, texts(reference)))


def grams(tokens: Sequence[str], n: int) -> Counter:
    """How often each run of n tokens stands in them."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _rouge_tokens(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _rouge_n(said: list[str], words: list[str], n: int) -> float:
    a, b = grams(said, n), grams(words, n)
    return _f1((a & b).total(), a.total(), b.total())


def _common_rows(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """len(b) + 1 rows of len(a) bits; bit i of row j is 0 where a[i] makes the longest common subsequence of
    a[:i + 1] and b[:j] longer than that of a[:i] and b[:j]. The bit-parallel recurrence of Hyyro (2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    rows = [full]
    for token in b:
        match = rows[-1] & places.get(token, 0)
        rows.append(((rows[-1] + match) | (rows[-1] - match)) & full)
    return rows


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    return len(a) - _common_rows(a, b)[-1].bit_count()


def _common_places(a: Sequence[str], b: Sequence[str]) -> set[int]:
    """Where in `a` one of the longest common subsequences stands: the one that the scorer of ROUGE picks, who
    from the end leaves out of `a` what it can, and else of `b`."""
    rows, found = _common_rows(a, b), set()
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif rows[j] >> (i - 1) & 1:
            i -= 1
        else:
            j -= 1
    return found


def _rouge_l(said: list[str], words: list[str]) -> float:
    return _f1(longest_common(said, words), len(said), len(words))


def _rouge(
    score: Callable[[list[str], list[str]], float], prediction: str, reference: Sequence[Any]
) -> float:
    said = _rouge_tokens(prediction)
    return max(score(said, _rouge_tokens(text)) for text in texts(reference))


def _rouge_lsum(prediction: str, reference: Sequence[Any]) -> float:
    """ROUGE-L of summaries (Lin 2004, 3.2), best reference: the sentences stand on lines of their own.

    A word of a reference sentence is found if it is in its longest common subsequence with any predicted
    sentence; each occurrence of a word counts once.
    """
    said = [_rouge_tokens(line) for line in prediction.split("\n")]

    def one(text: str) -> float:
        sentences, found = [_rouge_tokens(line) for line in text.split("\n")], Counter()
        for words in sentences:
            places = set().union(*(_common_places(words, line) for line in said))
            found.update(words[place] for place in places)
        common = (found & Counter(chain.from_iterable(said))).total()
        return _f1(common, sum(map(len, said)), sum(map(len, sentences)))

    return max(map(one, texts(reference)))


def bleu_tokens(text: str) -> list[str]:
    """The international default of BLEU, `13a`: split off punctuation, but keep 1,000.5 and don't whole."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for code, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(code, sign)
    text = re.sub(r"([!-&(-+/:-@\[-`{-~])", r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def _bleu_stats(prediction: str, reference: Sequence[Any]) -> list[int]:
    """[said, closest reference length, then matches and totals of 1- to 4-grams]."""
    said, many = bleu_tokens(prediction), [bleu_tokens(text) for text in texts(reference)]
    closest = min((len(words) for words in many), key=lambda length: (abs(length - len(said)), length))
    matches, totals = [], []
    for n in range(1, 5):
        ours, best = grams(said, n), Counter()
        for words in many:
            best |= grams(words, n)
        matches.append((ours & best).total())
        totals.append(ours.total())
    return [len(said), closest, *matches, *totals]


def bleu(stats: np.ndarray) -> float:
    """BLEU of the whole set (Papineni et al. 2002); orders without a match count 1/2, 1/4, ..."""
    said, length, *counts = stats.sum(0)
    matches, totals = counts[:4], counts[4:]
    if not any(matches) or not all(totals):
        return 0.0
    logs, halves = 0.0, 1
    for match, total in zip(matches, totals, strict=True):
        halves *= 1 if match else 2
        logs += math.log((match or 1 / halves) / total)
    return math.exp(logs / 4 + min(0.0, 1 - length / said))


def _chrf_pair(said: str, words: str) -> list[int]:
    """[predicted, true, common] counts of character 1- to 6-grams, without spaces."""
    row = []
    for n in range(1, 7):
        a, b = grams(said, n), grams(words, n)
        row += [a.total() if b else 0, b.total(), (a & b).total()]
    return row


def _chrf_row(prediction: str, reference: Sequence[Any]) -> list[int]:
    said = "".join(prediction.split())
    return max(
        (_chrf_pair(said, "".join(text.split())) for text in texts(reference)),
        key=lambda row: chrf(np.array([row])),
    )


def chrf(stats: np.ndarray) -> float:
    """chrF2 (Popovic 2015): F of mean precision and mean recall, recall counting twice (beta 2)."""
    predicted, true, common = stats.sum(0).reshape(-1, 3).T.astype(np.float64)
    used = (predicted > 0) & (true > 0)  # orders that both sides are long enough for
    if not used.any():
        return 0.0
    precision, recall = (common[used] / predicted[used]).mean(), (common[used] / true[used]).mean()
    return float(5 * precision * recall / (4 * precision + recall)) if precision + recall else 0.0


def _ter_row(prediction: str, reference: Sequence[Any]) -> list[float]:
    """[edits to the nearest reference, mean length of the references in words]."""
    said, many = tokens(prediction), [tokens(text) for text in texts(reference)]
    return [min(edits(said, words) for words in many), sum(map(len, many)) / len(many)]


def _mean(
    score: Callable[[str, Sequence[Any]], float],
    predictions: Sequence[str],
    references: Sequence[Sequence[Any]],
    labels: Sequence[str] | None,
) -> np.ndarray:
    return scored([score(p, r) for p, r in zip(predictions, references, strict=True)])


def _rows(
    row: Callable[[str, Sequence[Any]], Sequence[float]],
    predictions: Sequence[str],
    references: Sequence[Sequence[Any]],
    labels: Sequence[str] | None,
) -> np.ndarray:
    return np.array([row(p, r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


METRICS = [
    Metric("exact_match", partial(_mean, same_text), ratio, BOTH),
    Metric("squad_f1", partial(_mean, squad_f1), ratio, BOTH),
    Metric("rouge_1", partial(_mean, partial(_rouge, partial(_rouge_n, n=1))), ratio, BOTH),
    Metric("rouge_2", partial(_mean, partial(_rouge, partial(_rouge_n, n=2))), ratio, BOTH),
    Metric("rouge_l", partial(_mean, partial(_rouge, _rouge_l)), ratio, BOTH),
    Metric("rouge_lsum", partial(_mean, _rouge_lsum), ratio, BOTH),
    Metric("bleu", partial(_rows, _bleu_stats), bleu, BOTH),
    Metric("chrf", partial(_rows, _chrf_row), chrf, BOTH),
    Metric("ter", partial(_rows, _ter_row), ter, BOTH, greater_is_better=False),
]
