"""Vectors of texts against the plain network on one text at a time, and against sentence-transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mtnlp.errors import MtnlpError
from mtnlp.models import embedding
from mtnlp.models.backbone import Backbone
from mtnlp.models.embedding import Embedder, embed, similarity
from mtnlp.models.places import packaged

STS = Path(__file__).parents[3] / "shared/data/tasks/sts_semeval/test.jsonl"
DRAW = np.random.default_rng(1)
TEXTS = [" ".join(f"w{i}" for i in DRAW.integers(3, 60, size)) for size in (5, 1, 17, 40, 3, 40, 9, 2)]


def tokenizer() -> tr.PreTrainedTokenizerFast:
    """One word for every token, between two special ones."""
    words = {word: i for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", *(f"w{i}" for i in range(3, 60))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", pair="[BOS] $A [EOS] $B [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return tr.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", model_max_length=64)


def backbone(kind: str) -> Backbone:
    made = tiny.backbone(kind)
    made.tokenizer = tokenizer()
    return made


def model(kind: str, tasks: tuple[str, ...]):
    made = tiny.disturb(tiny.model("lora-per-task", kind, tasks), scale=1.0)
    made.backbone.tokenizer = tokenizer()
    return made


@torch.no_grad()
def alone(made: Backbone, text: str, pooling: str) -> np.ndarray:
    """A vector by the bare network, without padding."""
    net = {"encoder": lambda: made.net, "decoder": lambda: made.net.base_model}.get(
        made.family, made.net.get_encoder
    )()
    states = net(torch.tensor([made.tokenizer(text)["input_ids"]])).last_hidden_state[0].double().numpy()
    return {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]


@pytest.mark.parametrize("kind", tiny.NETS)
@pytest.mark.parametrize("pooling", embedding.POOLINGS)
def test_texts_in_batches_get_the_vectors_that_the_bare_network_gives_each_alone(kind, pooling, monkeypatch):
    made = backbone(kind)
    expected = np.stack([alone(made, text, pooling) for text in TEXTS])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)

    found = embed(made, TEXTS, pooling=pooling, max_tokens=100)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / lengths, atol=1e-5)
    monkeypatch.setattr(embedding, "CHUNK", 3)
    as_they_are = embed(made, TEXTS, pooling=pooling, normalise=False, max_tokens=1000)
    np.testing.assert_allclose(as_they_are, expected, atol=1e-5 * lengths.max())


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_a_task_of_many_embeds_as_a_model_that_has_no_other_task(kind):
    many = model(kind, ("a", "b")).train()
    for task in "ab":
        single = model(kind, (task,))
        single.load_trainable_state({name: many.trainable_state()[name] for name in single.trainable_state()})

        found = embed(many, TEXTS, task=task)

        np.testing.assert_allclose(found, embed(single, TEXTS), atol=1e-5)
    assert np.abs(embed(many, TEXTS, task="a") - found).max() > 1e-2
    assert many.training and many.backbone.training


def test_prefixes_go_before_texts_of_their_role_and_survive_a_cut_that_is_told():
    made = backbone("bert")
    embedder = Embedder(made, query="w3 w4 ", document="w5 ", max_length=12)

    queries, documents = embedder.queries(TEXTS), embedder.documents(TEXTS)

    # Of 12 tokens 2 are special ones and 2 or 1 those of the prefix; text 6 has 9.
    assert (queries.cut, documents.cut) == ((2, 3, 5, 6), (2, 3, 5))
    for found, prefix in ((queries, "w3 w4 "), (documents, "w5 ")):
        expected = [" ".join((prefix + text).split()[:10]) for text in TEXTS]
        np.testing.assert_allclose(found.vectors, embed(made, expected), atol=1e-6)
    assert embed(made, []).shape == (0, 32) and embed(made, [""]).shape == (1, 32)


def test_similarity_is_the_cosine_of_each_pair_and_reads_a_text_once(monkeypatch):
    made = backbone("bert")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2]), (TEXTS[3], TEXTS[3]), (TEXTS[1], TEXTS[0])]
    a, b = ([alone(made, pair[side], "mean") for pair in pairs] for side in (0, 1))
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    read = []
    whole = Embedder._embed
    monkeypatch.setattr(Embedder, "_embed", lambda own, texts: read.extend(texts) or whole(own, texts))

    found, cut = similarity(Embedder(made, normalise=False), pairs)

    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == found[3] and sorted(read) == sorted(set(TEXTS[:4]))
    assert not cut.any()
    short = Embedder(made, max_length=10)
    lost = [TEXTS[i] for i in short.queries(TEXTS).cut]
    expected = [any(text in lost for text in pair) for pair in pairs]
    assert similarity(short, pairs)[1].tolist() == expected and len(set(expected)) == 2
    assert [own.shape for own in similarity(Embedder(made), [])] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pooling": "meen"}, "No pooling is called 'meen'. Did you mean 'mean'"),
        ({"max_length": 65}, "tiny-bert takes 64 tokens at most"),
        ({"max_length": 3}, "leaves too little room"),
        ({"max_tokens": 0}, "max_tokens=0 must be 1 or more"),
        ({}, r"with whose adapter texts are embedded: task=a1\|b1"),
        ({"task": "a"}, "The model knows no task 'a'. Did you mean 'a1'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, says):
    with pytest.raises(MtnlpError, match=says):
        Embedder(model("bert", ("a1", "b1")), **options)


def test_a_backbone_without_tasks_or_tokenizer_is_told_so():
    with pytest.raises(MtnlpError, match="a backbone by itself has no tasks"):
        Embedder(backbone("bert"), task="a")
    with pytest.raises(MtnlpError, match="tiny-bert has no tokenizer"):
        Embedder(tiny.backbone("bert"))


@pytest.mark.skipif(packaged() is None, reason="the weights of minilm are not installed")
@pytest.mark.skipif(not STS.exists(), reason="needs the shared task data")
def test_minilm_agrees_with_people_on_how_alike_sentences_are():
    from scipy.stats import spearmanr

    rows = [json.loads(line) for line in STS.read_text("utf-8").splitlines()[:150]]

    found, _ = similarity(
        Embedder(Backbone.load("minilm")), [(row["text"], row["text_pair"]) for row in rows]
    )

    assert spearmanr(found, [row["score"] for row in rows])[0] > 0.7


@pytest.mark.slow
@pytest.mark.skipif(packaged() is None, reason="the weights of minilm are not installed")
@pytest.mark.skipif(not find_spec("sentence_transformers"), reason="sentence-transformers is not installed")
def test_minilm_gives_the_vectors_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    texts = [
        "",
        "How are you?",
        "Ein Satz.",
        "中文",
        "a long one " * 300,
        *(f"number {i} " * i for i in range(20)),
    ]
    reference = SentenceTransformer(str(packaged()), device="cpu")

    found = embed(Backbone.load("minilm"), texts, max_length=reference.max_seq_length)

    np.testing.assert_allclose(found, reference.encode(texts, show_progress_bar=False), atol=1e-5)
