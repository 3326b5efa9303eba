"""MTL-LoRA against the formula, one sequence at a time."""

from __future__ import annotations

import tiny
import torch
import torch.nn.functional as F


def layer_of(model):
    return model.backbone.net.encoder.layer[0].attention.self.query


def slow(model, x, task):
    """W x + (alpha / R) sum_k s_k B_k Lambda A x, with the loops written out."""
    layer, strategy = layer_of(model), model.strategy
    own = {
        name.split(".")[-1]: p
        for name, p in strategy.bank.named(task).items()
        if ".0.attention.self.query." in name
    }
    share = torch.exp(own["mix"] / strategy.temperature)
    share = share / share.sum()
    y = F.linear(x, layer.base.weight, layer.base.bias)
    for token in range(len(x)):
        code = own["transform"] @ (layer.down @ x[token])
        for k in range(strategy.ups):
            y[token] += strategy.alpha / strategy.rank * share[k] * (layer.up[k].T @ code)
    return y


def test_a_mixed_batch_equals_the_formula_token_by_token():
    model = tiny.disturb(
        tiny.model("mtl-lora", "bert", ["a", "b", "c"], rank=4, alpha=6, ups=3, temperature=0.5)
    )
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    model.begin([2, 0])

    with torch.no_grad():
        model.strategy.select(torch.tensor([0, 0, 2, 2]), torch.ones(4, 5))
        found = layer_of(model)(x)
        expected = torch.stack([slow(model, x[i], task) for i, task in enumerate((0, 0, 2, 2))])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

        model.strategy.select(torch.tensor([2, 2]), torch.ones(2, 5))
        torch.testing.assert_close(layer_of(model)(x[2:]), expected[2:], atol=1e-5, rtol=1e-5)


def test_one_up_and_no_transform_is_plain_lora():
    model = tiny.model("mtl-lora", "bert", ["a", "b"], ups=1)
    layer = layer_of(model)
    layer.up.data.normal_()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    model.begin([0, 1])
    model.strategy.select(torch.tensor([0, 1]), torch.ones(2, 5))

    torch.testing.assert_close(layer(x), layer.base(x) + 2.0 * F.linear(x, layer.down) @ layer.up[0])


def test_weights_of_the_ups_are_those_of_the_worked_example():
    model = tiny.model("mtl-lora", "bert", ["a"], ups=3, rank=1)
    layer = layer_of(model)
    own = {
        name.split(".")[-1]: p
        for name, p in model.strategy.bank.named(0).items()
        if ".0.attention.self.query." in name
    }
    own["mix"].copy_(torch.tensor([0.1, 0.0, 0.0]))
    layer.up.data.copy_(torch.eye(3, 32)[:, None])
    model.begin([0])
    model.strategy.select(torch.tensor([0]), torch.ones(1, 5))

    torch.testing.assert_close(layer._ups()[0, 0, :3], torch.tensor([0.576, 0.212, 0.212]), atol=5e-4, rtol=0)


def test_ups_grow_apart_from_a_common_start():
    model = tiny.model("mtl-lora", "bert", ["a", "b"])
    model.begin([0, 1])

    model(tiny.batch("encoder", (0, 0, 1, 1))).sums.sum().backward()

    grad = layer_of(model).up.grad
    assert (grad[0] - grad[1]).abs().max() > 0.1 * grad.abs().max()
