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
    """One task on one split of n rows.

    Args:
        kind: of the task; "text" where it is said how likely texts are, "retrieve" where they are searched.
        values, baseline: metric name -> value, of the model and of a guess without reading; no baseline where
            there are no training rows.
        intervals: metric name -> {"stderr", "low", "high"}, by bootstrap.
        model: which of several models (adapters) was asked; "" = the only one.
        template: the prompt, "" = the task's own. shots: solved examples in it.
        hashes: of the "task", its "template" and its "data".
        faults: what went wrong with some rows, in sentences. notes: what else to know, such as cut inputs.
        slices: axis ("words", "language", a column) -> [{"name", "n", "value", "small"}] of the main metric.
        labels: label -> {"precision", "recall", "f1", "count"}, where a task has labels.
    """

    task: str
    kind: str
    split: str
    n: int
    values: Mapping[str, float]
    baseline: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    model: str = ""
    template: str = ""
    shots: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    slices: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The task's first metric, the one that best-checkpoint and early stopping read."""
        return next(iter(self.values))


@dataclass(frozen=True)
class GroupScore:
    """The mean of a group of tasks, and its standard error. `of` names the tasks that are in it."""

    name: str
    mean: str
    value: float
    stderr: float
    of: tuple[str, ...]
    model: str = ""


@dataclass(frozen=True)
class Report:
    """The table of one evaluation.

    Args:
        about: what was judged: run, step, backbone, strategy, seconds; the suite and its version.
        groups: means over tasks, where a suite states some.
        skipped: {"task", "reason"} of tasks that could not be scored.
        spreads: {"task", "model", "mean", "sd", "worst", "best" ...} of tasks that were asked with several
            templates.
        overlap: of the suite's rows with what the model was trained on, where that was looked for.
    """

    scores: tuple[TaskScore, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[GroupScore, ...] = ()
    skipped: tuple[Mapping[str, str], ...] = ()
    spreads: tuple[Mapping[str, Any], ...] = ()
    overlap: Mapping[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether every task and every row was scored."""
        return not self.skipped and not any(score.faults for score in self.scores)

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
            **({"groups": [asdict(group) for group in self.groups]} if self.groups else {}),
            **({"skipped": [dict(item) for item in self.skipped]} if self.skipped else {}),
            **({"spreads": [dict(item) for item in self.spreads]} if self.spreads else {}),
            **({"overlap": dict(self.overlap)} if self.overlap else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `as_dict`."""
        scores = [
            TaskScore(**{**item, **{key: tuple(item[key]) for key in ("faults", "notes")}})
            for item in data["scores"]
        ]
        groups = [GroupScore(**{**item, "of": tuple(item["of"])}) for item in data.get("groups", ())]
        more = (tuple(data.get(key, ())) for key in ("skipped", "spreads"))
        return cls(tuple(scores), data["about"], tuple(groups), *more, data.get("overlap"))

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
        if self.scores:
            console.print(self._table())
        else:
            none = (
                "Nothing was scored."
                if self.skipped
                else "No task has validation or test rows: nothing was scored."
            )
            console.print(none)
        for score in self.scores:
            for note in (*score.faults, *score.notes):
                console.print(f"{_named(score)}: {note}", markup=False)
        for item in self.spreads:
            who = " ".join(filter(None, (item["task"], item["model"])))
            ends = [f"{end} {item[end]:.3f} ({item[f'{end}_template']})" for end in ("worst", "best")]
            middle = f"mean {item['mean']:.3f}, sd {item['sd']:.3f}"
            console.print(
                f"{who}: over {item['templates']} templates {middle}, {', '.join(ends)}", markup=False
            )
        for item in self.skipped:
            console.print(f"{item['task']}: not scored: {item['reason']}", markup=False)

    def _table(self) -> Any:
        several = any(score.model or score.template for score in self.scores)
        sure = any(score.intervals for score in self.scores)
        columns = ("task", *(["model"] if several else []), "kind", "split", "rows", "metric", "baseline")
        columns += ("score", *(["95 %"] if sure else []))
        table = tables.table(columns, ("rows", "baseline", "score", "95 %"))
        for score in self.scores:
            who = [" ".join(part for part in (score.model, score.template) if part)] if several else []
            for i, (metric, value) in enumerate(score.values.items()):
                head = (score.task, *who, score.kind, score.split, f"{score.n:,}") if i == 0 else ()
                head = head or ("",) * (4 + several)
                plain = f"{score.baseline[metric]:.3f}" if metric in score.baseline else ""
                between = [_between(score.intervals.get(metric))] if sure else []
                table.add_row(*head, metric, plain, f"{value:.3f}{'*' * bool(score.faults)}", *between)
        for group in self.groups:
            head = (group.name, *([group.model] if several else []), "mean", "", f"{len(group.of)} tasks")
            low, high = group.value - 1.96 * group.stderr, group.value + 1.96 * group.stderr
            between = [_between({"low": low, "high": high})] if sure else []
            table.add_row(*head, group.mean, "", f"{group.value:.3f}", *between)
        return table


def _named(score: TaskScore) -> str:
    return " ".join(part for part in (score.task, score.model, score.template) if part)


def _between(interval: Mapping[str, float] | None) -> str:
    return f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else ""


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
