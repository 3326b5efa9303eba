"""Two processes (gloo on the CPU), replicated and sharded by FSDP2, against one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtnlp.train import checkpoint
from mtnlp.train.loop import steps

CASES = ["bank", "one row", "shared", "gram", "full", "full, one row", "full, gram", "sharded bank"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder where two ranks of tiny.py left their results."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "FSDP_VERSION": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    script = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(folder)]
    processes = [
        subprocess.Popen(
            script, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, text=True, stderr=subprocess.PIPE
        )
        for r in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_train_like_one(ranks, tiny, name, rank):
    expected, end = tiny.outcome({**tiny.PLAIN, **tiny.SHARDED}[name])

    found = json.loads((ranks / f"{name}-{rank}.json").read_text())

    assert len(found) == len(expected)
    for (losses, norm, tokens), (losses_1, norm_1, tokens_1) in zip(found, expected):
        assert losses == pytest.approx(losses_1, abs=1e-5)
        assert norm == pytest.approx(norm_1, rel=1e-4)
        assert tokens == tokens_1
    weights = load_file(ranks / f"{name}-{rank}.safetensors")
    torch.testing.assert_close(weights, end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bank", "gram", "full"])
def test_ranks_end_with_the_same_bits(ranks, name):
    first, second = (load_file(ranks / f"{name}-{rank}.safetensors") for rank in (0, 1))

    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_before_the_update(ranks):
    for rank in (0, 1):
        found = json.loads((ranks / f"nan-{rank}.json").read_text())

        assert found["message"].startswith("Step 1: the loss of topic is nan")
        assert found["same"]


def test_a_signal_to_one_rank_ends_both_after_the_same_step(ranks):
    for rank in (0, 1):
        assert json.loads((ranks / f"asked-{rank}.json").read_text()) == [3, "interrupted"]


def test_sharded_weights_resume_bit_for_bit(ranks):
    resumed, whole = (load_file(ranks / f"{name}-1.safetensors") for name in ("resumed", "full"))

    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_sharded_checkpoint_goes_on_in_one_process(ranks, tiny):
    run = tiny.make(**tiny.SHARDED["full"])
    (saved,) = checkpoint.checkpoints(ranks / "sharded")

    checkpoint.load(run, saved)
    list(steps(run))

    torch.testing.assert_close(tiny.weights(run), load_file(ranks / "full-0.safetensors"), rtol=0, atol=1e-5)
    values = [[p["value"] for p in part] for part in tiny.predictions(run)]
    for rank in (0, 1):
        found = json.loads((ranks / f"predicted-{rank}.json").read_text())
        assert [len(part) for part in found] == [len(part) for part in values]
        assert [p["value"] for p in found[0]] == pytest.approx(values[0], abs=1e-4)


def test_ranks_agree_on_which_tasks_ended_when_and_on_what_is_kept(ranks):
    one, two = (json.loads((ranks / f"ended-{rank}.json").read_text()) for rank in (0, 1))
    weights = [load_file(ranks / f"ended-{rank}.safetensors") for rank in (0, 1)]
    kept = checkpoint.read_table(ranks / "best.safetensors")

    assert one == two and one["step"] == 12
    assert one["memory"]["ended"] == {"mood": 3}  # by the scores of the first rank
    assert one["memory"]["kept"]["names"]["step"] == one["memory"]["kept"]["topic"]["step"] == 12
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert all(torch.equal(kept[name], weights[0][name]) for name in kept if "/mood" not in name)
    assert not torch.equal(kept["bank/mood"], weights[0]["bank/mood"])
