"""Metrics of Hugging Face's library `evaluate`: `evaluate:PATH_OR_ID`, and `#KEY` if it gives several values.

    evaluate:./metrics/wer        a folder (or the .py file in it) with the metric's script; needs no network
    evaluate:rouge#rougeL         the value "rougeL" of an id on the hub, or of the cache of an earlier load

The script is code of others and runs here with all rights. Such a metric has no statistics of single
examples: a row of `stats` is the number under which the example is kept in this process, and `reduce` asks
the script about the examples of its rows. So a bootstrap works, but calls the script once per resample; ask
for few resamples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mtnlp.errors import MtnlpError, shown
from mtnlp.metrics.base import Metric
from mtnlp.metrics.baseline import BASELINES

HEAD = "evaluate:"
LOWER = ("brier_score", "cer", "character", "mae", "mape", "mase", "mse", "perplexity", "smape", "ter", "wer")


@cache  # one metric per name, since its statistics mean something to it alone
def load(name: str) -> Metric:
    """The metric of a name `evaluate:PATH_OR_ID#KEY`, for any kind of task whose values it can read.

    Of whether greater is better a script says nothing: it is, but for errors of well-known names (wer, mse).
    Ids become names of labels where the script wants texts, and a list of one reference a text where it wants
    one text.

    Raises:
        MtnlpError: `evaluate`, or a library that the script needs, is not installed; no such path; an id that
            cannot be loaded.
    """
    place, _, key = name.removeprefix(HEAD).partition("#")
    kept = Kept(name, _module(name, place), key)
    return Metric(
        name,
        kept.stats,
        kept.reduce,
        tuple(BASELINES),
        greater_is_better=not {key, Path(place).stem} & set(LOWER),
        additive=False,
    )


def _module(name: str, place: str) -> Any:
    path = os.path.expanduser(place)
    if place.startswith((".", "/", "~")) or place.endswith(".py"):
        script = path if path.endswith(".py") else os.path.join(path, f"{Path(path).resolve().name}.py")
        if not os.path.isfile(script):
            raise MtnlpError(
                f"{name}: there is no file {script}. Give the folder or file of the metric's script."
            )
        path = script
    try:
        import evaluate
    except ImportError:
        raise MtnlpError(f"{name} needs the library evaluate: pip install evaluate") from None
    try:
        return evaluate.load(path)
    except Exception as error:  # the script runs here: anything may happen in it
        hint = "" if os.path.exists(path) else " Without a network, give a path: evaluate:./folder"
        raise MtnlpError(f"{name} cannot be loaded: {_line(error)}{hint}") from None


def _line(error: Exception) -> str:
    """What went wrong, in one line that ends with a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


class Kept:
    """Examples of one metric of `evaluate`, by the numbers that its statistics hold.

    Args:
        name: of the metric; module: what evaluate.load gave; key: which of its values, "" = its only one.
    """

    def __init__(self, name: str, module: Any, key: str) -> None:
        self.name, self.module, self.key = name, module, key
        self._numbers: dict[str, int] = {}  # equal examples are one
        self._examples: list[tuple[Any, Any]] = []

    def stats(
        self, predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str] | None
    ) -> np.ndarray:
        """(N, 1) numbers under which the examples are kept."""
        numbers = np.empty((len(references), 1))
        for row, pair in enumerate(zip(predictions, references, strict=True)):
            number = self._numbers.setdefault(repr((pair, labels)), len(self._examples))
            if number == len(self._examples):
                self._examples.append(self._read(*pair, labels))
            numbers[row] = number
        return numbers

    def reduce(self, stats: np.ndarray) -> float:
        """What the script says of the examples of these rows.

        Raises:
            MtnlpError: it fails, or gives no number, or several without a key that says which.
        """
        said, wanted = zip(*(self._examples[int(number)] for number in stats[:, 0]), strict=True)
        try:
            found = self.module.compute(predictions=list(said), references=list(wanted))
        except Exception as error:  # as above
            raise MtnlpError(f"{self.name} failed: {_line(error)}") from None
        return self._value(found or {})

    def _value(self, found: Mapping[str, Any]) -> float:
        numbers = {
            key: float(value) for key, value in found.items() if np.ndim(value) == 0 and _is_number(value)
        }
        if self.key in numbers:
            return numbers[self.key]
        if not self.key and len(numbers) == 1:
            return next(iter(numbers.values()))
        plain = self.name.partition("#")[0]
        raise MtnlpError(
            f"{self.name}: its values are {', '.join(numbers) or 'no numbers'}; say which, as in "
            f"{plain}#{next(iter(numbers), 'KEY')}."
        )

    def _read(self, prediction: Any, reference: Any, labels: Sequence[str] | None) -> tuple[Any, Any]:
        """One example as the script wants it; see `load`."""
        options = self.module.features if isinstance(self.module.features, list) else [self.module.features]
        said = _fitted(prediction, [option["predictions"] for option in options], labels, self.name)
        return said, _fitted(reference, [option["references"] for option in options], labels, self.name)


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"


def _fitted(value: Any, features: Sequence[Any], labels: Sequence[str] | None, name: str) -> Any:
    """A value for the first of `features` (as `datasets` describes columns) that it fits."""
    wants_text = all("string" in repr(feature) for feature in features)
    one_text = all(getattr(feature, "dtype", None) == "string" for feature in features)
    if not _is_texts(value):
        return _plain(value, labels if wants_text else None)
    found = [one if isinstance(one, str) else one[0] for one in value]  # of spans only the text
    if one_text and len(found) > 1:
        raise MtnlpError(f"{name} reads one reference per example; found {len(found)}: {shown(found)}.")
    return "".join(found) if one_text else found


def _is_texts(value: Any) -> bool:
    """Whether this is the target of a generate or span task (maybe empty), and no ids."""
    return isinstance(value, (tuple, list)) and all(isinstance(one, (str, tuple, list)) for one in value)


def _plain(value: Any, labels: Sequence[str] | None) -> Any:
    """Lists in place of tuples; names in place of ids where there are labels."""
    if isinstance(value, (tuple, list)):
        return [_plain(one, labels) for one in value]
    return value if labels is None or isinstance(value, str) else labels[value]
