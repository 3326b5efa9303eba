"""The multi-task model: routing, losses, predictions and what it saves."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from mtnlp.errors import MtnlpError

TASKS = ("glue.v1/sst2", "b", "50%")


def test_losses_of_a_mixed_batch_are_those_of_the_heads_apart():
    model = tiny.disturb(tiny.model("lora-per-task", "bert", TASKS))
    batch = tiny.batch("encoder", (0, 0, 2, 2, 2))
    model.begin([0, 2])

    out = model(batch)

    assert out.tasks == (0, 2)
    hidden = model.backbone.hidden(batch)
    for value, part in zip(out.sums, batch.slices, strict=True):
        here = slice(part.start, part.stop)
        losses = model.heads[["glue%2Ev1/sst2", "b", "50%25"][part.task]].loss(
            hidden[here], batch.attention_mask[here], part
        )
        torch.testing.assert_close(value, losses.sum())
    assert out.sums.dtype == torch.float32


def test_text_losses_are_summed_per_task():
    model = tiny.disturb(tiny.model("lora-per-task", "t5", TASKS))
    batch = tiny.batch("encoder-decoder", (0, 1, 1))
    model.begin([0, 1])

    sums = model(batch).sums

    model._select(batch)
    losses = model.backbone.text_losses(batch)
    torch.testing.assert_close(sums, torch.stack([losses[0], losses[1] + losses[2]]))


def test_predicting_sees_an_update_and_tasks_that_were_not_live():
    model = tiny.disturb(tiny.model("lora-per-task", "bert", TASKS))
    batch = tiny.batch("encoder", (0, 1, 1))
    model.begin([0])
    first = model.predict(batch)
    assert [len(part) for part in first] == [1, 2]

    model.strategy.bank.rows[1].add_(0.5)
    second = model.predict(batch)

    assert second[0] == first[0]
    assert second[1] != first[1]


def test_training_on_a_task_that_is_not_live_is_stopped():
    model = tiny.model("lora-per-task", "bert", TASKS)
    model.begin([0])

    with pytest.raises(AssertionError, match="begin"):
        model(tiny.batch("encoder", (0, 1)))


def test_state_is_named_by_task_and_refuses_what_does_not_fit_before_changing_anything():
    model = tiny.model("lora-per-task", "bert", TASKS)
    state = copy.deepcopy(model.trainable_state())
    assert sorted(state) == sorted(
        f"{kind}"
        for task in TASKS
        for kind in (f"bank/{task}", f"head/{task}/out.weight", f"head/{task}/out.bias")
    )

    wrong = {**state, "bank/b": torch.zeros(3), "head/50%/out.bias": torch.ones(3)}
    with pytest.raises(MtnlpError, match=r"bank/b is \(3,\), expected \(\d+,\)"):
        model.load_trainable_state(wrong)
    with pytest.raises(MtnlpError, match=r"no bank/b, unknown bank/x"):
        model.load_trainable_state({("bank/x" if name == "bank/b" else name): t for name, t in state.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.trainable_state().items())


def test_a_copy_of_a_model_stands_on_its_own():
    model = tiny.disturb(tiny.model("lora-per-task", "bert", TASKS))
    batch = tiny.batch("encoder", (0, 1, 2))
    before = model.predict(batch)

    tiny.disturb(twin := copy.deepcopy(model))

    assert model.predict(batch) == before
    assert twin.predict(batch) != before


def test_beams_take_the_rows_of_their_sequences():
    model = tiny.disturb(tiny.model("lora-per-task", "llama", TASKS), scale=1.0)
    batch = tiny.batch("decoder", (0, 1, 2))
    model.begin([0, 1, 2])
    with torch.no_grad():
        model._select(batch)
        plain = model.backbone.net(batch.input_ids).logits
        beams = model.backbone.net(batch.input_ids.repeat_interleave(2, 0)).logits

    torch.testing.assert_close(beams, plain.repeat_interleave(2, 0), atol=1e-5, rtol=1e-5)
