"""How each task of a joint run ships, by its scores on held-out rows.

    shared    the update and the head of the joint run
    private   those of the task's own single-task run, its baseline
    gated     (1 - g) * shared + g * private, of the updates, with the private head; g is one of GATES

A task is shared if its joint score is not below its baseline's, by however little: what ships has a row of
its own for every task in any case, so private costs nothing, and shared costs accuracy if it is wrong. Other
tasks are private, or gated if a blend is above private beyond noise (LEVEL, after Holm's correction over the
blends): the best of several looks better than it is, so doubt is for private.

Source: paired bootstrap on the same rows, tested by centring, one-sided; see mtnlp.bench.statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.bench.comparison import Side
from mtnlp.compare.verdicts import FEWEST

SHARED, PRIVATE, GATED = "shared", "private", "gated"
GATES = (0.25, 0.5, 0.75)  # shares of the private update
LEVEL = 0.05  # of the one-sided tests of blends
SLOW = 1_000  # resamples for a foreign metric: a call for each


@dataclass(frozen=True)
class Evidence:
    """One candidate beside the single-task run, on the same rows.

    candidate: as `named` says. score, difference (score minus the single-task score) and its 95 % interval
    low..high: in the unit of the metric. p: one-sided, that shared is no worse, or a blend no better, than
    the single-task run; adjusted: after Holm's correction over the blends, and p itself of shared, which it
    does not decide. least: the difference that such rows find in 4 of 5 cases at the level that the
    correction asks of the first.
    """

    candidate: str
    score: float
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    least: float


@dataclass(frozen=True)
class Choice:
    """How a task ships, and why.

    split, n: the rows that decided, and how many. single: the score of the single-task run on them. gate: the
    share of the private update, 0 = shared, 1 = private. evidence: of all other candidates that were tried.
    """

    task: str
    metric: str
    split: str
    n: int
    single: float
    gate: float
    reason: str
    evidence: tuple[Evidence, ...]

    @property
    def way(self) -> str:
        """SHARED, PRIVATE or GATED."""
        return {0.0: SHARED, 1.0: PRIVATE}.get(self.gate, GATED)


@dataclass(frozen=True)
class Final:
    """One task on its final rows: the single-task run, the joint run and what ships.

    difference: what ships minus the single-task run, with its 95 % interval low..high, which is not corrected
    for the number of tasks. below: whether all of it is on the worse side: the held-out rows did not show it.
    """

    task: str
    metric: str
    split: str
    n: int
    single: float
    joint: float
    shipped: float
    difference: float
    low: float
    high: float
    below: bool


def named(gate: float) -> str:
    """What a candidate is called: "shared", "private", or "gated 0.5"."""
    return {0.0: SHARED, 1.0: PRIVATE}.get(gate, f"{GATED} {gate:g}")


def first(
    alone: Mapping[str, Side], joint: Mapping[str, Side], splits: Mapping[str, str]
) -> dict[str, Choice]:
    """Task -> shared or private.

    Args:
        alone, joint: task -> what its single-task run, and the joint run, did on the same held-out rows.
        splits: task -> which rows these are.
    """
    return {task: _choice(side, joint[task], splits[task]) for task, side in alone.items()}


def refined(choice: Choice, alone: Side, blends: Mapping[float, Side]) -> Choice:
    """A private task, gated if a blend is better beyond noise.

    Args:
        blends: gate -> what the blend did on the same rows.
    """
    found = [_against(alone, side, named(gate), +1, len(blends)) for gate, side in blends.items()]
    adjusted = statistics.holm([evidence.p for evidence in found])
    found = [replace(evidence, adjusted=p) for evidence, p in zip(found, adjusted, strict=True)]
    sure = {
        gate: evidence
        for gate, evidence in zip(blends, found, strict=True)
        if evidence.adjusted < LEVEL and _units(alone) >= FEWEST
    }
    reason, evidence = choice.reason, (*choice.evidence, *found)
    if not sure:
        return replace(choice, reason=f"{reason}; no blend is above private beyond noise", evidence=evidence)
    best = max(sure, key=lambda gate: _sign(alone) * sure[gate].score)
    reason += f"; {named(best)} is above private beyond noise (p {sure[best].adjusted:.4f})"
    return replace(choice, gate=best, reason=reason, evidence=evidence)


def final(alone: Side, joint: Side, shipped: Side, split: str) -> Final:
    """What came of a task on its final rows."""
    metric = metrics.get(alone.metric, alone.kind)
    found = statistics.paired(
        metric, alone.stats, shipped.stats, resamples=_resamples(metric), clusters=alone.clusters
    )
    scores = [_score(side) for side in (alone, joint, shipped)]
    about = (alone.task, alone.metric, split, len(alone.stats))
    below = max(_sign(alone) * found.low, _sign(alone) * found.high) < 0
    return Final(*about, *scores, found.value, found.low, found.high, below)


def _against(alone: Side, other: Side, candidate: str, asked: int, tests: int) -> Evidence:
    """asked: +1 = whether the other is better, -1 = worse. tests: how many are corrected for."""
    assert (alone.data, alone.metric) == (other.data, other.metric)
    metric, direction = metrics.get(alone.metric, alone.kind), asked * _sign(alone)
    one, two = statistics.resampled(
        metric, [alone.stats, other.stats], resamples=_resamples(metric), clusters=alone.clusters
    )
    score = _score(other)
    value = score - _score(alone)
    nearer = direction * (two - one - value) < direction * value - 1e-12  # NaN: p is 1
    p = float((1 + (~nearer).sum()) / (1 + len(nearer)))
    low, high = np.quantile(two - one, [0.025, 0.975])
    stderr = float((two - one).std(ddof=1))
    least = statistics.minimum_detectable_effect(stderr, alpha=2 * LEVEL / tests)  # it halves for two sides
    return Evidence(candidate, score, value, float(low), float(high), p, p, least)


def _choice(alone: Side, joint: Side, split: str) -> Choice:
    """Shared or private, by what is known of shared."""
    found = _against(alone, joint, SHARED, -1, 1)
    gain = _sign(alone) * found.difference
    if gain >= 0:
        gate, reason = 0.0, "the joint run is not below the baseline"
    elif gain < 0:
        gate, reason = 1.0, f"the joint run is below the baseline by {-gain:.4f} (p {found.p:.4f})"
    else:
        gate, reason = 1.0, "the joint run has no score to set beside the baseline's"
    about = (alone.task, alone.metric, split, len(alone.stats), _score(alone))
    return Choice(*about, gate, reason, (found,))


def _score(side: Side) -> float:
    return float(metrics.get(side.metric, side.kind).reduce(side.stats))


def _sign(side: Side) -> int:
    return 1 if metrics.get(side.metric, side.kind).greater_is_better else -1


def _units(side: Side) -> int:
    """What is resampled as one: rows, or clusters of them."""
    return len(side.stats) if side.clusters is None else len(set(side.clusters))


def _resamples(metric: metrics.Metric) -> int:
    return SLOW if metric.slow else statistics.RESAMPLES
