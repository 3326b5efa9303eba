"""Fast dropout against what dropout is: independent coins of known chance, replayed by torch's generator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtnlp.kernels.dropout import FEWEST, LEVELS, Dropout, dropout, mask, speed_up

SHAPE = (64, 8, 384)  # 196,608 elements


def zeros(p, *, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return dropout(torch.ones(SHAPE, dtype=dtype), p, True) == 0


def within(found, expected, coins, chance, sigmas=5):
    return abs(found - expected) <= sigmas * (coins * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 2 / LEVELS, 0.05])
def test_elements_are_dropped_at_the_rate_of_p_in_every_row(p):
    dropped = zeros(p)

    assert within(dropped.sum(), p * dropped.numel(), dropped.numel(), p)
    rows = dropped.flatten(0, 1).sum(1)
    assert all(within(row, p * SHAPE[-1], SHAPE[-1], p, sigmas=6) for row in rows.tolist()) or p < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_kept_is_scaled_by_the_inverse_of_the_chance_to_keep(dtype):
    torch.manual_seed(0)
    x = torch.randn(SHAPE).to(dtype)

    y = dropout(x, 0.1, True)

    kept = y != 0
    scale = LEVELS / (LEVELS - round(0.1 * LEVELS))
    assert abs(1 / scale - 0.9) <= 2**-17
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y[kept], (x[kept].double() * scale).to(dtype))
    assert abs(dropout(torch.ones(SHAPE, dtype=dtype), 0.1, True).double().mean() - 1) < 5e-3


def test_neighbours_rows_calls_and_seeds_are_independent():
    p, first = 0.3, zeros(0.3)
    torch.manual_seed(0)
    ones = torch.ones(SHAPE)
    calls = [dropout(ones, p, True) == 0 for _ in range(2)]

    assert torch.equal(calls[0], first)
    flat = first.flatten()
    others = [calls[1].flatten(), zeros(p, seed=1).flatten(), *(flat.roll(by) for by in (1, 2, 4, 384))]
    for other in others:
        assert within((flat & other).sum(), p * p * flat.numel(), flat.numel(), p * p)


def test_torch_s_generator_alone_decides_and_moves_on_by_every_call():
    assert torch.equal(zeros(0.1, seed=5), zeros(0.1, seed=5))
    assert not torch.equal(zeros(0.1, seed=5), zeros(0.1, seed=6))
    torch.manual_seed(3)
    state, x = torch.get_rng_state(), torch.ones(SHAPE)
    first, second = dropout(x, 0.1, True), dropout(x, 0.1, True)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.1, True), first) and not torch.equal(first, second)


def test_the_gradient_is_mask_times_scale_and_checkpointing_replays_it():
    net = nn.Sequential(nn.Linear(384, 384), Dropout(0.2), nn.GELU(), Dropout(0.2))
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(0), requires_grad=True)

    torch.manual_seed(1)
    (plain,) = torch.autograd.grad(net(x).square().sum(), x)
    torch.manual_seed(1)
    (replayed,) = torch.autograd.grad(checkpoint(net, x, use_reentrant=False).square().sum(), x)
    torch.manual_seed(2)
    y = dropout(x, 0.2, True)
    (grad,) = torch.autograd.grad(y.sum(), x)

    assert torch.equal(plain, replayed)
    torch.testing.assert_close(grad * x, y)
    assert grad.unique().tolist() == pytest.approx([0, 1.25], abs=1e-4)


def test_a_function_with_dropout_inside_multiplies_by_the_same_mask():
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(4)
    expected = dropout(x, 0.1, True)
    torch.manual_seed(4)

    kept, scale = mask(x, 0.1)

    torch.testing.assert_close(x * kept * scale, expected)
    kept, scale = mask(x[0, 0].requires_grad_(), 0.25)  # few elements: torch's own
    assert set(kept.tolist()) == {0.0, 1.0} and scale == 1 / 0.75 and not kept.requires_grad


def test_no_training_no_chance_few_elements_and_all_gone_are_as_in_torch():
    x = torch.randn(SHAPE)
    few = torch.randn(FEWEST - 1)

    assert dropout(x, 0.5, False) is x or torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(dropout(x, 1.0, True), torch.zeros_like(x))
    torch.manual_seed(0)
    expected = F.dropout(few, 0.5, True)
    torch.manual_seed(0)
    assert torch.equal(dropout(few, 0.5, True), expected)
    with pytest.raises(ValueError, match="dropout probability"):
        dropout(x, 1.5, True)


def test_every_plain_dropout_of_a_network_is_replaced_and_nothing_else():
    shared = nn.Dropout(0.1)
    net = nn.ModuleDict({
        "a": nn.Sequential(nn.Linear(4, 4), shared), "b": nn.ModuleList([shared, nn.Dropout(0.3).eval()]),
        "c": nn.Dropout2d(0.1), "d": nn.Dropout(0.2, inplace=True),
    })  # fmt: skip
    names = list(net.state_dict())

    speed_up(net)

    made = {name: module for name, module in net.named_modules() if isinstance(module, Dropout)}
    assert {name: (m.p, m.training) for name, m in made.items()} == {
        "a.1": (0.1, True), "b.0": (0.1, True), "b.1": (0.3, False),
    }  # fmt: skip
    assert list(net.state_dict()) == names
    assert type(net["c"]) is nn.Dropout2d and type(net["d"]) is nn.Dropout
