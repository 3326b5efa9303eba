"""Name -> object, without a list to keep: a room's file `lora_per_task.py` is the name `lora-per-task`.

A room is a package. Its names are the stems of its files (underscores read as hyphens; `base.py` and `_*.py`
hold no name), the entry points of the group named like the package (`mtnlp.balancers`), and what `register`
added at run time. Listing imports nothing; asking for a name imports only its file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from mtnlp.errors import MtnlpError, did_you_mean, shown

T = TypeVar("T")


class Registry:
    """The names of one room.

    Args:
        room: dotted name of the package, which is also the entry-point group.
        noun: what one entry is called in messages ("sampler").
    """

    def __init__(self, room: str, noun: str) -> None:
        self.room = room
        self.noun = noun
        self._added: dict[str, Any] = {}

    def names(self) -> list[str]:
        """All names, sorted, without importing any of them."""
        return sorted({*self._files(), *self._plugins(), *self._added})

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make `name` mean the decorated object.

        Raises:
            MtnlpError: the name is taken by another object; the message says where that one stands.
        """

        def add(item: T) -> T:
            old = self._added.get(name)
            if old is not None and _place(old) != _place(item):
                raise MtnlpError(
                    f"The {self.noun} {name!r} is registered twice: {_place(old)} and {_place(item)}."
                )
            self._added[name] = item
            return item

        return add

    def get(self, name: str) -> Any:
        """The object called `name`; imports its file when it is first asked for.

        Raises:
            MtnlpError: no such name, with the nearest ones.
        """
        if name not in self._added:
            if name in self._files():
                importlib.import_module(f"{self.room}.{name.replace('-', '_')}")
            elif name in (plugins := self._plugins()):
                self._added[name] = plugins[name].load()
        if name not in self._added:
            raise MtnlpError(f"No {self.noun} is called {shown(name)}. {did_you_mean(name, self.names())}")
        return self._added[name]

    def summary(self, name: str) -> str:
        """First line of the entry's docstring, read from its file without importing it."""
        path = self._files().get(name)
        module = ast.parse(path.read_text("utf-8")) if path else None
        doc = ast.get_docstring(module) if module else inspect.getdoc(self.get(name))
        return (doc or "").strip().split("\n")[0]

    def _files(self) -> dict[str, Path]:
        spec = importlib.util.find_spec(self.room)
        folder = Path(next(iter(spec.submodule_search_locations)))
        files = (path for path in folder.glob("*.py") if path.stem != "base" and path.stem[0] != "_")
        return {path.stem.replace("_", "-"): path for path in files}

    def _plugins(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=self.room)}


def _place(item: Any) -> str:
    try:
        return f"{inspect.getsourcefile(item)}:{inspect.getsourcelines(item)[1]}"
    except (TypeError, OSError):
        return repr(item)
