"""Steps over flat streams: the same records and weights as over padded batches."""

from __future__ import annotations

import pytest
import torch

from mtnlp.train.loop import steps

CALM = {"dropout": 0.0, "eps": 1e-3, "examples": 16, "total": 4}


@pytest.mark.parametrize(
    ("strategy", "balancer"),
    [("full", "equal"), ("full", "pcgrad"), ("lora-per-task", "equal"), ("lora", "equal")],
)
def test_training_flat_is_training_padded(tiny, strategy, balancer):
    expected, end = tiny.outcome({**CALM, "strategy": strategy, "balancer": balancer})
    run = tiny.make(strategy=strategy, balancer=balancer, flat=True, **CALM)

    records = list(steps(run))

    for record, (losses, norm, tokens) in zip(records, expected, strict=True):
        assert record.losses == pytest.approx(losses, abs=1e-5)
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)
        assert record.tokens == tokens
    torch.testing.assert_close(tiny.weights(run), end, rtol=0, atol=2e-5)


def test_running_out_of_memory_halves_the_stream_and_changes_nothing_else(tiny):
    expected, end = tiny.outcome({**CALM, "max_tokens": 1000})
    run = tiny.make(max_tokens=1000, flat=True, **CALM)
    forward, sizes = run.model.forward, []

    def narrow(batch):
        sizes.append(batch.padded_tokens)
        if batch.padded_tokens > 60:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batch)

    run.model.forward = narrow
    records = list(steps(run))

    assert max(sizes) > 60 >= run.max_tokens
    for record, (losses, _, _) in zip(records, expected, strict=True):
        assert record.losses == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(tiny.weights(run), end, rtol=0, atol=2e-5)


def test_dropout_in_flat_training_is_repeatable(tiny):
    ends = []
    for _ in range(2):
        run = tiny.make(dropout=0.3, total=2, flat=True)
        list(steps(run))
        ends.append(tiny.weights(run))

    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
