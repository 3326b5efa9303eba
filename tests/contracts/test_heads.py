"""What every head promises; a new file in mtnlp/heads is tested by this one, unasked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.tasks.spec import KINDS, TaskSpec

L, D, LABELS = 9, 16, tuple("abc")
COUNTS = {"choose": [2, 3], "span": [1, 2]}
TARGETS = {  # of two examples; token targets are laid out for three sequences at most
    "classify": torch.tensor([1, 2]), "pair": torch.tensor([1, 2]), "ordinal": torch.tensor([1, 2]),
    "choose": torch.tensor([1, 2]), "regress": torch.tensor([0.5, 0.2]),
    "multilabel": torch.tensor([[1.0, 0, 1], [0, 0, 0]]),
    "tag": torch.tensor([[-100, 1, 2, 0], [-100, 2, -100, 1]]),
    "span": torch.tensor([[1, 3], [0, 0], [2, 2]]),
}  # fmt: skip


def kind_of(name):
    return name if name in KINDS else pytest.fail(f"Say in this file which kind the head {name!r} learns.")


@pytest.fixture(params=heads.names())
def case(request):
    kind = kind_of(request.param)
    torch.manual_seed(0)
    spec = TaskSpec(name="t", kind=kind, source={}, labels=LABELS if KINDS[kind].labelled else None)
    head = heads.get(request.param)(D, spec, pooling="mean", dropout=0.1).eval()
    counts = torch.tensor(COUNTS.get(kind, [1, 1]))
    sequences = int(counts.sum())
    hidden = torch.randn(sequences, L, D)
    mask = (torch.arange(L) < torch.tensor([4, 6, 5, 9, 7])[:sequences].unsqueeze(1)).long()
    target = TARGETS[kind]
    if kind == "tag":
        target = torch.nn.functional.pad(target, (0, L - 4), value=-100)
    return head, hidden, mask, TaskSlice(0, 0, sequences, np.arange(2), counts, target)


def test_every_kind_but_generate_has_a_head():
    known = {heads.get(name) for name in heads.names()}

    assert {heads.for_kind(kind) for kind in KINDS if kind != "generate"} <= known


def test_gives_one_finite_float32_loss_per_example_and_a_gradient_everywhere(case):
    head, hidden, mask, part = case

    losses = head.loss(hidden, mask, part)
    losses.sum().backward()

    assert losses.shape == (2,)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    # Nothing may cancel in the loss: AdamW would scale what rounding leaves of its gradient to full steps.
    assert all(p.grad.abs().max() > 1e-4 for p in head.parameters())


def test_computes_in_float32_under_autocast(case):
    head, hidden, mask, part = case

    with torch.autocast("cpu", torch.bfloat16):
        losses = head.loss(hidden, mask, part)

    torch.testing.assert_close(losses, head.loss(hidden, mask, part), rtol=0, atol=0)


def test_takes_hidden_states_of_half_precision(case):
    head, hidden, mask, part = case

    losses = head.loss(hidden.bfloat16(), mask, part)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, head.loss(hidden, mask, part), rtol=0.1, atol=0.1)


def test_padding_changes_nothing(case):
    head, hidden, mask, part = case
    noisy = torch.where(mask.bool().unsqueeze(-1), hidden, torch.full_like(hidden, 50.0))

    torch.testing.assert_close(head.loss(noisy, mask, part), head.loss(hidden, mask, part))
    assert head.predict(noisy, mask, part) == head.predict(hidden, mask, part)


def test_an_example_does_not_see_its_neighbours(case):
    head, hidden, mask, part = case
    start = int(part.counts[0])
    target = part.target[start:] if len(part.target) == len(hidden) else part.target[1:]
    alone = TaskSlice(0, 0, len(hidden) - start, np.arange(1), part.counts[1:], target)

    loss = head.loss(hidden[start:], mask[start:], alone)
    found = head.predict(hidden[start:], mask[start:], alone)

    torch.testing.assert_close(loss, head.loss(hidden, mask, part)[1:])
    assert found[0]["value"] == head.predict(hidden, mask, part)[1]["value"]


def test_predictions_are_plain_python(case):
    head, hidden, mask, part = case

    found = head.predict(hidden, mask, part)

    assert len(found) == 2
    assert all("value" in prediction for prediction in found)
    json.dumps(found, allow_nan=False)
