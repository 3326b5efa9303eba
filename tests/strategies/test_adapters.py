"""Bottleneck adapters against the formula."""

from __future__ import annotations

import pytest
import tiny
import torch

from mtnlp import strategies


def test_every_sequence_goes_through_the_adapter_of_its_task():
    model = tiny.disturb(tiny.model("adapters", "bert", ["a", "b"], reduction=4))
    layer = model.backbone.net.encoder.layer[1].output.dense
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 48, generator=generator)
    model.begin([1, 0])
    model.strategy.select(torch.tensor([0, 1, 1]), torch.ones(3, 5))

    found = layer(x)

    for i, task in enumerate((0, 1, 1)):
        own = {
            name.split(".")[-1]: p
            for name, p in model.strategy.bank.named(task).items()
            if name.startswith("encoder.layer.1.output.dense.")
        }
        h = layer.base(x[i])
        expected = h + torch.relu(h @ own["down"].T + own["down_bias"]) @ own["up"] + own["up_bias"]
        torch.testing.assert_close(found[i], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("placement", "adapters"), [("houlsby", 4), ("pfeiffer", 2)])
def test_the_number_of_parameters_is_the_closed_form(placement, adapters):
    strategy = strategies.get("adapters")(reduction=8, placement=placement)
    strategy.attach(tiny.backbone("bert"), ["a", "b", "c"], 0)

    width, inner = 32, 4
    assert strategy.bank.rows.shape == (3, adapters * (2 * width * inner + inner + width))
