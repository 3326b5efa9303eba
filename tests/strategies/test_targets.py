"""Which modules the strategies find in backbones of different make."""

from __future__ import annotations

import re

import pytest
import tiny

from mtnlp import strategies
from mtnlp.errors import MtnlpError
from mtnlp.strategies._lora import find_targets
from mtnlp.strategies._sublayers import ATTENTION_OUT, FEED_FORWARD_IN, FEED_FORWARD_OUT, matching

EXPECTED = {  # per block: all linears, ends of attention, starts and ends of the feed-forward part
    "bert": (
        "attention.self.query attention.self.key attention.self.value attention.output.dense "
        "intermediate.dense output.dense",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    "modernbert": ("attn.Wqkv attn.Wo mlp.Wi mlp.Wo", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    "gpt2": ("attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "llama": (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj "
        "mlp.down_proj",
        "self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj",
        "mlp.down_proj",
    ),
    "t5": (
        "layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v layer.0.SelfAttention.o "
        "layer.1.EncDecAttention.q layer.1.EncDecAttention.k layer.1.EncDecAttention.v "
        "layer.1.EncDecAttention.o layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1 "
        "layer.1.DenseReluDense.wo layer.2.DenseReluDense.wi_0 layer.2.DenseReluDense.wi_1 "
        "layer.2.DenseReluDense.wo",
        "layer.0.SelfAttention.o layer.1.EncDecAttention.o",
        "layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1 layer.2.DenseReluDense.wi_0 "
        "layer.2.DenseReluDense.wi_1",
        "layer.1.DenseReluDense.wo layer.2.DenseReluDense.wo",
    ),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_layers_are_found_by_place_and_by_role(kind):
    backbone = tiny.backbone(kind)
    prefix = re.compile("|".join(rf"^{re.escape(name)}\." for name, _ in backbone.blocks()))

    found = find_targets(backbone, "auto", "lora")
    sets = [found, *(matching(found, p) for p in (ATTENTION_OUT, FEED_FORWARD_IN, FEED_FORWARD_OUT))]

    assert len(backbone.blocks()) == (4 if kind == "t5" else 2)
    assert [{prefix.sub("", name) for name in names} for names in sets] == [
        set(e.split()) for e in EXPECTED[kind]
    ]


@pytest.mark.parametrize("kind", ["modernbert", "gpt2"])
@pytest.mark.parametrize("name", ["lora-per-task", "adapters", "mtl-lora", "mixlora"])
def test_fused_projections_and_transposed_weights_start_exact_and_learn(name, kind):
    plain, model = tiny.model("full", kind, ["a", "b"]), tiny.model(name, kind, ["a", "b"])
    batch = tiny.batch(model.backbone.family, (0, 0, 1))
    model.begin([0, 1])
    first = model(batch).sums
    assert first.equal(plain(batch).sums)

    tiny.disturb(model)
    model.begin([0, 1])
    moved = model(batch).sums

    assert not moved.allclose(first, rtol=1e-4)
    moved.sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": "q_lin$"},
            r"no linear layer of tiny-bert matches targets='q_lin\$'.*encoder\.layer\.\*\.attention",
        ),
        ({"targets": "(query"}, r"targets='\(query' is no regular expression"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_reason(options, message):
    with pytest.raises(MtnlpError, match=message):
        strategies.get("lora-per-task")(**options).attach(tiny.backbone("bert"), ["a"], 0)


def test_heads_alone_are_refused_where_there_are_none():
    with pytest.raises(MtnlpError, match=r"tiny-t5 .*has no heads"):
        strategies.get("heads")().attach(tiny.backbone("t5"), ["a"], 0)
