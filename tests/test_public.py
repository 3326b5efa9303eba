"""The public face: what `import mtnlp` offers, and that asking for it costs nothing heavy."""

import json
import os
import re
import subprocess
import sys

import pytest

import mtnlp

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate")
IMPORT_SECONDS, HELP_SECONDS = 0.1, 0.3  # CPU, as the project promises


def cold(code: str) -> dict:
    """Run code in a fresh interpreter; it leaves heavy modules and CPU seconds of the whole process."""
    tail = (
        "\nimport json, os, sys\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(json.dumps({'loaded': loaded, 'seconds': sum(os.times()[:2])}), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return json.loads(run.stderr.splitlines()[-1])


HELP = """
from mtnlp.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


@pytest.mark.parametrize(
    "code",
    [
        "import mtnlp",
        HELP,
        "import mtnlp; mtnlp.TaskSpec, mtnlp.Recipe, mtnlp.MtnlpError",
        "import mtnlp.config, mtnlp.tasks, mtnlp.metrics, mtnlp.samplers",
        "from mtnlp import tasks; [tasks.get(name) for name in tasks.names()]",
    ],
    ids=["import", "help", "public names", "floor 1", "all tasks"],
)
def test_nothing_heavy_is_loaded(code):
    assert cold(code)["loaded"] == []


@pytest.mark.parametrize(("code", "limit"), [("import mtnlp", IMPORT_SECONDS), (HELP, HELP_SECONDS)])
def test_start_is_quick(code, limit):
    empty = min(cold("")["seconds"] for _ in range(3))  # the interpreter and this measurement themselves

    taken = min(cold(code)["seconds"] for _ in range(3))

    print(f"{taken:.3f} s CPU, of which the interpreter {empty:.3f} s; limit {limit} s")
    assert taken - empty < limit


def test_every_public_name_is_there_and_listed():
    assert mtnlp.__all__ == sorted(mtnlp.__all__)
    assert dir(mtnlp) == sorted([*mtnlp.__all__, "__version__"])
    for name in mtnlp.__all__:
        assert getattr(mtnlp, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        mtnlp.lod  # noqa: B018


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (None, "expected a file, a name, keys and values, or a Recipe, found None"),
        (7, "expected a file, a name, keys and values, or a Recipe, found 7"),
        (
            {
                "model": {"backbone": "minilm"},
                "tasks": [{"name": "x", "kind": "classify", "source": {"train": (row for row in ())}}],
            },
            "tasks.0: source.train: expected a list of rows, found a generator; make it a list()",
        ),
    ],
    ids=["nothing", "a number", "rows of a generator"],
)
def test_a_recipe_of_another_type_is_refused_in_words(recipe, message, tmp_path):
    with pytest.raises(mtnlp.RecipeError, match=re.escape(message)):
        mtnlp.finetune(recipe, out=tmp_path / "run")


def test_the_package_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "mtnlp", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=True,
    )

    assert run.stdout == f"mtnlp {mtnlp.__version__}\n"
