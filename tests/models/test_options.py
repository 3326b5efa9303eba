"""Options that share their context against each option alone, on every family, and what a predictor makes of
them."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_hub
import torch
import torch.nn.functional as F
import transformers as tr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtnlp import strategies
from mtnlp.bench.predict import Predictor
from mtnlp.bench.questions import Questions
from mtnlp.data.encode import Encoder
from mtnlp.data.packed import Packed, option_batches
from mtnlp.data.store import TokenStore
from mtnlp.models import options
from mtnlp.models.backbone import Backbone
from mtnlp.models.multitask import MultitaskModel
from mtnlp.tasks.spec import Example, TaskSpec, Template

TASKS = ("a", "b", "c")
IDS = tiny._IDS
SIZES = {**IDS, **tiny._BLOCKS, "max_position_embeddings": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
BART = {
    **IDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "dropout": 0.0,
}  # fmt: skip
OPT = {
    **IDS, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "ffn_dim": 48, "max_position_embeddings": 64, "dropout": 0.0,
}  # fmt: skip


def _roberta2roberta() -> tr.EncoderDecoderModel:
    """Positions are counted from the one after the padding index."""
    sizes = {**SIZES, **tiny._NO_DROPOUT, "pad_token_id": 1, "bos_token_id": 0}
    decoder = tr.RobertaConfig(**sizes, is_decoder=True, add_cross_attention=True)
    net = tr.EncoderDecoderModel(
        encoder=tr.RobertaModel(tr.RobertaConfig(**sizes), add_pooling_layer=False),
        decoder=tr.RobertaForCausalLM(decoder),
    )
    net.config.decoder_start_token_id, net.config.pad_token_id = 0, 1
    return net


NETS = {
    **{kind: made for kind, made in tiny.NETS.items() if made[0] != "encoder"},
    "bart": ("encoder-decoder", lambda: tr.BartForConditionalGeneration(tr.BartConfig(**BART))),
    "roberta2roberta": ("encoder-decoder", _roberta2roberta),
    "llama grouped": ("decoder", lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**GROUPED))),
    "qwen3": ("decoder", lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**GROUPED))),
    "opt": ("decoder", lambda: tr.OPTForCausalLM(tr.OPTConfig(**OPT))),
    "gemma2": ("decoder", lambda: tr.Gemma2ForCausalLM(tr.Gemma2Config(**GROUPED))),
    "gemma3": (
        "decoder",
        lambda: tr.Gemma3ForCausalLM(tr.Gemma3TextConfig(**GROUPED, sliding_window=24)),
    ),
    "mistral window": (
        "decoder",
        lambda: tr.MistralForCausalLM(tr.MistralConfig(**GROUPED, sliding_window=4)),
    ),
    "mamba": (
        "decoder",
        lambda: tr.MambaForCausalLM(tr.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)),
    ),
    "bloom": (
        "decoder",
        lambda: tr.BloomForCausalLM(tr.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)),
    ),
}
ALONE = ("mamba", "mistral window", "bloom")  # state spaces, a window smaller than any row, ALiBi
WINDOWS = {"gemma2": 4096, "gemma3": 24}
PACKED = [name for name in NETS if name not in ALONE]
# Networks that norm, rotate or softmax in float32 whatever they are given.
ROUNDED = ("llama", "llama grouped", "qwen3", "gemma2", "gemma3")


@pytest.fixture(autouse=True)
def _more_networks(monkeypatch):
    monkeypatch.setattr(tiny, "NETS", NETS)


def made_up(form):
    """Stores of three tasks whose documents have 1 to 6 options, of which some begin alike, some are the same
    and some are one token; one context has but one token, one document two different contexts."""
    draw, stores, counts = np.random.default_rng(0), {}, {0: [4, 1, 6], 1: [2], 2: [3, 5]}
    for task, own in counts.items():
        both = []
        for document, n in enumerate(own):
            context = draw.integers(3, 60, 1 if document == 1 else draw.integers(2, 13)).tolist()
            for option in range(n):
                text = [(5, 6, 7), (5,), (5, 8), (5, 6, 7), (9, 5, 6, 11), (5, 6, 12)][option]
                both.append(
                    (context[: -1 if (task, option) == (2, 1) and document == 0 else None], list(text))
                )
        stores[task] = store_of(both, form)
    return stores, counts


def store_of(both, form):
    """A store of (prompt, target) rows."""

    def lengths(rows):
        return np.array([len(row) for row in rows], np.int32)

    prompts, targets = ([own[side] for own in both] for side in range(2))
    apart = form == "encoder-decoder"
    rows = prompts if apart else [prompt + target for prompt, target in both]
    arrays = {
        "sequences": np.ones(len(both), np.int32),
        "length": lengths(rows),
        "target_length": lengths(targets) * apart,
        "token_counts": lengths(rows),
        "tokens": np.concatenate(rows).astype(np.uint16),
        "prompt_lengths": lengths(prompts),
        "target_counts": lengths(targets),
        "target_tokens": np.concatenate(targets).astype(np.uint16),
    }
    meta = {"kind": "choose", "form": form, "classes": 0, "labelled": True, "truncated": 0}
    return TokenStore(arrays, meta)


def scored(model, longest, *, max_tokens=120):
    """(sums, tokens) of every option, by task."""
    stores, counts = made_up(model.backbone.family)
    found = {task: np.full((2, len(store)), np.nan) for task, store in stores.items()}
    batches = option_batches(
        stores, counts, max_tokens=max_tokens, pad_id=tiny.PAD, form=model.backbone.family, longest=longest
    )
    for _, pieces in batches:
        for piece in pieces:
            assert isinstance(piece, Packed) == (longest > 0)
            sums, tokens = model.option_scores(piece)
            for part in piece.slices:
                here = slice(part.start, part.stop)
                found[part.task][:, part.rows] = np.stack([sums[here].numpy(), tokens[here].numpy()])
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        *itertools.product(["full"], PACKED),
        *itertools.product(["lora-per-task"], ["t5", "bart", "llama", "gpt2"]),
    ],
)
def test_a_shared_context_gives_every_option_the_likelihood_it_has_alone(
    strategy, kind, attention, monkeypatch
):
    model, tolerance = tiny.disturb(tiny.model(strategy, kind, TASKS)), 1e-5
    if attention == "sdpa" and kind == "gemma2":
        pytest.skip("has none")
    model.backbone.net.set_attn_implementation(attention)
    if kind not in ROUNDED:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        model, tolerance = model.double(), 1e-9
    alone = scored(model, 0)

    for max_tokens in (30, 120, 5000):
        together = scored(model, options.ANY, max_tokens=max_tokens)

        for task, expected in alone.items():
            np.testing.assert_allclose(together[task], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", NETS)
def test_a_network_is_tried_and_left_as_it_was(kind):
    model = tiny.model("full", kind, TASKS)
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    before = [copy.deepcopy(config.__dict__) for config in configs]

    found = options.longest(model, 0)

    assert found == (0 if kind in ALONE else WINDOWS.get(kind, options.ANY))
    assert [config.__dict__ for config in configs] == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any("compute_bias" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_trial_sees_what_is_not_exact(kind, monkeypatch):
    model = tiny.model("full", kind, TASKS)
    monkeypatch.setattr(options, "_placed", lambda net, packed: nullcontext())

    assert options.longest(model, 0) == 0


# A predictor, from texts.


@pytest.fixture(scope="module", params=["t5", "SmolLM2"])
def backbone(request, tmp_path_factory):
    folder = tiny_hub.stand_in(request.param, tmp_path_factory.mktemp("net"))
    found = Backbone.load(str(folder)).eval()
    with torch.no_grad():
        for parameter in found.net.parameters():
            parameter.mul_(2)
    return found


def predictor(backbone, **more):
    model = MultitaskModel(backbone, strategies.get("full")(), {}, ["pick", "mood"]).eval()
    return Predictor(model, Encoder(backbone.tokenizer, backbone.family, 256, 16), **more)


COUNT = 14
WORDS = ["river", "answer", "music", "light", "stone", "winter", "market", "doctor", "letter", "garden"]


def asked():
    """Two tasks: choices that differ by document, and four fixed labels, two of which begin alike."""
    draw = np.random.default_rng(1)

    def text(n):
        return " ".join(draw.choice(WORDS, n))

    def choices(n):
        return tuple(text(draw.integers(1, 4)) for _ in range(n))

    lengths = draw.integers(1, 15, (2, COUNT))
    picks = [{"question": text(n), "choices": choices(2 + i % 4)} for i, n in enumerate(lengths[0])]
    labels = ("very good", "very bad", "good", "none of these at all")
    specs = (
        TaskSpec("pick", "choose", {}, templates={"x": Template("{{ question }}:")}),
        TaskSpec("mood", "classify", {}, labels=labels),
    )
    inputs = (picks, [{"text": text(n)} for n in lengths[1]])
    return {
        task: Questions(spec, [Example("x", i, own, 0) for i, own in enumerate(rows)])
        for task, (spec, rows) in enumerate(zip(specs, inputs, strict=True))
    }


def by_hand(backbone, encoder, part, example, option):
    """Log-likelihood of one option, one row, no mask, all logits; and its tokens."""
    columns = encoder.encode(part.spec, [replace(example, target=option)]).arrays
    tokens, net = torch.from_numpy(columns["tokens"].astype(np.int64))[None], backbone.net
    with torch.no_grad():
        if backbone.family == "decoder":
            n = int(columns["prompt_lengths"][0])
            chances, target = net(tokens).logits[0, n - 1 : -1].log_softmax(-1), tokens[0, n:]
        else:
            target = torch.from_numpy(columns["target_tokens"].astype(np.int64))
            chances = net(tokens, labels=target[None]).logits[0].log_softmax(-1)
    return -F.nll_loss(chances, target, reduction="sum").item(), len(target)


def test_one_row_per_document_gives_what_each_option_gives_by_hand(backbone):
    questions, made = asked(), predictor(backbone, max_tokens=300)
    made(questions)  # the network has been tried
    rows = []
    read = backbone.net.get_encoder() if backbone.family == "encoder-decoder" else backbone.net
    handle = read.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    found = made(questions)

    handle.remove()
    assert sum(rows) <= 2 * COUNT
    for task, part in questions.items():
        for example, answer in zip(part.examples, found[task], strict=True):
            n = len(example.inputs.get("choices", part.spec.labels))
            expected = [by_hand(backbone, made.encoder, part, example, option) for option in range(n)]
            sums, tokens = zip(*expected, strict=True)
            assert answer["logprobs"] == pytest.approx(sums, abs=1e-4)
            assert answer["tokens"] == list(tokens)
            scores = [s / t if task == 0 else s for s, t in zip(answer["logprobs"], tokens, strict=True)]
            assert answer["scores"] == pytest.approx(scores, abs=1e-9)
            assert answer["value"] == int(np.argmax(scores))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), max_tokens=st.sampled_from([40, 200, 5000]), count=st.integers(1, COUNT))
def test_scores_depend_on_no_other_document_nor_on_any_order(backbone, seed, max_tokens, count):
    draw, questions = np.random.default_rng(seed), asked()
    expected = predictor(backbone)(questions)
    order = draw.permutation(COUNT)[:count]
    some = {task: [part.examples[i] for i in order] for task, part in questions.items()}
    turns = [draw.permutation(len(example.inputs["choices"])) for example in some[0]]
    some[0] = [
        replace(own, inputs={**own.inputs, "choices": tuple(own.inputs["choices"][k] for k in turn)})
        for own, turn in zip(some[0], turns, strict=True)
    ]

    found = predictor(backbone, max_tokens=max_tokens)(
        {task: replace(part, examples=some[task]) for task, part in questions.items()}
    )

    for place, (i, turn) in enumerate(zip(order, turns, strict=True)):
        turned = [expected[0][i]["logprobs"][k] for k in turn]
        assert found[0][place]["logprobs"] == pytest.approx(turned, abs=1e-4)
        assert found[1][place]["logprobs"] == pytest.approx(expected[1][i]["logprobs"], abs=1e-4)


@pytest.mark.parametrize("longest", [None, 0])
def test_a_stop_after_some_batches_changes_no_bit_of_the_rest(backbone, longest):
    questions = asked()
    made = predictor(backbone, max_tokens=150)
    made._longest = longest
    batches = list(made.batches(questions))
    assert len(batches) > 4
    whole = {(task, row): answer for batch in batches for task, row, answer in batch}
    assert len(whole) == sum(map(len, batches)) == 2 * COUNT

    done = {(task, row) for batch in batches[:3] for task, row, _ in batch}
    left = {task: [row for row in range(COUNT) if (task, row) not in done] for task in questions}
    rest = made(
        {
            task: replace(part, examples=[part.examples[row] for row in left[task]])
            for task, part in questions.items()
        }
    )

    for task, rows in left.items():
        assert rest[task] == [whole[task, row] for row in rows]
