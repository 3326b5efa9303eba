"""The bank of per-task rows, and the layers that read it."""

from __future__ import annotations

import pytest
import tiny
import torch

from mtnlp.errors import MtnlpError
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._lora import draw_down, zeros


def bank(tasks, seed=0):
    made = Bank()
    made.add("down", (2, 3), draw_down)
    made.add("up", (2, 4), zeros)
    made.build(tasks, seed)
    return made


def test_a_row_depends_on_the_seed_and_the_name_of_its_task_only():
    few, many = bank(["a", "b"]), bank(["z", "b", "y", "a"])

    assert torch.equal(few.rows[[0, 1]], many.rows[[3, 1]])
    assert not torch.equal(few.rows[0], few.rows[1])
    assert not torch.equal(few.rows, bank(["a", "b"], seed=1).rows)
    assert many.rows[:, :6].abs().max() <= 3**-0.5
    assert not many.rows[:, 6:].any()


def test_named_pieces_are_views_of_the_row():
    made = bank(["a", "b"])

    made.named(1)["up"][1, 2] = 7

    assert made.rows[1].tolist()[6:] == [0, 0, 0, 0, 0, 0, 7, 0]
    assert made.named(0)["down"].shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_several_backward_passes_add_up_in_the_leaf(dtype):
    made = bank(["a", "b", "c"])
    made.gather([2, 0])

    for scale in (1.0, 2.0):
        down, up = made.piece(0, dtype), made.piece(1, dtype)
        (scale * (down[0].sum() + 3 * up[1].sum())).float().backward()

    assert torch.equal(made.leaf.grad, torch.tensor([[3.0] * 6 + [0.0] * 8, [0.0] * 6 + [9.0] * 8]))
    assert made.position(torch.tensor([0, 2, 2, 1])).tolist() == [1, 0, 0, -1]


def test_pieces_looked_at_without_gradients_do_not_cut_off_later_ones():
    made = bank(["a"])
    made.gather([0])
    with torch.no_grad():
        made.piece(0, torch.float32)

    made.piece(0, torch.float32).sum().backward()

    assert made.leaf.grad.sum() == 6


def test_it_knows_when_the_leaf_is_out_of_date():
    made = bank(["a", "b", "c"])
    assert not made.holds([0])
    made.gather([0, 2])
    assert made.holds([2])
    assert not made.holds([1])

    made.rows[1].add_(1)  # what the optimizer does

    assert not made.holds([2])
    with torch.no_grad():
        made.gather([0])
    assert not made.holds([0])  # no gradient can flow into this one
    with torch.no_grad():
        assert made.holds([0])


def test_a_task_alone_is_plain_lora_bit_for_bit():
    own, plain = tiny.model("lora-per-task", "bert", ["a"]), tiny.model("lora", "bert", ["a"])
    batch = tiny.batch("encoder", (0, 0, 0, 0))
    layout = own.strategy.bank.named(0)
    for name, parameter in plain.shared_parameters().items():
        parameter.data.normal_(std=0.1)
        layout[name.removeprefix("net.")].copy_(parameter.data)
    own.begin([0])

    losses = [model(batch).sums.sum() for model in (own, plain)]
    for loss in losses:
        loss.backward()

    assert torch.equal(*losses)
    for name, (start, shape) in own.strategy.bank.layout.items():
        parameter = plain.shared_parameters()[f"net.{name}"]
        piece = own.strategy.bank.leaf.grad[0, start : start + parameter.numel()]
        assert torch.equal(piece.view(shape), parameter.grad), name


def test_one_task_of_many_in_a_batch_gets_the_same_as_alone_in_the_run():
    many, alone = (
        tiny.model("lora-per-task", "bert", ["a", "b", "c"]),
        tiny.model("lora-per-task", "bert", ["b"]),
    )
    for model in (many, alone):
        tiny.disturb(model)
    many.begin([0, 1, 2])
    alone.begin([0])

    both = many(tiny.batch("encoder", (1, 1, 1))), alone(tiny.batch("encoder", (0, 0, 0)))
    for out in both:
        out.sums.sum().backward()

    assert torch.equal(both[0].sums, both[1].sums)
    assert torch.equal(many.strategy.bank.leaf.grad[1], alone.strategy.bank.leaf.grad[0])
    assert not many.strategy.bank.leaf.grad[[0, 2]].any()


def test_gradients_stop_below_the_first_adapted_layer():
    model = tiny.model("lora-per-task", "bert", ["a", "b"], targets=r"layer\.1\.")
    seen = []
    model.backbone.net.encoder.layer[0].register_forward_hook(lambda *args: seen.append(args[2]))

    model.begin([0, 1])
    model(tiny.batch("encoder", (0, 1)))

    assert not (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).requires_grad


def test_tasks_of_different_rank_learn_what_each_would_alone():
    options = {"ranks": {"b": 5}, "alphas": {"a": 3.0}, "rank": 2}
    both = tiny.model("lora-per-task", "bert", ["a", "b"], **options)
    apart = {
        "a": tiny.model("lora-per-task", "bert", ["a"], rank=2, alpha=3.0),
        "b": tiny.model("lora-per-task", "bert", ["b"], rank=5),
    }
    for model in (both, *apart.values()):
        for task in range(len(model.tasks)):
            descend(model, task, steps=2)

    for task, (name, alone) in enumerate(apart.items()):
        expected = alone.strategy.bank.named(0)
        for piece, values in both.strategy.bank.named(task).items():
            rank = len(expected[piece])
            torch.testing.assert_close(values[:rank], expected[piece], atol=1e-6, rtol=1e-5)
            assert not values[rank:].any()
        config, tensors = both.strategy.export(name)
        own_config, own_tensors = alone.strategy.export(name)
        assert config == own_config
        torch.testing.assert_close(tensors, own_tensors, atol=1e-6, rtol=1e-5)


def descend(model, task, steps):
    """Gradient descent on one task, in place as the train room does it."""
    bank = model.strategy.bank
    for _ in range(steps):
        model.begin(range(len(model.tasks)))
        model(tiny.batch("encoder", (task,) * 3)).sums.sum().backward()
        bank.rows[task] -= 0.1 * bank.leaf.grad[task]


def test_an_option_for_a_task_that_is_not_there_is_told_with_the_nearest_name():
    with pytest.raises(MtnlpError, match=r"ranks names 'aa', which is no task of this recipe. .*ab"):
        tiny.model("lora-per-task", "bert", ["ab"], ranks={"aa": 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_evaluation_left_behind_serves_training(dtype):
    model = tiny.model("lora-per-task", "bert", ["a", "b"])
    batch = tiny.batch("encoder", (0, 1))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with torch.inference_mode():
            model.begin([0, 1])
            model(batch)
        model.begin([0, 1])
        loss = model(batch).sums.sum()

    loss.backward()

    assert model.strategy.bank.leaf.grad.any()
