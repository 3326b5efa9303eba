"""Two processes train what one trains: through the command line, replicated and sharded, also after a resume.

The launch lines are those that docs/reference.md gives for machines without a GPU (gloo).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny_tasks
from safetensors.torch import load_file

import mtnlp
from mtnlp import strict_yaml

ROOT = Path(mtnlp.__file__).parents[1]
STEPS, HALF = 6, 3
LAUNCH = {"replicated": ["--multi_gpu"], "sharded": ["--use_fsdp", "--fsdp_version", "2"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file: twelve tasks, ten examples in a step."""
    folder = tmp_path_factory.mktemp("recipe")
    tasks = [tiny_tasks.task(name, kind) for name, kind in tiny_tasks.TWELVE.items()]
    path = tiny_tasks.backbone("minilm", folder / "backbone")
    made = tiny_tasks.recipe(
        path, tasks, steps=STEPS, examples_per_step=10, max_norm=1.0, checkpoint_every=HALF
    )
    (folder / "recipe.yaml").write_text(
        strict_yaml.dump({**made, "eval": {"every": 3, "keep": "last"}}), "utf-8"
    )
    return str(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """strategy -> folder of its run in this process; each is trained once."""
    folders: dict[str, Path] = {}

    def run(strategy: str) -> Path:
        if strategy not in folders:
            folders[strategy] = tmp_path_factory.mktemp("alone") / "run"
            mtnlp.finetune(recipe, f"model.strategy={strategy}", out=folders[strategy])
        return folders[strategy]

    return run


def launch(how: str, recipe: str, strategy: str, out: Path, *options: str) -> str:
    """`accelerate launch ... -m mtnlp finetune` on two processes; what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH[how], "--num_processes", "2"]
    line += ["--main_process_port", str(port), "-m", "mtnlp", "finetune", recipe, "--out", str(out)]
    run = subprocess.run(
        [*line, f"model.strategy={strategy}", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    assert "2 x cpu" in run.stdout
    return run.stdout


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def gaps(first: Path, second: Path) -> tuple[float, float]:
    """Largest difference of a loss and of a saved weight of two runs."""
    pairs = list(zip(records(first), records(second), strict=True))
    assert len(pairs) == STEPS
    assert all(a["losses"].keys() == b["losses"].keys() and a["tokens"] == b["tokens"] for a, b in pairs)
    one, two = (load_file(run / "model.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    loss = max(abs(a["losses"][task] - b["losses"][task]) for a, b in pairs for task in a["losses"])
    return loss, max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("how", LAUNCH)
def test_the_reference_gives_these_launch_lines(how):
    line = f"$ accelerate launch {' '.join(LAUNCH[how])} --num_processes 2 -m mtnlp finetune quickstart"

    assert line in (ROOT / "docs" / "reference.md").read_text("utf-8")


def test_ranks_draw_the_rows_of_the_plan_whatever_their_number(recipe):
    run = tiny_tasks.build(strict_yaml.read(Path(recipe)))
    for step in range(50):
        plan = run.mixture.plan(step)
        wanted = Counter((task, row) for task, rows in zip(plan.tasks, plan.rows) for row in rows.tolist())
        for world in (1, 2, 3, 16):
            batches = [
                batch for rank in range(world) for batch in run.mixture.batches(plan, rank=rank, world=world)
            ]
            drawn = Counter(
                (part.task, row) for b in batches for part in b.slices for row in part.rows.tolist()
            )
            assert drawn == wanted


@pytest.mark.parametrize(
    ("how", "strategy"),
    [
        pytest.param("replicated", "lora-per-task", marks=pytest.mark.slow),
        pytest.param("replicated", "full", marks=pytest.mark.slow),
        pytest.param("sharded", "full", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_through_the_command_line(recipe, alone, tmp_path, how, strategy):
    launch(how, recipe, strategy, tmp_path / "run")

    loss, weight = gaps(alone(strategy), tmp_path / "run")

    print(
        f"\n{strategy}, {how} on 2 processes, {STEPS} steps: losses differ by {loss:.0e} at most, "
        f"weights by {weight:.0e}"
    )
    assert loss < 1e-5 and weight < 1e-5


@pytest.mark.parametrize("how", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"])
def test_two_processes_resume_a_run_of_one(recipe, alone, tmp_path, how):
    whole, run = alone("full"), tmp_path / "run"
    cut_short(whole, run)
    assert len(records(run)) == STEPS

    said = launch(how, recipe, "full", run, "--resume")

    loss, weight = gaps(whole, run)
    print(
        f"\nfull, resumed at step {HALF} {how} on 2 processes: losses differ by {loss:.0e} at most, "
        f"weights by {weight:.0e}"
    )
    assert f"Resumed after step {HALF} of {STEPS}" in said
    assert loss < 1e-5 and weight < 1e-5


def cut_short(whole: Path, run: Path) -> None:
    """Copy a run as it would lie there had it ended between its last two checkpoints."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    for name in ("model.safetensors", "results.json"):
        (run / name).unlink()
    shutil.rmtree(run / "adapters", ignore_errors=True)
