"""`key=value` texts from a command line, laid over the nested data of a recipe.

Keys are dotted paths (`train.lr=1e-4`, `tasks.0=glue/rte`), values are YAML, only the first "=" separates. A
slot is a place that holds a method by name: setting its `name` drops the options that stood there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtnlp import strict_yaml
from mtnlp.errors import MtnlpError, shown

Place = tuple[str, ...]


def apply(
    data: dict[str, Any], overrides: Iterable[str], slots: Mapping[Place, str]
) -> tuple[set[Place], list[str]]:
    """Edit `data` in place.

    Args:
        overrides: key=value texts; of two with the same key the later one counts.
        slots: place of every slot -> the name that stands there when the data names none.

    Returns:
        The places that were set to something other than null, and a sentence per override that has no use.
    """
    given, problems = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        place = tuple(key.strip().split("."))
        if not equals or not all(place):
            problems.append(f"{shown(text)}: an override is key=value, as in train.lr=1e-4.")
            continue
        try:
            given.append((place, strict_yaml.load(value, key.strip())))
        except MtnlpError as error:
            problems.append(str(error))
    # Names of slots first, whatever the order given: they drop the file's options, not those given with them.
    given.sort(key=lambda item: not (item[0][-1] == "name" and item[0][:-1] in slots))
    for place, value in given:
        try:
            _set(data, place, value, slots)
        except MtnlpError as error:
            problems.append(f"{'.'.join(place)}: {error}")
    return {place for place, value in given if value is not None}, problems


def _set(data: Any, place: Place, value: Any, slots: Mapping[Place, str]) -> None:
    for depth, part in enumerate(place):
        here, rest = place[: depth + 1], place[depth + 1 :]
        key = _position(data, part) if isinstance(data, list) else part
        if not rest or (here in slots and rest == ("name",)):
            data[key] = value
            return
        if here in slots and not isinstance(data.get(key), dict):
            data[key] = {"name": data.get(key) or slots[here]}
        if isinstance(data, dict) and data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, (dict, list)):
            raise MtnlpError(f"{'.'.join(here)} is {shown(data)}, which has no keys of its own.")


def _position(items: list, part: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise MtnlpError(f"expected a position from 0 to {len(items) - 1}, got {shown(part)}.")
    return int(part)
