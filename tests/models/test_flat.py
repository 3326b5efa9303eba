"""Flat streams of tokens against padded batches of the same sequences: losses and every gradient."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers as tr

from mtnlp import strategies
from mtnlp.data.batch import IGNORED
from mtnlp.data.stream import lay_out
from mtnlp.models import attention, flat
from mtnlp.models.backbone import Backbone
from mtnlp.strategies import _lora

TASKS = ("a", "b", "c")
LENGTHS = [9, 4, 5, 9, 6, 5, 8]  # of the sequences
ROWS = (0, 0, 1, 1, 1, 2, 2)  # their tasks
BLOCKS = np.array([2, 0, 0, 2, 1, 0, 2])  # two of the three hold padding
TARGETS = np.array([3, 5, 2, 4, 4, 1, 3])
SIZES = {**tiny._IDS, **tiny._BLOCKS, "max_position_embeddings": 64}
PLAIN = {**SIZES, **tiny._NO_DROPOUT}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
BART = {
    **tiny._IDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "dropout": 0.0,
}  # fmt: skip
NETS = {
    "roberta": ("encoder", lambda: tr.RobertaModel(tr.RobertaConfig(**PLAIN | {"pad_token_id": 1}))),
    "electra": ("encoder", lambda: tr.ElectraModel(tr.ElectraConfig(**PLAIN, embedding_size=16))),
    "modernbert window": (
        "encoder",
        lambda: tr.ModernBertModel(
            tr.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, local_attention=4)
        ),
    ),
    "bart": ("encoder-decoder", lambda: tr.BartForConditionalGeneration(tr.BartConfig(**BART))),
    "llama grouped": ("decoder", lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**GROUPED))),
    "qwen3": ("decoder", lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**GROUPED))),
    "mistral window": (
        "decoder",
        lambda: tr.MistralForCausalLM(tr.MistralConfig(**GROUPED, sliding_window=4)),
    ),
    "deberta": (
        "encoder",
        lambda: tr.DebertaV2Model(
            tr.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
    ),
    "gemma2": ("decoder", lambda: tr.Gemma2ForCausalLM(tr.Gemma2Config(**GROUPED))),  # soft caps on scores
    "mamba": (
        "decoder",
        lambda: tr.MambaForCausalLM(tr.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)),
    ),
}
FLAT = [*tiny.NETS, *(name for name in NETS if name not in ("deberta", "gemma2", "mamba"))]
# Networks that norm, rotate or softmax in float32 whatever they are given.
ROUNDED = ("llama", "llama grouped", "qwen3", "mistral window", "modernbert", "modernbert window")


@pytest.fixture(autouse=True)
def _more_networks(monkeypatch):
    monkeypatch.setattr(tiny, "NETS", {**tiny.NETS, **NETS})


def pair(family):
    """A batch of three tasks, padded and flat."""
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, mask.shape, generator=generator)
    there = torch.arange(5) < torch.from_numpy(TARGETS)[:, None]
    labels = {
        "encoder": None,
        "encoder-decoder": torch.randint(3, 60, there.shape, generator=generator).masked_fill(
            ~there, IGNORED
        ),
        "decoder": ids.masked_fill(~mask | (torch.arange(9) < 2), IGNORED),
    }[family]
    padded = tiny.assemble(
        ids.masked_fill(~mask, tiny.PAD), mask.long(), labels, torch.tensor([0, 1, 2, 0, 1, 2, 0]), ROWS
    )
    apart = family == "encoder-decoder"
    padded = replace(padded, targets_apart=apart)
    layout = lay_out(BLOCKS, np.array(LENGTHS), TARGETS if apart else None)
    return padded, replace(padded, layout=layout)


def outcome(model, batch):
    """Losses by task, and every gradient by name."""
    model.zero_grad()
    model.begin([0, 1, 2])
    out = model(batch)
    loss = (out.sums * torch.tensor([1.0, 0.7, 0.4], dtype=out.sums.dtype)).sum()
    (loss if out.aux is None else loss + out.aux).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if (bank := model.strategy.bank) is not None:
        grads["bank"] = bank.leaf.grad
    return out.sums.detach(), {name: grad.clone() for name, grad in grads.items()}


def assert_equal(found, expected, tolerance):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(
            found[1][name],
            grad,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("kind", FLAT)
def test_full_training_has_the_same_losses_and_gradients_with_and_without_checkpointing(kind, monkeypatch):
    model, tolerance = tiny.model("full", kind, TASKS).train(), 1e-5
    if kind not in ROUNDED:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # heads and losses
        model, tolerance = model.double(), 1e-9
    padded, stream = pair(model.backbone.family)
    expected = outcome(model, padded)
    assert sum(grad.abs().sum() > 0 for grad in expected[1].values()) > 10

    once = outcome(model, stream)
    model.backbone.checkpoint_activations()
    again = outcome(model, stream)

    assert_equal(once, expected, tolerance)
    assert_equal(again, expected, tolerance)
    assert_equal(outcome(model, padded), expected, tolerance)


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2"])
def test_one_masked_product_for_all_rows_learns_the_same_as_a_product_per_part(kind, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # heads and losses
    model = tiny.disturb(tiny.model("lora-per-task", kind, TASKS, alphas={"b": 5.0})).double().train()
    _, stream = pair(model.backbone.family)
    expected, used = outcome(model, stream), []

    monkeypatch.setattr(_lora, "at_once", lambda x, parts, columns: used.append(columns) or parts > 1)
    found = outcome(model, stream)

    assert set(used) == {3 * 8} and expected[1]["bank"].abs().sum() > 0
    assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, kind in itertools.product(strategies.names(), ("bert", "t5", "llama", "gpt2"))
        if {"bert": "encoder", "t5": "encoder-decoder"}.get(kind, "decoder") in strategies.get(name).families
    ],
)
def test_every_strategy_has_the_same_losses_and_gradients(name, kind):
    options = {"dropout": 0.0} if hasattr(strategies.get(name)(), "dropout") else {}
    model = tiny.disturb(tiny.model(name, kind, TASKS, **options)).train()
    padded, stream = pair(model.backbone.family)
    expected = outcome(model, padded)

    assert_equal(outcome(model, stream), expected, 1e-5)
    model.backbone.checkpoint_activations()
    assert_equal(outcome(model, stream), expected, 1e-5)


@pytest.mark.parametrize("kind", FLAT)
def test_a_network_is_tried_and_left_as_it_was(kind):
    backbone = tiny.backbone(kind)
    configs = [module.config for module in backbone.net.modules() if hasattr(module, "config")]
    before = [copy.deepcopy(config.__dict__) for config in configs]

    assert flat.supported(backbone)

    assert [config.__dict__ for config in configs] == before
    assert attention.current() is None
    assert not any(module._forward_pre_hooks for module in backbone.net.modules())


@pytest.mark.parametrize("kind", ["deberta", "gemma2", "mamba"])
def test_a_network_that_mixes_tokens_in_its_own_way_stays_padded(kind):
    assert not flat.supported(tiny.backbone(kind))


def test_weights_that_are_not_there_cannot_be_tried():
    with torch.device("meta"):
        net = tr.BertModel(tr.BertConfig(**PLAIN), add_pooling_layer=False)

    assert not flat.supported(Backbone(net, None, "encoder"))


def test_predictions_are_the_same():
    model = tiny.disturb(tiny.model("full", "bert", TASKS))
    padded, stream = (model.predict(batch) for batch in pair("encoder"))

    for ours, theirs in zip(stream, padded, strict=True):
        assert [row["value"] for row in ours] == [row["value"] for row in theirs]
        torch.testing.assert_close(
            *(torch.tensor([row["scores"] for row in own]) for own in (ours, theirs)), rtol=1e-4, atol=1e-5
        )


def reference(query, key, value, bias, plan):
    """Attention of every sequence by itself, and nothing fused."""
    out, at, seen = [], 0, 0
    for i, ((n, lq), (_, lk)) in enumerate(zip(plan.queries, plan.keys)):
        for j in range(n):
            q = query[:, at + j * lq : at + (j + 1) * lq]
            k, v = (
                x[:, seen + j * lk : seen + (j + 1) * lk].repeat_interleave(len(query) // len(key), 0)
                for x in (key, value)
            )
            scores = plan.scaling * q @ k.transpose(1, 2)
            if bias is not None:
                scores = scores + bias[:, :lq, :lk]
            if plan.bands[i] is not None:
                scores = scores + plan.bands[i]
            if plan.paddings[i] is not None:
                padded = plan.paddings[i][j, 0, 0]
                scores = torch.cat(
                    [
                        scores[..., : -len(padded)],
                        scores[..., -len(padded) :].masked_fill(padded, torch.finfo(scores.dtype).min),
                    ],
                    -1,
                )
            out.append((scores.softmax(-1) @ v).transpose(0, 1))
        at, seen = at + n * lq, seen + n * lk
    return torch.cat(out).unsqueeze(0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rounded", [1, 4], ids=["as long as they are", "rounded"])
@pytest.mark.parametrize("cached", [1 << 20, 3000, 1], ids=["whole", "by sequences", "by heads"])
def test_attention_in_blocks_is_attention_of_every_sequence_alone(
    cached, window, crossed, biased, rounded, monkeypatch
):
    monkeypatch.setattr(attention, "CACHED", cached)
    monkeypatch.setattr(attention, "_rounded", lambda length, x, dtype: -(-length // rounded) * rounded)
    torch.manual_seed(0)
    layout = lay_out(BLOCKS, np.array(LENGTHS), TARGETS)
    active = attention.Active(layout)
    keys, queries = layout.source, layout.target if crossed else layout.source
    query = torch.randn(4, queries.tokens, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, keys.tokens, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    bias = torch.randn(4, 9, 9, dtype=torch.float64, requires_grad=True) if biased else None
    bands = [None if crossed else active.band(length, False, window, query) for _, length in keys.shapes]
    plan = attention.Plan(queries.shapes, keys.shapes, bands, active.paddings(keys), 0.3, 0.0)

    found = attention.BlockAttention.apply(query, key, value, bias, plan)
    expected = reference(query, key, value, bias, plan)

    inputs = [x for x in (query, key, value, bias) if x is not None]
    weight = torch.randn_like(found)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_attention_in_bfloat16_has_few_shapes_and_stays_near_float32(monkeypatch):
    monkeypatch.setattr(attention, "SMALL", 0)
    shapes = ((3, 5), (2, 33), (1, 64))
    exact = [torch.randn(2, 145, 8, requires_grad=True) for _ in range(3)]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    plan = attention.Plan(shapes, shapes, [None] * 3, [None] * 3, 0.5, 0.0)
    seen, bmm = set(), torch.bmm
    monkeypatch.setattr(
        torch, "bmm", lambda a, b, **more: seen.update(a.shape[1:], b.shape[1:]) or bmm(a, b, **more)
    )

    found = attention.BlockAttention.apply(*rough, None, plan)
    grads = torch.autograd.grad(found.sum() + found[..., 0].sum(), rough)

    assert seen == {8, 32, 64}
    expected = reference(*exact, None, plan)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    expected_grads = torch.autograd.grad(expected.sum() + expected[..., 0].sum(), exact)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("cached", [1 << 20, 1])
def test_dropout_inside_attention_has_its_own_gradient(cached, monkeypatch):
    monkeypatch.setattr(attention, "CACHED", cached)
    shapes = ((2, 3), (1, 2))
    inputs = [torch.randn(2, 8, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    plan = attention.Plan(shapes, shapes, [None] * 2, [None] * 2, 0.5, 0.4)

    def attend(*inputs):
        torch.manual_seed(3)
        return attention.BlockAttention.apply(*inputs, None, plan)

    assert torch.autograd.gradcheck(attend, inputs)
    calm = attention.BlockAttention.apply(*inputs, None, replace(plan, dropout=0.0))
    mean = torch.stack([attention.BlockAttention.apply(*inputs, None, plan) for _ in range(1000)]).mean(0)
    assert (mean - calm).abs().max() < 0.25


def test_bf16_autocast_computes_in_bf16_and_stays_near_float32():
    model = tiny.disturb(tiny.model("full", "bert", TASKS)).train()
    _, stream = pair("encoder")
    exact = outcome(model, stream)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = outcome(model, stream)

    assert {grad.dtype for grad in rough[1].values()} == {torch.float32}
    torch.testing.assert_close(rough[0], exact[0], rtol=0.05, atol=0.02)


def test_streams_of_sources_and_targets_never_have_equally_many_tokens():
    layout = lay_out(np.array([0, 0, 1]), np.array([4, 3, 5]), np.array([2, 4, 5]))

    assert layout.source.tokens == 13
    assert layout.target.tokens == 14
    assert layout.blocks == ((2, 4, 4), (1, 5, 6))
    assert layout.target.width == 6
    assert layout.target.mask.sum() == 11
