"""A run that does not fit into memory is told so before a row is tokenised or a file is written."""

from __future__ import annotations

import pytest
import tiny_tasks

import mtnlp
from mtnlp import assemble, memory, strategies
from mtnlp.errors import MtnlpError
from mtnlp.resolve import resolve
from mtnlp.runs import room
from mtnlp.runs.check import check
from mtnlp.train.loop import steps


@pytest.fixture
def recipe(tmp_path):
    def make(strategy, tasks=3):
        made = [tiny_tasks.task(f"t{i}", "classify", rows=4) for i in range(tasks)]
        return tiny_tasks.recipe(tiny_tasks.backbone("minilm", tmp_path / "net"), made, strategy=strategy)

    return make


@pytest.fixture
def limit(monkeypatch):
    """limit(n): so many bytes are free."""
    return lambda size: monkeypatch.setattr(memory, "free", lambda device="cpu": size)


def told(action):
    with pytest.raises(MtnlpError) as error:
        action()
    return str(error.value)


def test_more_tasks_than_memory_are_told_by_finetune_and_check_alike(recipe, limit, tmp_path, monkeypatch):
    made = recipe("lora-per-task")
    model = tiny_tasks.build(made).model
    parts, counts = room.needed(resolve(made).recipe, model), assemble.parameter_counts(model)
    added, rows = parts["gradients and moments"], model.strategy.bank.rows
    heads = counts.own - rows.numel()
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "fits"))
    limit(added)  # the weights are there already
    mtnlp.finetune(made, out=tmp_path / "run", dry_run=True)
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))

    limit(added - 1)
    trained = told(lambda: mtnlp.finetune(made, out=tmp_path / "run"))
    limit(parts["weights"] + added - rows.nbytes - 4 * heads - 1)  # no weights of the network are there
    checked = told(lambda: check(made))

    need = memory.shown(4 * (5 * rows.numel() + 4 * heads))  # all 3 tasks may be live in a step
    assert trained.startswith(f"3 tasks x {counts.own // 3:,} own parameters need {need} for weights and ")
    assert trained.endswith("or train fewer tasks.") and "\n" not in trained
    assert checked == trained
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_a_network_that_cannot_be_trained_whole_is_told_to_be_adapted(recipe, limit, tmp_path):
    made = recipe("full")
    limit(2**16)

    message = told(lambda: mtnlp.finetune(made, out=tmp_path / "run"))

    assert "trained parameters needs 0.6 MiB for weights, gradients and moments, and 0.2 MiB are" in message
    assert "model.strategy=lora" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", strategies.names())
def test_what_is_needed_is_what_a_run_holds_when_all_tasks_are_live(recipe, strategy):
    made = recipe(strategy)
    made["train"] |= {"examples_per_step": 6, "steps": 1}
    run = tiny_tasks.build(made)
    for _ in steps(run):
        pass
    bank = run.model.strategy.bank
    weights = [*run.model.parameters()] + ([] if bank is None else [bank.rows])
    trained = [p for p in run.model.parameters() if p.requires_grad]
    moments = [value for name, value in run.optimizer.state().items() if "exp_avg" in name]
    copies = [] if bank is None else [bank.rows, bank.rows]  # the leaf and its gradient

    parts = room.needed(resolve(made).recipe, run.model)

    assert parts["weights"] == sum(t.nbytes for t in weights)
    assert parts["gradients and moments"] == sum(t.nbytes for t in (*trained, *moments, *copies))


def test_rows_in_main_memory_take_no_room_on_the_device(recipe, monkeypatch):
    class Device:
        type = "cuda"

    made = recipe("lora-per-task")
    model = tiny_tasks.build(made).model
    whole, rows = sum(room.needed(resolve(made).recipe, model).values()), model.strategy.bank.rows.nbytes
    left = {"cuda": whole - 3 * rows, "cpu": 2 * rows}
    monkeypatch.setattr(room.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(room.torch.accelerator, "current_accelerator", Device)
    monkeypatch.setattr(memory, "free", lambda device="cpu": left[device])
    activations = room.needed(resolve(made).recipe, model)["activations"]
    left["cuda"] -= activations

    with pytest.raises(MtnlpError, match="for weights and moments"):
        room.require(resolve(made).recipe, model)
    made["train"]["bank_on_cpu"] = True
    room.require(resolve(made).recipe, model)
    left["cpu"] -= 1
    with pytest.raises(MtnlpError, match=r"3 tasks x .* for moments, and"):
        room.require(resolve(made).recipe, model)
