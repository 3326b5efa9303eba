"""The fused update of linear layers against one example at a time."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F

from mtnlp.data.stream import Block
from mtnlp.strategies import _fused
from mtnlp.strategies._fused import LowRank, Update
from mtnlp.strategies.base import Part, Routing, Runs

INPUTS, OUTS, R, ROWS = 16, (24, 40, 32), 8, 3  # rows of whole 16 bytes, as grouped products want
WAYS = ["batched", "masked", *(["grouped"] if hasattr(F, "grouped_mm") else [])]
LAID_OUT = {  # (sequences, tokens of each, rows taken) one after the other
    "one part": [(5, 4, [0, 1, 1, 2, 0])],
    "each row once": [(3, 4, [0, 1, 2])],
    "parts of several lengths": [(2, 5, [0, 2]), (3, 2, [1, 1, 2]), (1, 1, [0])],
    "one row for all": [(4, 3, [1, 1, 1, 1])],
}


@pytest.fixture(autouse=True, params=[_fused.SMALL, 0], ids=["bias apart", "bias as a rank"])
def small(request, monkeypatch):
    """0 = as if there were many tokens."""
    monkeypatch.setattr(_fused, "SMALL", request.param)


def parts_of(layout):
    found, token = [], 0
    for count, length, rows in layout:
        found.append(Part(token, token + count * length, torch.tensor(rows), rows))
        token += count * length
    return found


def drawn(tokens, layers, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    outs = OUTS[:layers]
    weights, biases = (
        [draw(out, INPUTS).detach() for out in outs],
        [None, *(draw(out).detach() for out in outs[1:])],
    )
    return (
        draw(1, tokens, INPUTS),
        draw(ROWS, layers * R, INPUTS),
        [draw(ROWS, R, out) for out in outs],
        weights,
        biases,
    )


def one_by_one(x, down, ups, weights, biases, parts, scale, mask=1.0):
    """Plain products, token by token."""
    outputs = []
    taken = [
        row for part in parts for row in part.taken for _ in range((part.stop - part.start) // len(part.rows))
    ]
    masked = x * mask
    for i, (up, weight, bias) in enumerate(zip(ups, weights, biases)):
        own = [
            (scale[t] if isinstance(scale, torch.Tensor) else scale)
            * masked[0, n]
            @ down[t, i * R : (i + 1) * R].T
            @ up[t]
            for n, t in enumerate(taken)
        ]
        outputs.append(F.linear(x, weight, bias) + torch.stack(own).unsqueeze(0))
    return outputs


def gate_of(parts, scale, dtype=torch.float64):
    """(N, ROWS * R): the scale of each token's row where it is its own."""
    scales = scale if isinstance(scale, torch.Tensor) else torch.full((ROWS,), scale)
    gate = torch.zeros(parts[-1].stop, ROWS, R, dtype=dtype)
    for start, stop, _, taken in parts:
        for n in range(start, stop):
            row = taken[(n - start) * len(taken) // (stop - start)]
            gate[n, row] = scales[row]
    return gate.flatten(1)


def how(way, parts, scale, dtype=torch.float64):
    """What an Update needs for a way to multiply."""
    if way == "masked":
        return {"gate": gate_of(parts, scale, dtype)}
    if way == "batched":
        return {}
    each = [((part.stop - part.start) // len(part.rows), row) for part in parts for row in part.taken]
    return {"runs": Runs.of(*zip(*each), torch.device("cpu"))}


def gradients(outputs, tensors):
    loss = sum((y.double() * torch.arange(y.numel()).view_as(y).sin()).sum() for y in outputs)
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize(
    "scale", [0.5, torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)], ids=["same", "own"]
)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", LAID_OUT)
def test_values_and_gradients_equal_one_token_at_a_time(case, way, layers, scale):
    parts = parts_of(LAID_OUT[case])
    # Grouped products of float64 do not exist.
    dtype, close = (torch.float32, 2e-5) if way == "grouped" else (torch.float64, 1e-12)
    x, down, ups, weights, biases = drawn(parts[-1].stop, layers, dtype)
    only = 1 if case == "one row for all" and way != "grouped" else None
    update = Update(weights, biases, parts, only, scale, **how(way, parts, scale))

    found = LowRank.apply(x, down, update, down, *ups)
    expected = [y.to(dtype) for y in one_by_one(x, down, ups, weights, biases, parts, scale)]

    torch.testing.assert_close(found, tuple(expected), rtol=close, atol=close)
    tensors = (x, down, *ups)
    torch.testing.assert_close(
        gradients(found, tensors), gradients(expected, tensors), rtol=close, atol=10 * close
    )


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        *((way, dtype) for way in WAYS for dtype in (torch.float32, torch.bfloat16)),
        ("batched", torch.float64),
        ("masked", torch.float64),
    ],
)
def test_gradients_of_several_backwards_add_up_in_the_sinks(way, dtype):
    parts = parts_of(LAID_OUT["parts of several lengths"])
    x, down, ups, weights, biases = drawn(parts[-1].stop, 3, dtype)
    sinks = [torch.ones(factor.shape, dtype=torch.float64) for factor in (down, *ups)]
    update = Update(weights, biases, parts, None, 0.5, sinks=lambda: sinks, **how(way, parts, 0.5, dtype))
    anchor = torch.zeros(1, requires_grad=True)
    expected = gradients(one_by_one(x, down, ups, weights, biases, parts, 0.5), (x, down, *ups))

    for _ in range(2):
        found = LowRank.apply(x, down.detach(), update, anchor, *(up.detach() for up in ups))
        (gradient,) = gradients(found, (x,))

    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(gradient, expected[0], rtol=close, atol=close)
    for sink, own in zip(sinks, expected[1:], strict=True):
        torch.testing.assert_close(sink, 1 + 2 * own.double(), rtol=close, atol=10 * close)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("case", LAID_OUT)
def test_factors_that_are_wider_than_the_input_are_multiplied_in_their_own_type(case, dropout):
    parts = parts_of(LAID_OUT[case])
    x, down, ups, _, _ = drawn(parts[-1].stop, 3)
    narrow = x.detach().bfloat16().requires_grad_()
    update = Update([None] * 3, [None] * 3, parts, None, 0.5, dropout=dropout)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones_like(x[0]), dropout)

    torch.manual_seed(3)
    found = LowRank.apply(narrow, down, update, down, *ups)
    wide = narrow.detach().double().requires_grad_()
    plain = one_by_one(
        wide, down, ups, [torch.zeros(out, INPUTS).double() for out in OUTS], [None] * 3, parts, 0.5, mask
    )

    assert {y.dtype for y in found} == {torch.bfloat16}
    torch.testing.assert_close([y.double() for y in found], plain, rtol=2**-8, atol=1e-3)
    # Of the factors: equal to rounding of the gradients that come in, which are bfloat16.
    wanted, own = gradients(plain, (wide, down, *ups)), gradients(found, (narrow, down, *ups))
    for mine, other in zip(own, wanted, strict=True):
        assert (mine.double() - other).norm() <= 2**-7 * other.norm()


@pytest.mark.parametrize("way", WAYS)
def test_a_dropped_input_is_dropped_from_the_update_and_its_gradients_only(way):
    parts = parts_of(LAID_OUT["one part"])
    dtype, close = (torch.float32, 2e-5) if way == "grouped" else (torch.float64, 1e-12)
    x, down, ups, weights, biases = drawn(parts[-1].stop, 3, dtype)
    update = Update(weights, biases, parts, None, 2.0, dropout=0.4, **how(way, parts, 2.0))
    torch.manual_seed(3)
    mask = F.dropout(torch.ones_like(x[0]), 0.4)

    torch.manual_seed(3)
    found = LowRank.apply(x, down, update, down, *ups)
    expected = one_by_one(x, down, ups, weights, biases, parts, 2.0, mask)

    torch.testing.assert_close(found, tuple(expected), rtol=close, atol=close)
    tensors = (x, down, *ups)
    torch.testing.assert_close(
        gradients(found, tensors), gradients(expected, tensors), rtol=close, atol=10 * close
    )


def test_without_weights_the_update_alone_comes_back():
    parts = parts_of(LAID_OUT["one part"])
    x, down, ups, weights, biases = drawn(parts[-1].stop, 3)
    base = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases)]

    alone = LowRank.apply(x, down, Update([None] * 3, [None] * 3, parts, None, 0.5), down, *ups)
    whole = LowRank.apply(x, down, Update(weights, biases, parts, None, 0.5), down, *ups)

    torch.testing.assert_close([y + own for y, own in zip(base, alone)], list(whole))
    found = gradients([y + own for y, own in zip(base, alone)], (x, down, *ups))
    torch.testing.assert_close(found, gradients(whole, (x, down, *ups)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lora", "lora-per-task"])
def test_a_compiled_network_learns_the_same(name):
    plain, compiled = (tiny.disturb(tiny.model(name, "bert", ["a", "b"])) for _ in range(2))
    compiled.backbone.net.compile(backend="aot_eager")  # no C++ compiler needed
    batch = tiny.batch("encoder", (0, 0, 1))
    found = []
    for model in (plain, compiled):
        model.begin([0, 1])
        model(batch).sums.sum().backward()
        found.append([p.grad for p in model.shared_parameters().values()])
        if model.strategy.bank is not None:
            found[-1].append(model.strategy.bank.leaf.grad)

    assert found[0]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5, 2.0, 3.0])], ids=["same", "own"])
def test_the_gate_of_a_stream_holds_each_tokens_scale_in_the_columns_of_its_row(scale):
    routing, layout = Routing(), LAID_OUT["parts of several lengths"]
    routing.rows = torch.tensor([row for _, _, rows in layout for row in rows])
    routing.lay_out([Block(count, length) for count, length, _ in layout])
    x = torch.zeros(1, sum(count * length for count, length, _ in layout), INPUTS)

    expected = gate_of(parts_of(layout), scale, torch.float32)
    torch.testing.assert_close(routing.gate(x, ROWS, R, scale), expected, rtol=0, atol=0)
