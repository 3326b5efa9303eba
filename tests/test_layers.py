"""The floors of the house, read off the imports: a room imports only from lower floors."""

import ast
from pathlib import Path

import pytest

import mtnlp

PACKAGE = Path(mtnlp.__file__).parent
FLOORS = {
    "errors": 0, "registry": 0, "strict_yaml": 0, "overrides": 0, "memory": 0,
    "config": 1, "tasks": 1, "metrics": 1, "samplers": 1,
    "data": 2, "kernels": 2,
    "strategies": 3, "balancers": 3, "heads": 3,
    "models": 4,
    "train": 5, "bench": 5,
    "resolve": 6, "hub": 6, "compare": 6,
    "assemble": 7,
    "runs": 8,
    "cli": 9,
    "__init__": 10, "__main__": 10,
}  # fmt: skip
# On the ground floor files may build on each other, in this order.
GROUND = ["errors", "memory", "registry", "strict_yaml", "overrides"]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.Module) -> set[str]:
    """Rooms of mtnlp that a file imports, at its top or inside functions; type checking is exempt."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write it out"
            found.update(f"{node.module}.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    parts = [name.split(".") for name in found]
    return {name[1] if len(name) > 1 else "__init__" for name in parts if name[0] == "mtnlp"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def may_import(room: str, other: str) -> bool:
    if room == other or other == "__version__":
        return True
    if room in GROUND and other in GROUND:
        return GROUND.index(other) < GROUND.index(room)
    return FLOORS[other] < FLOORS[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} is a new room: give it a floor in this test and in docs/"
    found = imports(ast.parse(path.read_text("utf-8")))
    unknown = found - set(FLOORS) - {"__version__"}
    assert not unknown, f"imports {sorted(unknown)}, which are no rooms"

    wrong = sorted(other for other in found if not may_import(room, other))

    assert not wrong, (
        f"{room} (floor {FLOORS[room]}) imports {', '.join(f'{o} ({FLOORS[o]})' for o in wrong)}"
    )


def test_the_check_sees_lazy_imports_and_spares_type_checking():
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mtnlp.models import backbone
def f():
    import mtnlp.train.loop
    from mtnlp import data
"""

    assert imports(ast.parse(source)) == {"train", "data"}
    assert not may_import("bench", "train")
    assert not may_import("samplers", "data")
    assert may_import("assemble", "train")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text("utf-8")

    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    }

    assert len(text.splitlines()) <= 400
    assert not long
