"""A report in the layouts of others: lm-evaluation-harness's results, and a model card's model-index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtnlp import metrics
from mtnlp.bench.evaluate import Report, TaskScore

LM_EVAL_NAMES = {"accuracy": "acc", "macro_f1": "f1", "matthews": "mcc", "exact_match": "exact_match"}
HUB_TASKS = {  # kind -> what the hub calls such a task
    "classify": "text-classification", "pair": "text-classification", "ordinal": "text-classification",
    "multilabel": "text-classification", "regress": "text-classification", "choose": "multiple-choice",
    "tag": "token-classification", "span": "question-answering", "generate": "text2text-generation",
    "retrieve": "text-retrieval", "text": "text-generation",
}  # fmt: skip


def lm_eval(report: Report) -> dict[str, Any]:
    """The layout of lm-evaluation-harness's results_*.json: `acc,none` and `acc_stderr,none` for every task.

    Metrics that are known there have its names, the others ours.
    """
    results, versions, shots, better, samples = {}, {}, {}, {}, {}
    for score in report.scores:
        name = _name(score)
        values: dict[str, Any] = {"alias": name}
        for metric, value in score.values.items():
            own = LM_EVAL_NAMES.get(metric, metric)
            values[f"{own},none"] = value
            values[f"{own}_stderr,none"] = score.intervals.get(metric, {}).get("stderr", "N/A")
            better.setdefault(name, {})[own] = _greater(metric, score.kind)
        results[name], samples[name] = values, {"original": score.n, "effective": score.n}
        versions[name] = report.about.get("suite_version", 0)
        shots[name] = score.shots
    groups = {
        group.name: {
            "alias": group.name,
            f"{group.mean},none": group.value,
            f"{group.mean}_stderr,none": group.stderr,
        }
        for group in report.groups
    }
    return {
        "results": results,
        **({"groups": groups} if groups else {}),
        "group_subtasks": {group.name: list(group.of) for group in report.groups},
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": better,
        "n-samples": samples,
        "config": {"model": str(report.about.get("target", report.about.get("run", "")))},
    }


def model_index(report: Report) -> list[dict[str, Any]]:
    """The `model-index` of a model card: one result per task, on its split, with all of its metrics."""
    name = str(report.about.get("target", report.about.get("run", "model")))
    return [{"name": name, "results": [_result(score) for score in report.scores]}]


def _result(score: TaskScore) -> Mapping[str, Any]:
    return {
        "task": {"type": HUB_TASKS.get(score.kind, score.kind), "name": _name(score)},
        "dataset": {"name": score.task, "type": score.task, "split": score.split},
        "metrics": [
            {"type": metric, "value": value, "name": metric} for metric, value in score.values.items()
        ],
    }


def _greater(metric: str, kind: str) -> bool:
    return metrics.get(metric, kind).greater_is_better


def _name(score: TaskScore) -> str:
    return " ".join(part for part in (score.task, score.model, score.template) if part)
