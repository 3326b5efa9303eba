"""Save and resume: bit for bit, or a sentence that says why not."""

from __future__ import annotations

import json
import os

import pytest
import torch

from mtnlp.errors import MtnlpError
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._lora import zeros
from mtnlp.train import checkpoint
from mtnlp.train.loop import steps

PAIRS = [("lora-per-task", "equal"), ("lora", "pcgrad"), ("full", "uncertainty"), ("mixlora", "equal")]


def everything(tiny, run):
    state = {f"optimizer/{name}": tensor for name, tensor in run.optimizer.state().items()}
    return {**tiny.weights(run), **state}


@pytest.mark.parametrize(("strategy", "balancer"), PAIRS)
def test_a_resumed_run_ends_with_the_same_bits(tiny, tmp_path, strategy, balancer):
    options = {"strategy": strategy, "balancer": balancer, "total": 9, "dropout": 0.1}
    whole = tiny.make(**options)
    losses = [r.losses for r in steps(whole)]
    found = []

    for stop in (2, 5, 9):  # three sittings; the second one starts in the middle of every task's epoch
        run = tiny.make(**options)
        if saved := checkpoint.checkpoints(tmp_path):
            checkpoint.load(run, saved[-1])
        while run.step < stop:
            found.append(next(steps(run)).losses)
        run.memory["best"] = {"step": stop}
        checkpoint.save(run, tmp_path)

    assert found == losses
    expected = everything(tiny, whole)
    resumed = everything(tiny, run)
    assert resumed.keys() == expected.keys()
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    again = tiny.make(**options)
    checkpoint.load(again, checkpoint.checkpoints(tmp_path)[-1])
    assert list(steps(again)) == []
    assert again.memory == {"best": {"step": 9}}


def test_a_save_that_was_cut_short_is_not_seen_and_replaced(tiny, tmp_path):
    run = tiny.make()
    next(steps(run))
    torn = tmp_path / "step-00000001.part"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")

    assert checkpoint.checkpoints(tmp_path) == []
    saved = checkpoint.save(run, tmp_path)

    assert checkpoint.checkpoints(tmp_path) == [saved]
    assert not torn.exists()
    assert sorted(p.suffix for p in saved.iterdir()) == [".json", *[".safetensors"] * 3]


def test_a_removal_that_was_cut_short_leaves_only_whole_checkpoints(tiny, tmp_path, monkeypatch):
    run, unlink = tiny.make(), os.unlink

    def interrupted(path, **where):
        unlink(path, **where)
        raise KeyboardInterrupt

    for record in steps(run):
        if record.step < 4:
            checkpoint.save(run, tmp_path, keep=2 if record.step < 3 else None)
    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(run, tmp_path, keep=2)
    monkeypatch.undo()

    for path in checkpoint.checkpoints(tmp_path):
        checkpoint.load(tiny.make(), path)
    run.step += 1
    checkpoint.save(run, tmp_path, keep=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_are_removed_and_order_is_by_number(tiny, tmp_path):
    run = tiny.make(total=12)
    for _ in steps(run):
        checkpoint.save(run, tmp_path, keep=2)

    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000011", "step-00000012"]


def test_holds_what_is_trained_and_nothing_else(tiny, tmp_path):
    run = tiny.make()
    list(steps(run))

    saved = checkpoint.save(run, tmp_path)

    trained = sum(t.numel() * t.element_size() for t in run.model.trainable_state().values())
    size = sum(p.stat().st_size for p in saved.iterdir())
    assert size <= 3.2 * trained + 20_000  # weights and two moments, and names
    assert json.loads((saved / "state.json").read_text())["tasks"] == list(run.tasks)


def test_weights_alone_round_trip(tiny, tmp_path):
    run = tiny.make(strategy="full")
    list(steps(run))
    checkpoint.save_weights(run, tmp_path / "best" / "weights.safetensors")
    other = tiny.make(strategy="full")

    checkpoint.load_weights(other, checkpoint.read_table(tmp_path / "best" / "weights.safetensors"))

    torch.testing.assert_close(tiny.weights(other), tiny.weights(run), rtol=0, atol=0)


@pytest.fixture
def saved(tiny, tmp_path):
    run = tiny.make()
    next(steps(run))
    return checkpoint.save(run, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("topic", "mood")}, "saved with tasks .* but this run has"),
        ({"seed": 5}, "saved with seed 3, but this run has 5"),
        ({"strategy": "lora"}, "do not fit this model"),
        ({"balancer": "uncertainty"}, "saved with another balancer"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(tiny, saved, changes, message):
    with pytest.raises(MtnlpError, match=message):
        checkpoint.load(tiny.make(**changes), saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["short", "gone"])
def test_damage_is_named(tiny, saved, name, damage):
    content = (saved / name).read_bytes()
    (saved / name).unlink()
    if damage == "short":
        (saved / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(MtnlpError, match=name):
        checkpoint.load(tiny.make(), saved)


@pytest.mark.parametrize("saved_as", ["nothing", "another"])
def test_rows_that_are_laid_out_otherwise_are_refused(tiny, saved, saved_as):
    run, path = tiny.make(), saved / "weights.safetensors"
    table = checkpoint.read_table(path, run.model.row_layout)
    checkpoint.write_table(path, table, "" if saved_as == "nothing" else "0123456789abcdef")

    with pytest.raises(MtnlpError, match=r"weights\.safetensors: .* laid out otherwise .* or train again"):
        checkpoint.load(run, saved)


def test_the_layout_of_a_row_is_its_pieces_in_their_order():
    def layout(*pieces):
        bank = Bank()
        for name, shape in pieces:
            bank.add(name, shape, zeros)
        return bank.fingerprint

    a, b = ("a.down", (2, 3)), ("b.down", (2, 3))
    assert layout(a, b) == layout(a, b)
    assert len({layout(a, b), layout(b, a), layout(a), layout(("a.down", (3, 2)), b)}) == 4
