"""Scores of a model on a split of each of its tasks, beside the score of a baseline that reads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtnlp import metrics
from mtnlp.bench.predict import Predictor, Questions
from mtnlp.metrics.baseline import baseline


NAMED = 12  # tasks that one line names


@dataclass(frozen=True)
class TaskScore:
    """One task on one split: metric name -> value for the model and for the majority / mean baseline; n rows."""

    task: str
    kind: str
    split: str
    n: int
    values: Mapping[str, float]
    baseline: Mapping[str, float]

    @property
    def main(self) -> str:
        """The task's first metric, the one that best-checkpoint and early stopping read."""
        return next(iter(self.values))


@dataclass(frozen=True)
class Report:
    """The table of one evaluation. `about` says what was judged: run, step, backbone, strategy, seconds."""

    scores: tuple[TaskScore, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The stated aggregate: mean over tasks of the main metric, errors (mse, mae) counted as 1 / (1 + error)."""
        return sum(goodness(score.main, score.kind, score.values[score.main]) for score in self.scores) / max(len(self.scores), 1)

    def line(self, head: str, names: Mapping[str, str] | None = None) -> str:
        """One line: each task's main score and, in brackets, its baseline. `names`: what to call the tasks."""
        parts = []
        for score in self.scores[:NAMED]:
            values = f"{score.values[score.main]:.3f} ({score.baseline[score.main]:.3f})"
            parts.append(f"{(names or {}).get(score.task, score.task)} {values}")
        more = [f"and {len(self.scores) - NAMED} more"] if len(self.scores) > NAMED else []
        return "  ".join([f"{head} (baseline)", *parts, *more, f"mean {self.mean:.3f}"])

    def as_dict(self) -> dict[str, Any]:
        return {"about": dict(self.about), "mean": self.mean, "scores": [asdict(score) for score in self.scores]}

    def save(self, path: Path | str) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")

    def print(self, console: Any = None) -> None:
        """The table on a rich console."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("task", "kind", "split", "rows", "metric", "baseline", "score"):
            table.add_column(name, justify="right" if name in ("rows", "baseline", "score") else "left", no_wrap=True)
        for score in self.scores:
            for i, (metric, value) in enumerate(score.values.items()):
                head = (score.task, score.kind, score.split, f"{score.n:,}") if i == 0 else ("", "", "", "")
                table.add_row(*head, metric, f"{score.baseline[metric]:.3f}", f"{value:.3f}")
        (console or Console()).print(table)


def goodness(metric: str, kind: str, value: float) -> float:
    """`value` on a scale where more is better: an error e becomes 1 / (1 + e)."""
    return value if metrics.get(metric, kind).greater_is_better else 1 / (1 + value)


def evaluate(predictor: Predictor, questions: Mapping[int, Questions], train_targets: Mapping[int, Sequence[Any]],
             *, split: str, about: Mapping[str, Any] | None = None) -> Report:
    """Predict and score.

    Args:
        questions: task index -> labelled examples of `split`.
        train_targets: task index -> targets of training rows, from which the baselines are made.
    """
    found = predictor(questions)
    return Report(tuple(score(part, [answer["value"] for answer in found[task]], train_targets[task], split)
                        for task, part in questions.items()), about or {})


def score(part: Questions, predictions: Sequence[Any], train_targets: Sequence[Any], split: str) -> TaskScore:
    """The metrics of one task, for the predictions and for its baseline."""
    spec, truth = part.spec, [example.target for example in part.examples]
    plain = baseline(spec.kind, train_targets, part.examples, spec.labels)
    both = [{name: float(metrics.get(name, spec.kind)(values, truth, spec.labels)) for name in spec.metrics}
            for values in (predictions, plain)]
    return TaskScore(spec.name, spec.kind, split, len(truth), *both)
