"""docs/reference.md and docs/tour.md against the code: what a table says, the code says too."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from test_layers import FLOORS
from typer.main import get_command

import mtnlp
from mtnlp import balancers, config, heads, metrics, samplers, strategies, strict_yaml
from mtnlp.cli.main import app
from mtnlp.data import readers
from mtnlp.runs import safe
from mtnlp.runs.folder import RunFolder
from mtnlp.tasks.load import KEYS
from mtnlp.tasks.spec import KINDS, TaskSpec

ROOT = Path(mtnlp.__file__).parents[1]


def table(page: str, heading: str, first: str) -> list[dict[str, str]]:
    """The rows of the table under a heading whose first column is called `first`."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = section[section.index(f"| {first} |") :].split("\n\n")[0].strip().splitlines()
    head, _, *body = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(len(cells) == len(head) for cells in body)
    return [dict(zip(head, cells, strict=True)) for cells in body]


def coded(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def plain(value):
    """What a default looks like in YAML."""
    if isinstance(value, config.Slot):
        return value.name
    return list(value) if isinstance(value, tuple) else dict(value) if hasattr(value, "keys") else value


def fields(model, prefix="") -> dict[str, object]:
    """Dotted key -> default of every key of a recipe; ... = required."""
    found = {}
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found |= fields(field.annotation, f"{name}.")
        else:
            found[prefix + name] = ... if field.is_required() else plain(field.default)
    return found


def default(cell: str) -> object:
    if cell == "required":
        return ...
    return strict_yaml.load(coded(cell)[0], "reference.md")


def test_recipe_keys():
    said = {coded(row["key"])[0]: default(row["default"]) for row in table("reference.md", "Recipe", "key")}

    assert said == fields(config.Recipe)


@pytest.mark.parametrize("room", [strategies, samplers, balancers], ids=lambda room: room.__name__[6:])
def test_methods_and_their_options(room):
    said = {}
    for row in table("reference.md", room.__name__[6:].capitalize(), "name"):
        options = [option.partition(": ") for option in coded(row["options"])]
        said[coded(row["name"])[0]] = {
            name: strict_yaml.load(value, name) if colon else ... for name, colon, value in options
        }
    found = {}
    for name in room.names():
        method = room.get(name)
        if method.__module__.startswith("mtnlp."):  # other tests may have registered methods of their own
            found[name] = {
                option.name: ... if option.default is option.empty else option.default
                for option in inspect.signature(method).parameters.values()
            }

    assert said == found


def test_families_of_strategies():
    for row in table("reference.md", "Strategies", "name"):
        families = tuple(row["backbones"].split(", "))
        assert families == strategies.get(coded(row["name"])[0]).families


def test_task_keys():
    said = {coded(row["key"])[0]: row["default"] for row in table("reference.md", "Task keys", "key")}
    spec = TaskSpec("x", "classify", "y")

    assert list(said) == sorted(said, key=list(said).index) and set(said) == set(KEYS)
    for key, cell in said.items():
        if cell == "required" or not cell:
            assert key in ("name", "kind", "source") or key not in TaskSpec.__dataclass_fields__
        else:
            expected = [] if key == "metrics" else plain(getattr(spec, key))
            assert default(cell) == expected, key


def test_kinds():
    said = {coded(row["kind"])[0]: row for row in table("reference.md", "Kinds", "kind")}

    assert list(said) == list(KINDS)
    for name, kind in KINDS.items():
        row = said[name]
        optional = [f"[`{field}`]" for field in kind.optional]
        assert row["inputs"] == ", ".join([*(f"`{field}`" for field in kind.inputs), *optional])
        assert coded(row["answer column"]) == [kind.target]
        assert tuple(coded(row["metrics"])) == kind.metrics
        if name != "generate":
            (head,) = coded(row["head"])
            assert heads.for_kind(name) is heads.get(head)


def test_metrics():
    said = {
        coded(row["name"])[0]: (row["kinds"], row["better"])
        for row in table("reference.md", "Metrics", "name")
    }
    found = {
        name: (
            ", ".join(kind for kind in KINDS if name in metrics.names(kind)),
            "higher" if metrics.get(name).greater_is_better else "lower",
        )
        for name in metrics.names()
    }

    assert said == found


def test_commands_and_their_options():
    said = {
        coded(row["command"])[0].split()[1]: coded(row["options"])
        for row in table("reference.md", "Commands", "command")
    }
    found = {
        name: [
            max(p.opts, key=len) for p in command.params if p.param_type_name == "option" and p.name != "help"
        ]
        for name, command in get_command(app).commands.items()
    }

    assert said == found


def test_endings_of_files():
    said = [ending for row in table("reference.md", "Sources", "ending") for ending in coded(row["ending"])]

    assert sorted(said) == sorted(readers.READERS)


def test_files_of_a_run_folder():
    said = [coded(row["file"])[0] for row in table("reference.md", "Run folder", "file")]
    properties = inspect.getmembers(RunFolder, lambda item: isinstance(item, property))

    always = [item.fget(RunFolder(Path())).name for _, item in properties]
    assert sorted(said) == sorted([*always, safe.ALONE, safe.CHOSEN])


def test_environment_variables():
    rows = table("reference.md", "Environment variables", "variable")
    said = [name for row in rows for name in coded(row["variable"])]
    found = set()
    for path in (ROOT / "mtnlp").rglob("*.py"):
        found |= set(re.findall(r"environ\W(?:get\()?\W*([A-Z_]+)", path.read_text("utf-8")))

    assert sorted(said) == sorted(found)


def test_rooms_and_floors_of_the_tour():
    said = {coded(row["room"])[0]: int(row["floor"]) for row in table("tour.md", "Rooms and floors", "floor")}

    assert said == {room: floor for room, floor in FLOORS.items() if not room.startswith("__")}
