"""Scores of a model on a split of each of its tasks, beside the score of a baseline that reads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import metrics
from mtnlp.bench import tables
from mtnlp.bench.questions import Questions
from mtnlp.errors import MtnlpError
from mtnlp.metrics.baseline import baseline

if TYPE_CHECKING:
    from mtnlp.bench.predict import Predictor


NAMED = 12  # tasks that one line names


@dataclass(frozen=True)
class TaskScore:
    """One task on one split of n rows: metric name -> value, for the model and for the baseline."""

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
        """The stated aggregate: mean over tasks of the main metric, an error (mse, mae) e as 1 / (1 + e)."""
        return sum(goodness(score.main, score.kind, score.values[score.main]) for score in self.scores) / max(
            len(self.scores), 1
        )

    def line(self, head: str, names: Mapping[str, str] | None = None) -> str:
        """One line: each task's main score and, in brackets, its baseline; `names` says what to call it."""
        parts = []
        for score in self.scores[:NAMED]:
            values = f"{score.values[score.main]:.3f} ({score.baseline[score.main]:.3f})"
            parts.append(f"{(names or {}).get(score.task, score.task)} {values}")
        more = [f"and {len(self.scores) - NAMED} more"] if len(self.scores) > NAMED else []
        return "  ".join([f"{head} (baseline)", *parts, *more, f"mean {self.mean:.3f}"])

    def as_dict(self) -> dict[str, Any]:
        return {
            "about": dict(self.about),
            "mean": self.mean,
            "scores": [asdict(score) for score in self.scores],
        }

    def save(self, path: Path | str) -> None:
        """Write the report as JSON.

        Raises:
            MtnlpError: it cannot be written there.
        """
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, "utf-8")
        except OSError as error:
            raise MtnlpError(f"{path}: the scores cannot be written there ({error.strerror}).") from None

    def print(self, console: Any = None) -> None:
        """The table on a rich console."""
        console = console or tables.console()
        if not self.scores:
            console.print("No task has validation or test rows: nothing was scored.")
            return
        numbers = ("rows", "baseline", "score")
        table = tables.table(("task", "kind", "split", "rows", "metric", "baseline", "score"), numbers)
        for score in self.scores:
            for i, (metric, value) in enumerate(score.values.items()):
                head = (score.task, score.kind, score.split, f"{score.n:,}") if i == 0 else ("", "", "", "")
                table.add_row(*head, metric, f"{score.baseline[metric]:.3f}", f"{value:.3f}")
        console.print(table)


def goodness(metric: str, kind: str, value: float) -> float:
    """`value` on a scale where more is better: an error e becomes 1 / (1 + e)."""
    return value if metrics.get(metric, kind).greater_is_better else 1 / (1 + value)


def evaluate(
    predictor: Predictor,
    questions: Mapping[int, Questions],
    train_targets: Mapping[int, Sequence[Any]],
    *,
    split: str,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Predict and score.

    Args:
        questions: task index -> labelled examples of `split`.
        train_targets: task index -> targets of training rows, from which the baselines are made.
    """
    found = predictor(questions)
    return Report(
        tuple(
            score(part, [answer["value"] for answer in found[task]], train_targets[task], split)
            for task, part in questions.items()
        ),
        about or {},
    )


def score(part: Questions, predictions: Sequence[Any], train_targets: Sequence[Any], split: str) -> TaskScore:
    """The metrics of one task, for the predictions and for its baseline."""
    spec, truth = part.spec, [example.target for example in part.examples]
    plain = baseline(spec.kind, train_targets, part.examples, spec.labels)
    both = [
        {name: float(metrics.get(name, spec.kind)(values, truth, spec.labels)) for name in spec.metrics}
        for values in (predictions, plain)
    ]
    return TaskScore(spec.name, spec.kind, split, len(truth), *both)
