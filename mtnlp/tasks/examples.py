"""From a raw row to a checked Example: which column plays which part, and what its value means.

Errors name the field, the value found and what was expected; who reads rows puts the file and line in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any

from mtnlp.errors import DataError, did_you_mean, shown
from mtnlp.tasks.spec import UNLABELLED, Example, TaskSpec
from mtnlp.tasks.templates import render_field, variables

_MISSING = object()
LARGEST = 3e38  # what a float32 holds
_HIDDEN = "has no answer. Is this the unlabelled test split? Name only the others under `splits`"
MOST_LABELS = 1000  # more different values than this in one column are not a closed list of labels
_WHOLE = re.compile(r"(-?[0-9]{1,18})(\.0+)?")


def example(spec: TaskSpec, row: Mapping[str, Any], index: int, *, needs_target: bool = True) -> Example:
    """The row in the canonical form of its kind.

    Args:
        index: row number in its split, kept in the Example.
        needs_target: False = rows to predict: a hidden or absent answer gives target None.

    Raises:
        DataError: a field is missing or does not hold what its kind needs.
    """
    parts = spec.parts
    inputs = {name: _READ[name](name, _value(spec, row, name)) for name in parts.inputs}
    for name in parts.optional:
        value = _value(spec, row, name, optional=name not in spec.fields)
        if not _absent(value):
            inputs[name] = _READ[name](name, value)
    if spec.kind == "tag" and not inputs["tokens"]:
        raise DataError("tokens: the list is empty; a row needs at least one token.")
    value = _value(spec, row, parts.target, optional=not needs_target)
    hidden = not needs_target and _hidden(_whole(value))
    return Example(spec.name, index, inputs, None if hidden else _target(spec, inputs, value))


def demonstrations(spec: TaskSpec) -> tuple[Example, ...]:
    """The task's own solved examples, for k-shot prompts."""
    return tuple(example(spec, row, index) for index, row in enumerate(spec.demonstrations))


def read_labels(spec: TaskSpec, rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Label names as they stand in the train rows: distinct, sorted; numbers by value; tags with O first.

    Raises:
        DataError: no label at all, fractions, or so many values that this cannot be a list of labels.
    """
    name, listed = spec.parts.target, spec.kind in ("tag", "multilabel")
    if isinstance(columns := spec.fields.get(name), list | tuple):
        return tuple(map(str, columns))
    found: set[str] = set()
    for row in rows:
        value = _value(spec, row, name)
        if listed:
            found.update(_name(f"{name}[{i}]", item) for i, item in enumerate(_list(name, value)))
        elif not _absent(value):
            found.add(_name(name, value))
    if not found:
        raise DataError(
            f"{spec.name}: {name}: no label in the train rows. Name the right column in fields.{name}."
        )
    if odd := next((text for text in found if _is_fraction(text)), None):
        raise DataError(
            f"{spec.name}: {name}: {odd} is a fraction, not a label. For scores use kind: regress."
        )
    if len(found) > MOST_LABELS:
        raise DataError(
            f"{spec.name}: {name}: {len(found):,} different values are no list of labels. "
            f"Is fields.{name} the right column? For free text use kind: generate."
        )
    return tuple(sorted(found, key=lambda text: (text != "O", *_order(text, all(map(_is_whole, found))))))


def check_columns(spec: TaskSpec, columns: Sequence[str], *, needs_target: bool = True) -> list[str]:
    """What `fields` asks for and the data does not have, one sentence per problem, starting with its key."""
    problems = []
    for name in (*spec.parts.inputs, spec.parts.target, *(set(spec.parts.optional) & set(spec.fields))):
        if name == spec.parts.target and not needs_target:
            continue
        for column in sorted(_columns(spec.fields.get(name, name))):
            if column not in columns and column.split(".")[0] not in columns:
                problems.append(
                    f"fields.{name}: no column {column!r} in the data. {did_you_mean(column, columns)}"
                )
    return problems


def _columns(source: Any) -> set[str]:
    if isinstance(source, list | tuple):
        return {column for item in source for column in _columns(item)}
    return set(variables(source)) if _is_template(source) else {source}


def _is_template(source: str) -> bool:
    return "{{" in source or "{%" in source


def _value(spec: TaskSpec, row: Mapping[str, Any], name: str, *, optional: bool = False) -> Any:
    """What the row holds for a canonical field; _MISSING for an optional field without its column."""
    source = spec.fields.get(name, name)
    values = []
    for column in source if isinstance(source, list | tuple) else [source]:
        try:
            values.append(_lookup(row, name, column))
        except KeyError:
            if optional:
                return _MISSING
            raise DataError(f"{name}: no column {column!r} in the row. {did_you_mean(column, row)}") from None
    if not isinstance(source, list | tuple):
        return values[0]
    return _multi_hot(values) if name == "labels" else values


def _lookup(row: Mapping[str, Any], name: str, source: str) -> Any:
    if source in row:
        return row[source]
    if _is_template(source):
        try:
            return render_field(source, row)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    value: Any = row
    for step in source.split("."):
        several = isinstance(value, list | tuple)
        found = [_inside(item, step, f"{name}: {source!r}") for item in (value if several else [value])]
        value = found if several else found[0]
    return value


def _inside(value: Any, step: str, what: str) -> Any:
    """value[step]; nothing lies inside null."""
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"{what}: expected a mapping with {step!r}, found {_shown(value)}.")
    return None if value is None else value[step]


def _multi_hot(values: Sequence[Any]) -> list[int]:
    if odd := [value for value in values if _whole(value) not in (0, 1)]:
        raise DataError(f"labels: a column per label must hold 0 or 1, found {shown(odd[0])}.")
    return [i for i, value in enumerate(values) if _whole(value)]


def _absent(value: Any) -> bool:
    """No value: no column, null, "" or NaN (what pandas makes of null)."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        return False
    return value is _MISSING or value is None or value == "" or value != value


def _hidden(value: Any) -> bool:
    return _absent(value) or (isinstance(value, Integral | float) and value == UNLABELLED)


def _whole(value: Any) -> Any:
    """The int that 2, 2.0, "2" and "2.0" all stand for; anything else as it is."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return int(found[1]) if found else value
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and not isinstance(value, bool) else value


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise DataError(f"{name}: found half of a surrogate pair in {shown(value)}; that is no text.")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise DataError(f"{name}: expected text, found {_shown(value)}.")


def _list(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | dict) or not hasattr(value, "__len__"):
        raise DataError(f"{name}: expected a list, found {_shown(value)}.")
    return list(value)


def _texts(name: str, value: Any) -> list[str]:
    return [_text(f"{name}[{i}]", item) for i, item in enumerate(_list(name, value))]


def _choices(name: str, value: Any) -> list[str]:
    choices = _texts(name, value)
    if not choices:
        raise DataError(f"{name}: the list is empty; a question needs choices.")
    return choices


_READ: dict[str, Callable[[str, Any], Any]] = {
    "text": _text,
    "text_pair": _text,
    "question": _text,
    "context": _text,
    "choices": _choices,
    "tokens": _texts,
}


def _target(spec: TaskSpec, inputs: Mapping[str, Any], value: Any) -> Any:
    kind, name = spec.kind, spec.parts.target
    if kind in ("classify", "pair", "ordinal"):
        return _label(spec, name, value)
    if kind == "multilabel":
        if isinstance(spec.fields.get(name), list | tuple):
            return tuple(value)
        return tuple(
            sorted({_label(spec, f"{name}[{i}]", item) for i, item in enumerate(_list(name, value))})
        )
    if kind == "regress":
        return _score(spec, name, value)
    if kind == "choose":
        return _answer(name, inputs["choices"], value)
    if kind == "tag":
        tags = _list(name, value)
        if len(tags) != len(inputs["tokens"]):
            raise DataError(
                f"{name}: {len(tags)} tags for {len(inputs['tokens'])} tokens; give one per token."
            )
        return tuple(_label(spec, f"{name}[{i}]", tag) for i, tag in enumerate(tags))
    return _spans(name, inputs["context"], value) if kind == "span" else _references(name, value)


@lru_cache(maxsize=1024)
def _ids(labels: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """Name -> id, and whether the names are numbers (then a number is a name, not an id)."""
    return {label: i for i, label in enumerate(labels)}, all(map(_is_whole, labels))


def _label(spec: TaskSpec, name: str, value: Any) -> int:
    if spec.labels is None:
        raise DataError(
            f"{name}: the label names of {spec.name} are not known yet; read them from the train split."
        )
    _one(name, value)
    (ids, numbers), size, whole = _ids(spec.labels), len(spec.labels), _whole(value)
    if isinstance(value, str | bool) or (numbers and isinstance(whole, int)):
        for text in (str(value), str(whole)):
            if text in ids:
                return ids[text]
    is_id = isinstance(whole, int) and not isinstance(whole, bool) and not numbers
    if is_id and 0 <= whole < size:
        return whole
    if _hidden(whole):
        raise DataError(f"{name} {value!r}: the row {_HIDDEN}.")
    hint = did_you_mean(str(value), spec.labels)
    if is_id:
        raise DataError(f"{name} {shown(value)} is outside 0..{size - 1} ({size} labels). {hint}")
    raise DataError(f"{name} {_shown(value)} is not a label of this task. {hint}")


def _one(name: str, value: Any) -> None:
    """DataError if the value is several."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        hint = "" if "[" in name else " For several labels per row use kind: multilabel."
        raise DataError(f"{name}: expected one label, found {_shown(value)}.{hint}")


def _score(spec: TaskSpec, name: str, value: Any) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if value is None or value == "":
        raise DataError(f"{name}: the row {_HIDDEN}.")
    if not abs(score) < LARGEST:
        raise DataError(f"{name}: expected a number, found {_shown(value)}.")
    low, high = spec.score_range or (-math.inf, math.inf)
    if not low <= score <= high:
        hint = (
            f" -1 means that the row {_HIDDEN}." if score == UNLABELLED else " Mend score_range or the row."
        )
        raise DataError(f"{name}: {score:g} is outside {low:g}..{high:g}.{hint}")
    return score


def _answer(name: str, choices: Sequence[str], value: Any) -> int:
    if _hidden(value):
        raise DataError(f"{name} {value!r}: the row {_HIDDEN}.")
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        value = _place(value.strip(), value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= int(value) < len(choices):
        raise DataError(
            f"{name}: {_shown(value)} is none of the {len(choices)} choices: give the text of a choice, "
            f"a letter A-{chr(64 + min(len(choices), 26))} or an index 0..{len(choices) - 1}."
        )
    return int(value)


def _place(text: str, otherwise: str) -> int | str:
    """The index that a letter A-Z or a number stands for."""
    if len(text) == 1 and "A" <= text <= "Z":
        return ord(text) - ord("A")
    return int(text) if text.isdecimal() else otherwise


def _spans(name: str, context: str, value: Any) -> tuple[tuple[str, int], ...]:
    try:
        if isinstance(value, Mapping):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(item["text"], item["answer_start"]) for item in _list(name, value)]
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{name}: expected {{text: [...], answer_start: [...]}} of equal lengths or a list of "
            f"{{text, answer_start}}, found {_shown(value)}."
        ) from None
    for text, start in pairs:
        if not isinstance(start, Integral) or isinstance(start, bool):
            raise DataError(f"{name}: answer_start: expected a character's number, found {_shown(start)}.")
        if not isinstance(text, str) or not text or context[start : start + len(text)] != text or start < 0:
            raise DataError(
                f"{name}: {_shown(text)} does not stand at character {start} of the context, which reads "
                f"{_shown(context[max(start, 0) : max(start, 0) + len(str(text))])} there."
            )
    return tuple(dict.fromkeys((text, int(start)) for text, start in pairs))


def _references(name: str, value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str | int | float) or value is None else _list(name, value)
    texts = [_text(name, item) for item in given if item is not None]
    if not any(text.strip() for text in texts):
        raise DataError(f"{name}: the row {_HIDDEN}.")
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _name(name: str, value: Any) -> str:
    """The label's name; 2.0 and "2.0" are called 2."""
    _one(name, value)
    return value if isinstance(value, str) and "." not in value else str(_whole(value))


def _is_fraction(text: str) -> bool:
    try:
        return float(text) % 1 > 0
    except ValueError:
        return False


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _order(text: str, numbers: bool) -> tuple[float, str]:
    return (float(text), "") if numbers else (0.0, text)


def _shown(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"
