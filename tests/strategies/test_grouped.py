"""A bank of low-rank updates multiplied in groups: one sequence at a time gives the same. What a GPU would
refuse is asked of torch's own checks on tensors without data."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from mtnlp.data.batch import IGNORED
from mtnlp.data.stream import lay_out
from mtnlp.kernels import grouped
from mtnlp.strategies._fused import LowRank, Update
from mtnlp.strategies.base import Part, Runs

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch before 2.10")
TASKS = ("a", "b", "absent", "c")
ROWS = (0, 0, 0, 1, 3, 3, 3)
BLOCKS = np.array([2, 0, 0, 2, 1, 0, 2])
OWN = {"rank": 4, "ranks": {"b": 2, "c": 8}, "alphas": {"a": 3.0}}


@pytest.fixture
def products(monkeypatch):
    """Runs of every grouped product that is made."""
    found, real = [], F.grouped_mm

    def grouped_mm(*args, offs):
        found.append(len(offs))
        return real(*args, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", grouped_mm)
    return found


def adapted(kind, **options):
    return tiny.disturb(tiny.model("lora-per-task", kind, TASKS, **OWN | options))


def flat(batch):
    """The same batch as streams of three blocks."""
    apart = batch.labels is not None and batch.labels.shape != batch.input_ids.shape
    lengths = batch.attention_mask.sum(1).numpy()
    targets = (batch.labels != IGNORED).sum(1).numpy() if apart else None
    return replace(batch, layout=lay_out(BLOCKS, lengths, targets), targets_apart=apart)


def step(model, batch, bf16=False):
    """Losses of the tasks, and the gradient of the bank's rows."""
    model.begin(range(len(TASKS)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = model(batch)
    out.sums.sum().backward()
    sums = torch.zeros(len(TASKS)).index_add(0, torch.tensor(out.tasks), out.sums.detach().float())
    return sums, model.strategy.bank.leaf.grad.clone()


@pytest.mark.parametrize("laid_out", [lambda batch: batch, flat], ids=["padded", "flat"])
@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_losses_and_gradients_equal_one_sequence_at_a_time(kind, laid_out, products):
    model = adapted(kind)
    batch = tiny.batch(model.backbone.family, ROWS)
    alone = [step(model, tiny.part(batch, slice(i, i + 1))) for i in range(len(ROWS))]
    assert not products

    with grouped.using(0):
        sums, grads = step(model, laid_out(batch))

    assert len(products) > 20
    assert set(products) == {3} if laid_out is not flat else max(products) < len(ROWS)
    assert grads[2].abs().sum() == 0 and all(grads[[0, 1, 3]].abs().sum(1) > 0)
    torch.testing.assert_close(sums, sum(own for own, _ in alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, sum(own for _, own in alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("laid_out", [lambda batch: batch, flat], ids=["padded", "flat"])
def test_in_bfloat16_only_rounding_differs_from_batched_products(laid_out, products):
    model = adapted("llama", ranks={"c": 8})
    batch = laid_out(tiny.batch("decoder", ROWS))
    exact, batched = step(model, batch), step(model, batch, bf16=True)
    assert not products

    with grouped.using(0):
        found = step(model, batch, bf16=True)

    assert products
    for own, other, true in zip(found, batched, exact, strict=True):
        assert (own - true).norm() <= 2 * (other - true).norm() + 1e-6


def test_groups_are_left_out_where_one_task_has_all_or_runs_are_short_or_nobody_asked(products):
    model, batch = adapted("bert"), tiny.batch("encoder", ROWS)

    step(model, batch)
    with grouped.using(0):
        step(model, tiny.batch("encoder", (1, 1, 1)))
        with grouped.using(None):
            step(model, batch)
    with grouped.using(22):  # 63 tokens in three runs
        step(model, batch)
    assert not products and grouped.faster_from is None
    with grouped.using(21):
        step(model, batch)
    assert products


def test_runs_are_the_neighbours_of_one_row():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 30):
        taken = torch.randint(3, (count,), generator=generator).tolist()
        lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
        by_token = [row for row, length in zip(taken, lengths) for _ in range(length)]
        wanted = [(row, len(list(own))) for row, own in itertools.groupby(by_token)]

        stops, rows = Runs.of(lengths, taken, torch.device("cpu"))

        assert (stops.dtype, rows.dtype) == (torch.int32, torch.int64)
        assert stops.tolist() == list(itertools.accumulate(length for _, length in wanted))
        assert rows.tolist() == [row for row, _ in wanted]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("rank", "inputs", "outputs", "dtype"),
    [
        (8, 768, 3072, torch.bfloat16),
        (16, 24, 8, torch.bfloat16),
        (4, 768, 768, torch.bfloat16),
        (12, 768, 768, torch.bfloat16),
        (8, 36, 768, torch.bfloat16),
        (8, 768, 2, torch.bfloat16),
        (8, 768, 768, torch.float32),
        (8, 768, 768, torch.float16),
    ],
)
def test_it_applies_exactly_where_torchs_checks_for_a_gpu_let_every_product_pass(
    rank, inputs, outputs, dtype, layers
):
    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(1, 16, inputs).requires_grad_()
    down, ups = empty(2, layers * rank, inputs), [empty(2, rank, outputs) for _ in range(layers)]
    parts = [Part(0, 16, empty(4, dtype=torch.int64), None)]
    sinks = [torch.zeros_like(factor, dtype=torch.float32) for factor in (down, *ups)]
    runs = Runs(empty(3, dtype=torch.int32), empty(3, dtype=torch.int64))
    update = Update([None] * layers, [None] * layers, parts, None, 2.0, sinks=lambda: sinks, runs=runs)

    def refused():
        try:
            found = LowRank.apply(x, down, update, x, *ups)
            sum(y.sum() for y in found).backward()  # gradients that are views of one number
        except RuntimeError as error:
            return str(error)
        return None

    with grouped.using(0):
        applies = grouped.applies(x, 3, (rank, inputs, outputs))
    why = refused()
    assert why is None if applies else "stride" in why or "of BF16 type" in why


def test_more_groups_than_a_launch_takes_are_left_to_batched_products():
    x = torch.zeros(1, 5000, 8, dtype=torch.bfloat16)
    with grouped.using(0):
        assert grouped.applies(x, 1023, (8,)) and not grouped.applies(x, 1024, (8,))
