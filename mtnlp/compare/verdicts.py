"""Which tasks a joint run helped and which it hurt, as far as rows and seeds can tell.

delta-m, the mean relative change over T tasks, is 1/T sum_t (-1)^l_t (M_t - B_t) / |B_t|, with l_t = 1 where
less is better, M_t the joint and B_t the single-task score; a task whose B_t is 0 has no relative change.

Source: Maninis, Radosavovic and Kokkinos 2019, arXiv:1904.08918; Vandenhende et al. 2021, arXiv:2004.13379.
Tests: statistics.paired_over_seeds, with Holm's correction over the tasks of one joint run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.bench.comparison import Side
from mtnlp.bench.evaluate import goodness

FEWEST = 20  # rows below which there is no verdict: what resamples of so few say is not calibrated
MATTERS = 0.1  # share of the baseline's score that rows and seeds should be able to show
WORDS = {"better": "helped", "worse": "hurt"}


@dataclass(frozen=True)
class TaskVerdict:
    """One task: mean over seeds of the baseline's and the joint run's main score, and their difference.

    n: rows. sd: over seeds; None with one seed. low, high: 95 % interval. adjusted: p after Holm's
    correction. least: the difference that such rows and seeds find in 4 of 5 cases, at the level that the
    correction asks of the first task. verdict: "helped", "hurt" or "unclear". note: why it had to be unclear.
    relative: change by the baseline's score, more being better; None where that is 0.
    """

    task: str
    kind: str
    metric: str
    split: str
    n: int
    baseline: float
    joint: float
    baseline_sd: float | None
    joint_sd: float | None
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    least: float
    verdict: str
    note: str
    relative: float | None


@dataclass(frozen=True)
class Verdicts:
    """All tasks of one joint run. delta_m, delta_m_sd: mean over seeds, and their standard deviation (None
    where it has none). baseline_mean, mean: of all main scores, errors e as 1 / (1 + e)."""

    tasks: tuple[TaskVerdict, ...]
    delta_m: float | None
    delta_m_sd: float | None
    baseline_mean: float
    mean: float

    def count(self, verdict: str) -> int:
        return sum(task.verdict == verdict for task in self.tasks)


def verdicts(
    baselines: Mapping[str, Sequence[Side]],
    joint: Mapping[str, Sequence[Side]],
    splits: Mapping[str, str],
    *,
    resamples: int = statistics.RESAMPLES,
) -> Verdicts:
    """Judge the tasks of one joint run.

    Args:
        baselines, joint: task -> what the runs of each seed did, in the same order of seeds.
        splits: task -> which rows these are.
    """
    found = {task: _difference(alone, joint[task], resamples) for task, alone in baselines.items()}
    adjusted = statistics.holm([difference.p for difference in found.values()])
    tasks = tuple(
        _verdict(baselines[task], joint[task], splits[task], difference, p, len(found))
        for (task, difference), p in zip(found.items(), adjusted, strict=True)
    )
    changes = [task.relative for task in tasks if task.relative is not None]
    by_seed = [
        [change for task in baselines if (change := _change(baselines[task][i], joint[task][i])) is not None]
        for i in range(len(next(iter(joint.values()))))
    ]
    each = [fmean(own) for own in by_seed if own]
    means = [
        fmean(
            fmean(goodness(side.metric, side.kind, _score(side)) for side in sides) for sides in part.values()
        )
        for part in (baselines, joint)
    ]
    return Verdicts(tasks, fmean(changes) if changes else None, _sd(each), *means)


def _difference(alone: Sequence[Side], joint: Sequence[Side], resamples: int) -> statistics.SeedDifference:
    first = alone[0]
    assert {(side.data, side.metric) for side in (*alone, *joint)} == {(first.data, first.metric)}
    metric = metrics.get(first.metric, first.kind)
    return statistics.paired_over_seeds(
        metric,
        [side.stats for side in alone],
        [side.stats for side in joint],
        resamples=min(resamples, 100) if metric.slow else resamples,
    )


def _verdict(
    alone: Sequence[Side],
    joint: Sequence[Side],
    split: str,
    found: statistics.SeedDifference,
    adjusted: float,
    tasks: int,
) -> TaskVerdict:
    side, scores = alone[0], [[_score(one) for one in part] for part in (alone, joint)]
    (baseline, mean), better = map(fmean, scores), metrics.get(side.metric, side.kind).greater_is_better
    least = statistics.minimum_detectable_effect(found.stderr, alpha=statistics.ALPHA / tasks)
    said = statistics.verdict(found, adjusted, greater_is_better=better)
    verdict, note = WORDS.get(said, said), ""
    if len(side.stats) < FEWEST:
        verdict = "unclear"
    if verdict == "unclear" and (len(side.stats) < FEWEST or least > MATTERS * abs(baseline)):
        few = "rows" if len(side.stats) < FEWEST or found.rows >= found.seeds else "seeds"
        note = f"too few {few} for a verdict; {_unseen(least, len(side.stats), tasks)} cannot be seen"
    return TaskVerdict(
        task=side.task,
        kind=side.kind,
        metric=side.metric,
        split=split,
        n=len(side.stats),
        baseline=baseline,
        joint=mean,
        baseline_sd=_sd(scores[0]),
        joint_sd=_sd(scores[1]),
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        adjusted=adjusted,
        least=least,
        verdict=verdict,
        note=note,
        relative=_relative(baseline, mean, better),
    )


def _unseen(least: float, rows: int, tasks: int) -> str:
    """The differences that are too small; without any spread, those of shares of right answers."""
    if least:
        return f"differences below {least:.3f}"
    share = min(1.0, statistics.effect_of(rows, alpha=statistics.ALPHA / tasks))
    return f"all rows say the same, and differences below {share:.3f} in the share of right answers"


def _score(side: Side) -> float:
    return float(metrics.get(side.metric, side.kind).reduce(side.stats))


def _sd(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _change(alone: Side, joint: Side) -> float | None:
    better = metrics.get(alone.metric, alone.kind).greater_is_better
    return _relative(_score(alone), _score(joint), better)


def _relative(baseline: float, joint: float, greater_is_better: bool) -> float | None:
    change = (joint - baseline) / abs(baseline) if baseline else None
    return -change if change is not None and not greater_is_better else change
