"""The bootstrap interval of a score, and the paired one of a difference: how long 10,000 resamples take.

Run:     python benchmarks/bootstrap.py [--json bootstrap.json]
Cost:    two minutes; with --quick (200 rows, 200 resamples) a few seconds
Made-up answers to 2,000 rows that are right more often than not: single labels, 77 of them for the F1 of many
labels, numbers, texts of about twelve words, tag sequences. Statistics of the rows are made before; what is
timed is `statistics.interval` and `statistics.paired` from them to a value, a standard error and percentiles.
Beside it what a plain loop takes that calls the metric's `reduce` on rows drawn again, from 20 of its
resamples. Rows that are equal (right or wrong answers are of two kinds) are counted together by ours, so
metrics with many different rows are the ones to look at. Before timing: standard errors of both ways must
agree within 10 % (on 1,000 resamples of the loop), else exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from _kit import Row, arguments, clock_for, doing, middle, report

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.metrics import Metric

ROWS, LABELS = 2_000, 77
SECONDS = 1.0  # that any metric may take
LOOPED = 20
Case = tuple[Metric, np.ndarray]


def numbered(names: int) -> list[str]:
    return [f"label{i}" for i in range(names)]


def chosen(draw: np.random.Generator, rows: int, name: str, labels: int, kind: str = "classify") -> Case:
    """Single labels, 70 % right."""
    true = draw.integers(0, labels, rows)
    said = np.where(draw.random(rows) < 0.7, true, draw.integers(0, labels, rows))
    metric = metrics.get(name, kind)
    return metric, metric.stats(said.tolist(), true.tolist(), numbered(labels))


def measured(draw: np.random.Generator, rows: int, name: str) -> Case:
    """Numbers with a correlation of about 0.7; no two are equal."""
    true = draw.normal(size=rows)
    metric = metrics.get(name, "regress")
    return metric, metric.stats(true + draw.normal(size=rows), true, None)


def written(draw: np.random.Generator, rows: int, name: str) -> Case:
    """Texts of 6 to 18 words, each of which is kept with a chance of 70 %."""
    words = ["".join(draw.choice(list("abcdefgh"), draw.integers(2, 8))) for _ in range(500)]
    true = [draw.choice(words, draw.integers(6, 19)).tolist() for _ in range(rows)]
    said = [" ".join(w if draw.random() < 0.7 else str(draw.choice(words)) for w in text) for text in true]
    metric = metrics.get(name, "generate")
    return metric, metric.stats(said, [[" ".join(text)] for text in true], None)


def tagged(draw: np.random.Generator, rows: int, name: str) -> Case:
    """Tags of 5 to 30 words, 90 % right."""
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    often = [0.8, 0.05, 0.05, 0.05, 0.05]
    true = [draw.choice(5, draw.integers(5, 31), p=often) for _ in range(rows)]
    said = [np.where(draw.random(len(t)) < 0.9, t, draw.choice(5, len(t), p=often)).tolist() for t in true]
    metric = metrics.get(name, "tag")
    return metric, metric.stats(said, [tags.tolist() for tags in true], labels)


def cases(rows: int) -> dict[str, Case]:
    draw = np.random.default_rng(0)
    return {
        "accuracy": chosen(draw, rows, "accuracy", 2),
        f"macro F1, {LABELS} labels": chosen(draw, rows, "macro_f1", LABELS),
        "Matthews": chosen(draw, rows, "matthews", 2),
        f"Matthews, {LABELS} labels": chosen(draw, rows, "matthews", LABELS),
        "quadratic kappa": chosen(draw, rows, "quadratic_kappa", 5, "ordinal"),
        "Pearson": measured(draw, rows, "pearson"),
        "Spearman": measured(draw, rows, "spearman"),
        "BLEU": written(draw, rows, "bleu"),
        "chrF": written(draw, rows, "chrf"),
        "SQuAD F1": written(draw, rows, "squad_f1"),
        "entity F1": tagged(draw, rows, "span_micro_f1"),
    }


def loop(metric: Metric, stats: np.ndarray, resamples: int) -> np.ndarray:
    """(B,) values the plain way."""
    draw, n = np.random.default_rng(1), len(stats)
    return np.array([metric.reduce(stats[draw.integers(0, n, n)]) for _ in range(resamples)])


def agrees(metric: Metric, stats: np.ndarray) -> bool:
    """Its spread has a standard error of 2.2 % itself, so 10 % is far outside."""
    ours, plain = statistics.interval(metric, stats).stderr, loop(metric, stats, 1000).std(ddof=1)
    return bool(abs(ours / plain - 1) < 0.10)


def seconds(call: Callable[[], object], threads: int) -> float:
    clock = clock_for(threads)
    start = clock()
    call()
    return clock() - start


def times(found: dict[str, Case], resamples: int, count: int, threads: int) -> dict[str, list[Row]]:
    alone, pairs = [], []
    for name, (metric, stats) in found.items():
        doing(name)
        other = np.roll(stats, 1, axis=0)  # stands for a second model: how it answers costs nothing here
        one = partial(statistics.interval, metric, stats, resamples=resamples)
        both = partial(statistics.paired, metric, stats, other, resamples=resamples)
        plain = seconds(partial(loop, metric, stats, LOOPED), threads) / LOOPED * resamples
        took = [seconds(one, threads) for _ in range(count)]
        note = f"plain loop {plain:.1f} s"
        alone.append(Row(name, "-", *middle(took), target=SECONDS, note=note))
        pairs.append(Row(f"{name}, paired", "-", *middle([seconds(both, threads) for _ in range(count)])))
    return {"seconds of an interval": alone, "seconds of a difference": pairs}


def main() -> int:
    options = arguments(__doc__).parse_args()
    rows, resamples = (200, 200) if options.quick else (ROWS, statistics.RESAMPLES)
    count = options.rounds or (1 if options.quick else 5)
    found = cases(rows)
    doing("do both ways agree?")
    apart = [] if options.quick else [name for name, case in found.items() if not agrees(*case)]
    groups = times(found, resamples, count, options.threads)
    title = f"Bootstrap, {resamples:,} resamples of {rows:,} rows"
    report(title, groups, options, apart=apart)
    if apart:
        print(f"Standard errors differ from a plain loop's: {', '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
