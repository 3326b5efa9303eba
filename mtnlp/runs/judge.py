"""What `mtnlp eval` does: open the targets, evaluate them, compare them, and write it all down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtnlp.bench import comparison, export, page, suites
from mtnlp.bench.comparison import Comparison
from mtnlp.errors import MtnlpError
from mtnlp.metrics.text import same_text
from mtnlp.runs import harness, leaks, targets
from mtnlp.runs.harness import Evaluation, Judged
from mtnlp.runs.targets import RunTarget
from mtnlp.tasks.spec import TaskSpec

SHOWN = 3  # wrong answers of a task on the page


@dataclass(frozen=True)
class Verdict:
    """Evaluations of all targets, and the first one against each of the others."""

    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def whole(self) -> bool:
        """Whether every task and every row was scored."""
        return all(evaluation.report.whole for evaluation in self.evaluations)

    def print(self) -> None:
        for evaluation in self.evaluations:
            if len(self.evaluations) > 1:
                print(f"\n{evaluation.report.about['target']}")
            evaluation.report.print()
            if evaluation.overlap is not None:
                evaluation.overlap.print()
        for one in self.comparisons:
            one.print()


def judge(
    names: Sequence[str],
    suite: str | None = None,
    *,
    adapters: Sequence[str] = (),
    tasks: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    root: Path | None = None,
    compare: bool = False,
    overlap: bool = False,
    backbone: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Evaluate targets on a suite, or runs on their own tasks.

    Raises:
        MtnlpError: no such target, suite, task or split; nothing to compare with.
    """
    asked = None
    if suite is not None:
        asked = suites.load(suite, tasks=tasks, split=split, limit=limit, root=root)
    for name in () if asked else names:
        if not targets.may_have_tasks(name):
            raise _no_tasks(name)
    opened = [
        targets.open_target(name, adapters, backbone=backbone, trust_remote_code=trust_remote_code)
        for name in names
    ]
    for target in () if asked else opened:
        if not isinstance(target, RunTarget):
            raise _no_tasks(target.name)
    found = []
    for target in opened:
        if asked is not None:
            found.append(harness.evaluate(target, asked, progress=progress))
        else:
            found.append(harness.evaluate_own(target, tasks, split or "test", limit, progress=progress))
    if overlap:
        for target, evaluation in zip(opened, found, strict=True):
            _look(target, evaluation)
    return Verdict(tuple(found), tuple(_compared(found)) if compare else ())


def _no_tasks(name: str) -> MtnlpError:
    return MtnlpError(
        f"{name} is not a run folder, so it has no tasks of its own: name a --suite. "
        f"Known: {', '.join(suites.names())}; a YAML file or a folder of tasks will do too."
    )


def _look(target: targets.Target, evaluation: Evaluation) -> None:
    """Add to an evaluation which of its rows the target was trained on."""
    specs = {item.score.task: item.spec for item in evaluation.judged}
    evaluation.overlap = leaks.look(target, evaluation.judged, list(specs.values()))
    evaluation.report = replace(evaluation.report, overlap=evaluation.overlap.as_dict())


def _compared(found: Sequence[Evaluation]) -> list[Comparison]:
    """The first target, or adapter, against each other one."""
    sides = [
        (" ".join(filter(None, (evaluation.report.about["target"], model))), evaluation, model)
        for evaluation in found
        for model in dict.fromkeys(item.score.model for item in evaluation.judged)
    ]
    if len(sides) < 2:
        raise MtnlpError("--compare: name two targets or more, or give several adapters.")
    (first, one, own), *others = sides
    return [
        comparison.compare(
            first, comparison.sides(one.judged, own), second, comparison.sides(other.judged, model)
        )
        for second, other, model in others
    ]


def check_out(out: Path) -> None:
    """Whether results may be written there: a .json file, or a folder of their own.

    Raises:
        MtnlpError: a folder where a file belongs, or one that holds other things, such as data.
    """
    if out.suffix == ".json" and out.is_dir():
        raise MtnlpError(f"--out {out} is a folder; name a file, such as {out / 'scores.json'}.")
    if out.suffix != ".json" and out.exists() and not out.is_dir():
        raise MtnlpError(f"--out {out} is a file; name a folder, or a file that ends in .json.")
    if out.is_dir() and any(out.iterdir()) and not any(out.glob("**/results.json")):
        raise MtnlpError(f"--out {out} holds other files; name a new folder for the results.")


def save(verdict: Verdict, folder: Path) -> None:
    """results.json (also as lm_eval.json and model-index.json, in the layouts of others), comparisons.json,
    report.html, and samples/TASK.jsonl with a line per row; those of several targets in a folder each.

    Raises:
        MtnlpError: they cannot be written.
    """
    several = len(verdict.evaluations) > 1
    try:
        for i, evaluation in enumerate(verdict.evaluations):
            own = folder / f"{i + 1}-{Path(evaluation.report.about['target']).name}" if several else folder
            own.mkdir(parents=True, exist_ok=True)
            evaluation.report.save(own / "results.json")
            _write(own / "lm_eval.json", export.lm_eval(evaluation.report))
            _write(own / "model-index.json", export.model_index(evaluation.report))
            for item in evaluation.judged:
                path = own / "samples" / f"{_name(item).replace('/', '--')}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(row, ensure_ascii=False) for row in _rows(item)]
                path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            wrong = {_name(item): wrong_answers(item)[:SHOWN] for item in evaluation.judged}
            shown = verdict.comparisons if i == 0 else ()
            (own / "report.html").write_text(page.page(evaluation.report, wrong, shown), "utf-8")
        if verdict.comparisons:
            _write(folder / "comparisons.json", [one.as_dict() for one in verdict.comparisons])
    except OSError as error:
        raise MtnlpError(f"{folder}: results cannot be written there ({error.strerror}).") from None


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _name(item: Judged) -> str:
    return " ".join(part for part in (item.score.task, item.score.model, item.score.template) if part)


def _rows(item: Judged) -> list[dict[str, Any]]:
    return [
        {"row": place, "inputs": dict(example.inputs), "target": example.target, **answer}
        for place, example, answer in zip(item.places, item.examples, item.answers, strict=True)
    ]


def wrong_answers(item: Judged) -> list[dict[str, Any]]:
    """Rows that were not answered as wanted, in words; of numbers, those that are farthest off."""
    kind, rows = item.score.kind, _rows(item)
    if kind == "text":  # how likely a text is: no answer of these is wrong
        return []
    if kind == "regress":
        found = sorted(rows, key=lambda row: -abs(row["value"] - row["target"]))
    elif kind in ("span", "generate"):
        found = [row for row in rows if not same_text(row["value"], row["target"])]
    else:
        found = [row for row in rows if json.dumps(row["value"]) != json.dumps(row["target"])]
    return found if kind == "retrieve" else [_worded(item.spec, row) for row in found]


def _worded(spec: TaskSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its target and its answer in words in place of numbers of labels and choices."""

    def words(value: Any) -> Any:
        if spec.kind == "choose":
            return row["inputs"]["choices"][value]
        if spec.kind == "span" and not isinstance(value, str):  # all that is right, with their places
            return " / ".join(text for text, _ in value) or "no answer"
        if spec.kind == "generate" and not isinstance(value, str):
            return " / ".join(value)
        if spec.labels is None:
            return f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, int):
            return spec.labels[value]
        return " ".join(spec.labels[i] for i in value) or "none"

    return {**row, "target": words(row["target"]), "value": words(row["value"])}
