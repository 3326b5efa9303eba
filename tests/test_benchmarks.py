"""The benchmarks run, and their page names each. What they measure depends on the machine: no test looks."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from pages import ROOT, command_lines

FOLDER = ROOT / "benchmarks"
HELPERS = {"_kit", "_parts", "_device", "_device_sides"}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)
MEASURING = [name for name in SCRIPTS if name not in ("startup", "tables")]
MORE = {"device": ("--device", "cpu")}
NEEDS = {  # what is not there everywhere -> whether it is here
    "adapters_batchsplit": importlib.util.find_spec("adapters") is not None,
    "options": importlib.util.find_spec("lm_eval") is not None,
    "real_tasks": (ROOT.parent / "shared" / "data" / "tasks").is_dir(),
}


def run(name: str, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_to_run_it_and_what_it_costs(name):
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text("utf-8")))

    assert f"\nRun:     python benchmarks/{name}.py" in said
    assert "\nCost:    " in said


def test_the_page_of_benchmarks_has_the_command_of_each():
    lines = command_lines(ROOT / "docs" / "benchmarks.md")

    assert {line.split()[1] for line in lines} == {f"benchmarks/{name}.py" for name in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURING)
def test_a_quick_run_ends_well_and_its_numbers_become_a_table(name, tmp_path):
    if not NEEDS.get(name, True):
        pytest.skip("what it needs is not here")
    file = tmp_path / "numbers.json"

    run(name, "--quick", "--json", str(file), *MORE.get(name, ()))

    data = json.loads(file.read_text("utf-8"))
    rows = [row for group in data["groups"].values() for row in group]
    assert data["quick"]
    assert rows
    table = run("tables", str(file))
    assert all(f"| {row['what']} | " in table for row in rows)
