"""One task with its rows open: labels and scales known, rows as examples, splits as token stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev

from mtnlp.data.encode import Encoder
from mtnlp.data.sources import Rows, open_rows, read_example
from mtnlp.data.store import TokenStore, tokenise
from mtnlp.errors import DataError, did_you_mean
from mtnlp.tasks.examples import check_columns, read_labels
from mtnlp.tasks.spec import Example, TaskSpec

SEEN = 20_000  # train rows that the scale of scores is read from


class TaskData:
    """A task and its splits.

    Args:
        spec: with labels resolved if its kind has labels, and the scale of scores if it is regress.
        rows: split -> rows.
    """

    def __init__(self, spec: TaskSpec, rows: Mapping[str, Rows]) -> None:
        self.spec, self._rows = spec, dict(rows)

    @classmethod
    def open(cls, spec: TaskSpec) -> TaskData:
        """Open the source, check its columns and find the labels where the spec leaves them to the data.

        Raises:
            DataError: as open_rows; columns that are missing, all together; labels wanted but no train split.
        """
        rows = open_rows(spec)
        first = next(iter(rows.values()))
        if problems := check_columns(spec, first.columns):
            raise DataError(
                "\n".join([f"{spec.name}: {first.path}:", *(f"  {problem}" for problem in problems)])
            )
        if spec.parts.labelled and spec.labels is None:
            # From all rows: those that a limit leaves out may hold labels that another split has.
            every = rows if spec.limit is None else open_rows(spec.replace(limit=None))
            spec = spec.replace(labels=_labels(spec, every))
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
    column = spec.fields.get(spec.parts.target, spec.parts.target)
    named = rows["train"].label_names.get(column) if isinstance(column, str) else None
    return tuple(named) if named else read_labels(spec, rows["train"])
