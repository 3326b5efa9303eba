"""What `mtnlp report` does: all that is known of a finished run, gathered and written as one HTML page.

results.json, ledger.json, metrics.jsonl,    as the run has left them
versions.json
the rows of its tasks                        asked again, or rather read from the kept answers: intervals,
                                             wrong answers, and which of them stand in train
compare.json, affinity.json                  of `mtnlp compare` and `mtnlp affinity`, where there are some
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtnlp.bench import ranks
from mtnlp.bench.evaluate import Report, TaskScore
from mtnlp.bench.overlap import Overlap
from mtnlp.bench.suites import Entry, Suite
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.runs import beside, harness, leaks, saved, sections, trained, versions
from mtnlp.runs.folder import RunFolder, mark_of
from mtnlp.runs.harness import Judged
from mtnlp.runs.targets import RunTarget
from mtnlp.runs.trained import Trained
from mtnlp.train import ledger
from mtnlp.train.ledger import Entry as Drawn

DIFFERENT = 5e-4  # between a score and the same one asked again: what three decimals show


@dataclass(frozen=True)
class Found:
    """All that the page shows of a run.

    Args:
        scores: with intervals where the rows could be asked. judged: what they were made of, row by row.
        steps, evals, conflicts: lines of metrics.jsonl. versions: what it was trained with. drawn: the
            ledger; empty where the run kept none.
        leaks: None where no rows are at hand. compare, affinity: HTML, of files of that name that are there.
        notes: what else to know, in sentences.
    """

    run: Trained
    about: Mapping[str, Any]
    scores: tuple[TaskScore, ...]
    judged: Sequence[Judged]
    steps: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]
    conflicts: Sequence[Mapping[str, Any]]
    versions: Sequence[Mapping[str, Any]]
    drawn: Sequence[Drawn]
    leaks: Overlap | None
    compare: Sequence[str]
    affinity: Sequence[str]
    notes: tuple[str, ...]


def write(
    run: Path | str,
    out: Path | None = None,
    *,
    split: str | None = None,
    compare: Path | None = None,
    affinity: Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """The page of a run, written to `out` (default: report.html in its folder).

    Args:
        split: score these rows in place of those that the run ended with.
        compare, affinity: folders of `mtnlp compare` and `mtnlp affinity`; default: the run's own.
        progress: told what is being done.

    Raises:
        MtnlpError: no finished run, a damaged file in it, a split that no task has, a folder without the file
            that it was named for, or a place that cannot be written.
    """
    found = trained.finished(Path(run).expanduser())
    folder = RunFolder(found.where)
    place = Path(out or folder.report)
    if place.is_dir():
        raise MtnlpError(f"--out {place} is a folder; name a file, such as {place / folder.report.name}.")
    with _writing(place):  # told before a model answers rows
        place.parent.mkdir(parents=True, exist_ok=True)
    gathered = gather(
        found,
        split=split,
        compare=compare,
        affinity=affinity,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    # A text of a row may hold half a character, which no file can.
    page = sections.page(gathered).encode("utf-8", "replace")
    if ranks.rank() == 0:
        with _writing(place):
            place.write_bytes(page)
    return place


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MtnlpError(f"--out {place}: it cannot be written there ({error.strerror}).") from None


def gather(
    found: Trained,
    *,
    split: str | None = None,
    compare: Path | None = None,
    affinity: Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Found:
    """Read and score; see `write`."""
    folder = RunFolder(found.where)
    lines, lacking = _metrics(folder.metrics)
    drawn, made = _drawn(folder.ledger), versions.read(folder.versions)
    own = {spec.name for spec in found.specs}
    compared = beside.compare(_beside(folder.path, "compare", compare), own)
    related = beside.affinity(_beside(folder.path, "affinity", affinity), own)
    results = _results(folder.results)
    opened, gone = _opened(found)
    splits = {score.task: split or score.split for score in results.scores}
    if split is not None:
        splits = {name: split for name, data in opened.items() if split in data.splits}
    if split is not None and not splits:
        known = dict.fromkeys(name for data in opened.values() for name in data.splits)
        raise MtnlpError(
            f"--split: no task of {found.name} has {split} rows at hand. Known: {', '.join(known)}."
        )
    if split is None:
        gone |= _changed(folder, opened, splits)
    else:
        gone |= {name: f"it has no {split} rows." for name in opened if name not in splits}
    target = RunTarget(found, trust_remote_code=trust_remote_code)
    judged, failed = _asked(target, opened, {t: s for t, s in splits.items() if t not in gone}, progress)
    gone |= failed
    scores, notes = (tuple(item.score for item in judged), []) if split else _with_intervals(results, judged)
    progress("looking for rows that stand in train")
    return Found(
        found,
        results.about,
        scores,
        judged,
        *([line for line in lines if line["kind"] == kind] for kind in ("step", "eval", "conflicts")),
        made,
        drawn,
        leaks.own(list(opened.values())) if opened else None,
        compared,
        related,
        (*lacking, *_reasons(gone), *notes),
    )


# Files.


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MtnlpError(f"{path}: damaged ({error}). Restore it, or make it again.") from None


def _results(path: Path) -> Report:
    try:
        return Report.from_dict(_read(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise MtnlpError(f"{path}: damaged ({error}). Restore the file, or train again.") from None


def _metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of metrics.jsonl; none, and a sentence, if it is gone."""
    if not path.exists():
        return [], [f"{path.name} is not in the folder, so nothing is known over steps."]
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            found.append(json.loads(line))
            found[-1]["kind"], found[-1]["step"]
        except (ValueError, KeyError, TypeError):
            raise MtnlpError(
                f"{path}:{number}: not a line of metrics. Restore the file, or remove it."
            ) from None
    return found, []


def _drawn(path: Path) -> list[Drawn]:
    if not path.exists():
        return []
    try:
        return ledger.read(path)
    except (ValueError, TypeError, KeyError) as error:
        raise MtnlpError(f"{path}: damaged ({error}). Restore the file, or remove it.") from None


def _beside(run: Path, name: str, given: Path | None) -> Mapping[str, Any] | None:
    """What `mtnlp <name>` found, from the folder that was given or else the run's."""
    path = (given or run) / f"{name}.json"
    if path.exists():
        return _read(path)
    if given is not None:
        raise MtnlpError(
            f"--{name} {given}: there is no {path.name}. Name a folder that `mtnlp {name}` wrote."
        )
    return None


# Rows.


def _opened(found: Trained) -> tuple[dict[str, TaskData], dict[str, str]]:
    """The tasks whose rows are at hand, and why the others' are not."""
    opened, gone = {}, {}
    for spec in found.specs:
        try:
            opened[spec.name] = saved.open_task(spec, found.recipe)
        except MtnlpError as error:
            gone[spec.name] = _without(spec.name, error)
    return opened, gone


def _changed(folder: RunFolder, opened: Mapping[str, TaskData], splits: Mapping[str, str]) -> dict[str, str]:
    """Tasks whose scored rows are others than when the run began; of early runs nobody knows."""
    marks, gone = folder.read_marks(), {}
    for name, split in splits.items():
        was = marks.get(name, {}).get(split)
        if name not in opened or was is None:
            continue
        rows = opened[name].rows(split) if split in opened[name].splits else None
        if rows is None or mark_of(rows) != was:
            gone[name] = f"its {split} rows have changed since the run began."
    return gone


def _asked(
    target: RunTarget,
    opened: Mapping[str, TaskData],
    splits: Mapping[str, str],
    progress: Callable[[str], None],
) -> tuple[list[Judged], dict[str, str]]:
    """The tasks scored row by row, and why others could not be."""
    entries = tuple(
        Entry(opened[name].spec, split, opened[name].spec.metrics[0])
        for name, split in splits.items()
        if name in opened
    )
    suite = Suite("own tasks", 1, "", entries, (), target.found.where)
    evaluation = harness.evaluate(target, suite, opened=opened, progress=progress)
    failed = {item["task"]: _without(item["task"], item["reason"]) for item in evaluation.report.skipped}
    return evaluation.judged, failed


def _with_intervals(results: Report, judged: Sequence[Judged]) -> tuple[tuple[TaskScore, ...], list[str]]:
    """The scores that the run ended with, with the intervals of the same rows asked again."""
    again, scores, notes = {item.score.task: item.score for item in judged}, [], []
    for score in results.scores:
        new = again.get(score.task)
        if new is None:
            scores.append(score)
            continue
        scores.append(replace(score, intervals=new.intervals, faults=new.faults, notes=new.notes))
        other = new.values.get(score.main)
        if other is not None and abs(other - score.values[score.main]) > DIFFERENT:
            notes.append(
                f"{score.task}: asked again, {score.main} is {other:.4f} and not "
                f"{score.values[score.main]:.4f}: another machine, or other versions. The interval is of "
                "the new answers."
            )
    return tuple(scores), notes


def _without(name: str, error: Any) -> str:
    return str(error).removeprefix(f"{name}: ")


def _reasons(gone: Mapping[str, str]) -> list[str]:
    """A sentence per reason why tasks have no intervals."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in gone.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"No intervals and no wrong answers of {', '.join(names)}: {reason}"
        for reason, names in by_reason.items()
    ]
