"""One task with its rows open: labels, scales and shots known, rows as examples, splits as token stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from mtnlp.data.encode import Encoder
from mtnlp.data.shuffle import sample
from mtnlp.data.sources import Rows, limited, open_rows, read_example, with_validation
from mtnlp.data.store import TokenStore, tokenise
from mtnlp.errors import DataError, did_you_mean
from mtnlp.tasks.examples import check_columns, demonstrations, read_labels
from mtnlp.tasks.spec import Example, TaskSpec

SEEN = 20_000  # train rows that the scale of scores is read from
OURS = ("train", "validation", "test")


class TaskData:
    """A task and its splits.

    Args:
        spec: with all that the data must tell: labels if its kind has labels, the scale of scores if it is
            regress, as many demonstrations as it shows.
        rows: split -> rows; those that were drawn as demonstrations are not in train.
    """

    def __init__(self, spec: TaskSpec, rows: Mapping[str, Rows]) -> None:
        self.spec, self._rows = spec, dict(rows)

    @classmethod
    def open(cls, spec: TaskSpec) -> TaskData:
        """Open the source, check its columns and find the labels where the spec leaves them to the data.

        Raises:
            DataError: as open_rows; columns that are missing, all together; labels or shots wanted but no
                train split, or too small a one.
        """
        every = with_validation(open_rows(spec.replace(limit=None)))
        if problems := _missing_columns(spec, every):
            raise DataError("\n".join(f"{spec.name}: {problem}" for problem in problems))
        rows = limited(every, spec.limit)
        if spec.parts.labelled and spec.labels is None:
            # From all rows: those that a limit leaves out may hold labels that another split has.
            spec = spec.replace(labels=_labels(spec, every))
        spec, rows = _with_shots(spec, rows)
        if spec.kind == "regress" and spec.score_scale is None:
            spec = spec.replace(score_scale=_scale(spec, rows))
        return cls(spec, rows)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, train, validation and test first."""
        return tuple(self._rows)

    def rows(self, split: str) -> Rows:
        """Raw rows of a split. DataError if there is none of that name."""
        if split not in self._rows:
            raise DataError(
                f"{self.spec.name}: there is no {split!r} split. {did_you_mean(split, self._rows)}"
            )
        return self._rows[split]

    def example(self, split: str, i: int, *, needs_target: bool = True) -> Example:
        """Row i of a split; errors name its file and line."""
        return read_example(self.spec, self.rows(split), i, needs_target=needs_target)

    def store(
        self,
        split: str,
        encoder: Encoder,
        cache: Path,
        *,
        template: str | None = None,
        shots: Sequence[Example] = (),
        needs_target: bool = True,
    ) -> TokenStore:
        """The split's tokens; see mtnlp.data.store.tokenise."""
        return tokenise(
            self.spec,
            self.rows(split),
            encoder,
            cache,
            template=template,
            shots=shots,
            needs_target=needs_target,
        )


def _missing_columns(spec: TaskSpec, rows: Mapping[str, Rows]) -> list[str]:
    """A sentence per column that a split lacks; what two splits lack alike is told once."""
    problems: dict[str, str] = {}
    for split in (split for split in OURS if split in rows):
        for problem in check_columns(spec, rows[split].columns):
            hidden = split != "train" and problem.startswith(f"fields.{spec.parts.target}:") and not problems
            hint = " Is it unlabelled? Name only the others under `splits`." if hidden else ""
            problems.setdefault(problem, f"{rows[split].path}: {problem}{hint}")
    return list(problems.values())


def _with_shots(spec: TaskSpec, rows: dict[str, Rows]) -> tuple[TaskSpec, dict[str, Rows]]:
    """As many demonstrations as the spec shows: those it lacks are drawn from train, and train goes without.

    Otherwise their own prompts would hold their answers.
    """
    given = len(demonstrations(spec))
    wanted = spec.shots - given
    if wanted <= 0:
        return spec, rows
    if "train" not in rows or len(rows["train"]) <= wanted:
        have = f"{len(rows['train'])} rows in train" if "train" in rows else "no train split"
        raise DataError(
            f"{spec.name}: shots is {spec.shots}, and there are {given} demonstrations and {have} to draw "
            "the rest from. Add `demonstrations`, or lower `shots`."
        )
    train = rows["train"]
    drawn = sample(len(train), wanted, f"shots {spec.name}")
    for i in drawn.tolist():
        read_example(spec, train, i)  # a bad row is told by its place
    left = np.setdiff1d(np.arange(len(train)), drawn)
    shown = tuple(train[i] for i in drawn.tolist())
    return spec.replace(demonstrations=(*spec.demonstrations, *shown)), {**rows, "train": train.take(left)}


def _scale(spec: TaskSpec, rows: Mapping[str, Rows]) -> tuple[float, float] | None:
    """Middle and half width of the range, else mean and standard deviation of (at most SEEN) train scores."""
    if spec.score_range is not None:
        low, high = spec.score_range
        return (low + high) / 2, (high - low) / 2
    if "train" not in rows:
        return None
    train = rows["train"]
    scores = [read_example(spec, train, i).target for i in range(min(SEEN, len(train)))]
    return fmean(scores), pstdev(scores) or 1.0


def _labels(spec: TaskSpec, rows: Mapping[str, Rows]) -> tuple[str, ...]:
    if "train" not in rows:
        raise DataError(
            f"{spec.name}: labels are not given and there is no train split to read them from. List them "
            "under `labels`."
        )
    column, train, at = spec.fields.get(spec.parts.target, spec.parts.target), rows["train"], 0
    if isinstance(column, str) and (named := train.label_names.get(column)):
        return tuple(named)

    def watched() -> Iterator[Mapping[str, Any]]:
        nonlocal at
        for row in train:
            yield row
            at += 1

    try:
        return read_labels(spec, watched())
    except DataError as error:  # of all rows together, or of one
        told = str(error).startswith((f"{spec.name}: ", train.path))
        raise DataError(f"{'' if told else train.where(at) + ': '}{error}") from None
