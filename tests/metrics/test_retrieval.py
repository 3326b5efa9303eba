"""Scores of rankings: a worked example, a second way to compute each, and pytrec_eval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.errors import MtnlpError

CUT = ("ndcg_1", "ndcg_5", "ndcg_10", "recall_1", "recall_10", "recall_100", "mrr_3", "mrr_10")
NAMES = (*CUT, "r_precision", "map")


def searches(seed: int, n: int = 60) -> tuple[list[tuple[str, ...]], list[dict[str, int]]]:
    """Rankings of some of 40 documents, with graded gains; some queries find nothing or want nothing."""
    rng, documents = np.random.default_rng(seed), [f"d{i}" for i in range(40)]
    rankings, gains = [], []
    for _ in range(n):
        rankings.append(tuple(rng.permutation(documents)[: rng.integers(0, 30)].tolist()))
        judged = rng.permutation(documents)[: rng.integers(1, 15)].tolist()
        gains.append(dict(zip(judged, rng.integers(-1, 4, len(judged)).tolist())))
    return rankings, gains


def by_table(name: str, ranking: tuple[str, ...], gains: dict[str, int]) -> float:
    """The score from an array of gains by rank."""
    found = np.array([max(gains.get(document, 0), 0) for document in ranking] + [0] * 100, dtype=float)
    best = np.sort(np.clip([*gains.values(), *[0] * 100], 0, None))[::-1].astype(float)
    head, _, k = name.rpartition("_")
    relevant, k = int((best > 0).sum()), int(k) if k.isdigit() else 0
    if not relevant:
        return 0.0
    if head == "ndcg":
        discounts = 1 / np.log2(np.arange(2, k + 2))
        return float(found[:k] @ discounts / (best[:k] @ discounts))
    hits = found > 0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    if head == "recall":
        return float(hits[:k].sum() / relevant)
    if head == "mrr":
        return float(1 / (1 + hits[:k].argmax())) if hits[:k].any() else 0.0
    return (
        float(precision[relevant - 1]) if name == "r_precision" else float(precision[hits].sum() / relevant)
    )


def test_a_worked_example():
    ranking, gains = ("x", "b", "y", "a"), {"a": 3, "b": 1, "c": 2, "y": 0}
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "ndcg_10": (1 / math.log2(3) + 3 / math.log2(5)) / best,
        "recall_10": 2 / 3,
        "recall_2": 1 / 3,
        "mrr_10": 1 / 2,
        "mrr_1": 0.0,
        "r_precision": 1 / 3,
        "map": (1 / 2 + 2 / 4) / 3,
    }

    for name, value in expected.items():
        assert metrics.get(name, "retrieve")([ranking], [gains]) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_second_way_to_compute_them(name):
    rankings, gains = searches(0)

    ours = metrics.get(name, "retrieve").stats(rankings, gains, None)[:, 0]

    assert ours == pytest.approx([by_table(name, *pair) for pair in zip(rankings, gains)], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_pytrec_eval(name):
    pytrec = pytest.importorskip("pytrec_eval")
    rankings, gains = searches(1)
    some = [i for i, (ranking, own) in enumerate(zip(rankings, gains)) if ranking and max(own.values()) > 0]
    head, _, k = name.rpartition("_")
    measure = {
        "ndcg": f"ndcg_cut_{k}",
        "recall": f"recall_{k}",
        "mrr": "recip_rank",
        "r": "Rprec",
        "": "map",
    }[head]
    most = int(k) if head == "mrr" else None  # its reciprocal rank has no limit

    ours = metrics.get(name, "retrieve")([rankings[i] for i in some], [gains[i] for i in some])

    runs = {str(i): {d: -float(r) for r, d in enumerate(rankings[i][:most])} for i in some}
    found = pytrec.RelevanceEvaluator({str(i): gains[i] for i in some}, {measure}).evaluate(runs)
    assert ours == pytest.approx(np.mean([own[measure] for own in found.values()]), abs=1e-9)


def test_any_number_of_ranks_has_its_scores():
    assert metrics.get("recall_7", "retrieve").name == "recall_7"
    for name in ("recall_0", "recall_x", "map_10", "ndcg_05"):
        with pytest.raises(MtnlpError, match="No metric is called"):
            metrics.get(name, "retrieve")
    with pytest.raises(MtnlpError, match="recall_7 does not score classify tasks"):
        metrics.get("recall_7", "classify")


def test_mistakes_are_named():
    ndcg = metrics.get("ndcg_10", "retrieve")
    with pytest.raises(MtnlpError, match="Query 1: the document 'a' is ranked twice"):
        ndcg([("a",), ("a", "b", "a")], [{"a": 1}] * 2)
    with pytest.raises(MtnlpError, match=r"Query 0: expected ranked document ids .* got 'abc'"):
        ndcg(["abc"], [{"a": 1}])
    with pytest.raises(MtnlpError, match=r"Query 0: .* and \('a',\)"):
        ndcg([("a",)], [("a",)])
