"""What mtnlp.assemble makes of a recipe, part by part; whole runs stand in tests/runs and tests/cli."""

from __future__ import annotations

import pytest
import tiny
import torch

from mtnlp import assemble, config
from mtnlp.errors import RecipeError
from mtnlp.train import timings


def recipe(precision):
    return config.load(
        {"model": {"backbone": "minilm"}, "tasks": ["glue/rte"], "train": {"precision": precision}}
    )


def product(autocast):
    with autocast():
        return torch.ones(2, 2) @ torch.ones(2, 2)


@pytest.mark.parametrize("order", [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16")])
def test_every_run_of_a_process_has_its_own_precision(order):
    computes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    predictors = []
    for precision in order:
        accelerator = assemble.build_accelerator(recipe(precision))
        assert accelerator.mixed_precision == {"fp32": "no", "bf16": "bf16"}[precision]
        assert product(accelerator.autocast).dtype == computes[precision]
        model = tiny.model("heads", "bert", ["x"])
        predictors.append(assemble.build_predictor(recipe(precision), model, None, accelerator))

    # What was made for an earlier run still computes as that run did.
    assert [product(own.autocast).dtype for own in predictors] == [computes[p] for p in order]


def test_all_that_does_not_fit_the_backbone_is_told_at_once_by_its_key():
    model = {"backbone": "some/decoder", "strategy": "heads", "max_length": 16, "max_target_length": 10}
    own = config.load({"name": "odd", "model": model, "tasks": ["glue/rte"]})

    with pytest.raises(RecipeError) as caught:
        assemble.check_backbone(own, "decoder", 512)
    with pytest.raises(RecipeError, match=r"odd:\n  model\.max_length: some/decoder reads at most 8 tokens"):
        assemble.check_backbone(own, "encoder", 8)

    length, strategy = caught.value.problems
    assert length.startswith("model.max_length: 16 leaves too little room") and "use 18 or more" in length
    assert strategy.startswith("model.strategy: heads works with encoder backbones; the decoder some/decoder")
    assert assemble.check_backbone(own, "encoder", 16) is None


def test_a_settled_recipe_leaves_nothing_open_and_is_settled_for_good(monkeypatch):
    monkeypatch.setattr(timings, "bf16_gain", lambda device, how: 2.0)

    settled, engine = assemble.settle(recipe("auto"))
    monkeypatch.setattr(timings, "bf16_gain", lambda device, how: 0.5)

    assert (settled.model.attention, settled.train.precision, settled.train.matmul) == (
        engine.attention, engine.precision, engine.matmul,
    )  # fmt: skip
    assert assemble.settle(settled)[0] == settled and settled.train.precision == "bf16"
    assert assemble.build_accelerator(settled).mixed_precision == "bf16"
    assert assemble.build_accelerator(recipe("auto")).mixed_precision == "no"
