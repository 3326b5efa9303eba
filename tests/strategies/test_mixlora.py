"""MixLoRA against a reference that sends one token at a time through its experts."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

EXPERTS = 4


def made(kind, **options):
    return tiny.disturb(
        tiny.model("mixlora", kind, ["a"], experts=EXPERTS, rank=3, alpha=5, **options), scale=1.0
    )


def plus(layer, expert, x):
    """One layer with one expert's LoRA."""
    down, up = layer.down[expert], layer.up[expert]
    return F.linear(x, layer.base.weight, layer.base.bias) + layer.scale * (up.T @ (down @ x))


def slow_token(x, router, feed_forward, top_k):
    """sum over the best experts of p_e / sum(p) * FFN_e(x), for one token x (D,)."""
    chances = torch.softmax(router.weight @ x, 0)
    best = chances.argsort(descending=True)[:top_k]
    return sum(chances[e] / chances[best].sum() * feed_forward(int(e), x) for e in best)


def check(run, router, feed_forward, top_k=2):
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack(
            [torch.stack([slow_token(t, router, feed_forward, top_k) for t in s]) for s in x]
        )
        torch.testing.assert_close(run(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_gated_feed_forward_part_equals_one_token_at_a_time(top_k):
    mlp = made("llama", top_k=top_k).backbone.net.model.layers[0].mlp

    def expert(e, x):
        return plus(mlp.down_proj, e, F.silu(plus(mlp.gate_proj, e, x)) * plus(mlp.up_proj, e, x))

    check(mlp, mlp.down_proj.router, expert, top_k)


def test_a_plain_feed_forward_part_equals_one_token_at_a_time():
    block = made("bert").backbone.net.encoder.layer[1]
    first, last = block.intermediate.dense, block.output.dense

    check(
        lambda x: last(block.intermediate(x)),
        last.router,
        lambda e, x: plus(last, e, F.gelu(plus(first, e, x))),
    )


def test_a_fused_gate_equals_one_token_at_a_time():
    mlp = made("modernbert").backbone.net.layers[0].mlp

    def expert(e, x):
        inner, gate = plus(mlp.Wi, e, x).chunk(2)
        return plus(mlp.Wo, e, F.gelu(inner) * gate)

    check(mlp, mlp.Wo.router, expert)


def balance_of(router, chances, mask):
    """The router's balance term when it finds these probabilities (tokens, K), all positive."""
    router.weight = nn.Parameter(torch.eye(chances.shape[-1]))
    router.routing.mask = mask
    router.train().ask(chances.log().view(*mask.shape, -1))
    router.done()
    return router.balance


def test_a_balanced_load_of_top_2_of_8_costs_twice_the_coefficient():
    model = tiny.model("mixlora", "bert", ["a"], experts=8, top_k=2, coefficient=0.5)
    chances = torch.full((4, 8), 0.5 / 6)
    for token in range(4):  # experts 2t and 2t + 1 take token t
        chances[token, 2 * token : 2 * token + 2] = 0.25
    for router in model.strategy._routers:
        balance_of(router, chances, torch.ones(1, 4))

    torch.testing.assert_close(model.strategy.aux_loss(), torch.tensor(2.0 * 0.5))


def test_padding_has_no_say_in_the_balance():
    router = tiny.model("mixlora", "bert", ["a"], experts=8, top_k=2).strategy._routers[0]
    chances = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    alone = balance_of(router, chances[:4], torch.ones(2, 2))
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])

    padded = balance_of(router, chances[[0, 1, 4, 2, 3, 5]], mask)

    torch.testing.assert_close(padded, alone)
    picked = chances.topk(2).indices[:4]
    load = torch.tensor([(picked == e).sum() / 4 for e in range(8)])
    torch.testing.assert_close(alone, 8 * (load * chances[:4].mean(0)).sum())


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_the_balance_loss_counts_real_tokens_on_both_sides_and_reaches_every_router(kind):
    model = made(kind).train()
    family = model.backbone.family
    batch, longer = tiny.batch(family, (0, 0, 0)), None
    model.begin([0])
    out = model(batch)
    pad = torch.full((3, 4), tiny.PAD)
    ids, mask = torch.cat([batch.input_ids, pad], 1), torch.cat([batch.attention_mask, 0 * pad], 1)
    labels = batch.labels if batch.labels is None else torch.cat([batch.labels, 0 * pad - 100], 1)

    longer = tiny.assemble(ids, mask, labels, batch.slices[0].target, [0, 0, 0])

    model.backbone.eval()
    model.strategy._routers[0].routing.mask = None
    for router in model.strategy._routers:
        router.train()
    torch.testing.assert_close(model(longer).aux, model(batch).aux, atol=1e-6, rtol=1e-5)
    out.aux.backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in model.strategy._routers)


def test_experts_without_tokens_get_no_push_and_break_nothing():
    model = made("llama").train()
    for router in model.strategy._routers:
        router.weight.data.zero_()  # all equal: top-k always takes the same two
    model.begin([0])

    model(tiny.batch("decoder", (0, 0))).sums.sum().backward()

    grads = model.backbone.net.model.layers[0].mlp.up_proj.down.grad
    assert grads.isfinite().all()
    assert sorted(grads.flatten(1).abs().sum(1).gt(0).tolist()) == [False, False, True, True]


def test_there_is_no_balance_loss_outside_training():
    model = made("bert")
    model.begin([0])

    assert model(tiny.batch("encoder", (0, 0))).aux is None
