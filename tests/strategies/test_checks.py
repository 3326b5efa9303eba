"""Ranks against layers."""

from __future__ import annotations

import pytest
import tiny

from mtnlp.errors import MtnlpError
from mtnlp.strategies._checks import check_rank
from mtnlp.strategies._lora import block_linears


@pytest.mark.parametrize(
    ("kind", "pattern", "most", "message"),
    [
        ("bert", "", 32, "layer encoder.layer.0.attention.self.query (32 inputs, 32 outputs), and than 11 "),
        ("gpt2", "mlp", 32, "layer transformer.h.0.mlp.c_fc (32 inputs, 128 outputs), and than 3 other"),
        ("llama", "layers.1.mlp.down_proj", 32, "down_proj (48 inputs, 32 outputs). Lower"),
    ],
)
def test_a_rank_may_be_as_large_as_the_smallest_side_of_a_layer(kind, pattern, most, message):
    linears = {name: m for name, m in block_linears(tiny.backbone(kind)).items() if pattern in name}
    check_rank("lora", most, linears)

    with pytest.raises(MtnlpError) as told:
        check_rank("lora", most + 1, linears)

    assert str(told.value).startswith(f"lora: rank={most + 1} is larger than the ")
    assert message in str(told.value)
    assert str(told.value).endswith(f" Lower model.strategy.rank to {most} or less.")


@pytest.mark.parametrize("strategy", ["lora-per-task", "mtl-lora"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_layer_that_scores_words_is_not_adapted_task_by_task(kind, strategy):
    with pytest.raises(MtnlpError, match=rf"{strategy}: targets match lm_head, .* Use targets=auto"):
        tiny.model(strategy, kind, ["a", "b"], targets=".")


def test_a_rank_of_one_task_that_is_too_large_is_told_by_its_own_key():
    with pytest.raises(MtnlpError, match=r"rank=99 is larger .* Lower model\.strategy\.ranks to 32"):
        tiny.model("lora-per-task", "bert", ["a", "b"], ranks={"b": 99})
