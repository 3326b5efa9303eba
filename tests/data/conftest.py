"""Small tokenizers of the three usual makes, trained on the spot, and one small task of every kind."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mtnlp.tasks.spec import TaskSpec

TEXT = """the quick brown fox jumps over a lazy dog while Berlin's mayor naïvely paid 1,234 euros for
unbelievable tea-time stories about rivers mountains translation positive negative answer question city of
Paris lies on the Seine yes no none person place thing great terrible O B-loc I-loc"""
WORDS = TEXT.split()


def wordpiece() -> Tokenizer:
    """As BERT: [CLS] a [SEP] b [SEP], lower case, accents off, segment ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        WORDS, trainers.WordPieceTrainer(show_progress=False, vocab_size=120, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2: bytes, the space belongs to the next token, nothing around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=340, special_tokens=["<|end|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5: sentence pieces, a text ends in </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        show_progress=False, vocab_size=150, special_tokens=special, unk_token="<unk>"
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3 + WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


SEGMENTS = ["input_ids", "token_type_ids", "attention_mask"]
MAKES = {
    "bert": (
        wordpiece,
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "model_input_names": SEGMENTS,
        },
    ),
    "gpt": (byte_level, {"eos_token": "<|end|>", "bos_token": "<|end|>"}),
    "t5": (metaspace, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


@pytest.fixture(scope="session")
def tokenizers():
    """make -> a transformers tokenizer"""
    from transformers import PreTrainedTokenizerFast

    return {
        name: PreTrainedTokenizerFast(tokenizer_object=make(), **special)
        for name, (make, special) in MAKES.items()
    }


@pytest.fixture
def sentence():
    """sentence(n, seed) -> n words"""
    return lambda n, seed=0: " ".join(random.Random(seed).choices(WORDS[:40], k=n))


@pytest.fixture
def tasks(sentence):
    """kind -> (spec, rows), rows in canonical columns and of many lengths"""
    labels = ("negative", "positive", "none")
    sizes = [1, 3, 7, 2, 19, 5, 30, 4, 11]
    texts = [sentence(n, seed=i) for i, n in enumerate(sizes)]
    contexts = [sentence(n * 6, seed=50 + i) for i, n in enumerate(sizes)]
    # Every answer is the context from the start of its middle word to its end; every third question has none.
    starts = [[] if i % 3 == 0 else [c.index(c.split()[len(c.split()) // 2])] for i, c in enumerate(contexts)]
    spans = [
        {"text": [c[s:] for s in own], "answer_start": own} for c, own in zip(contexts, starts, strict=True)
    ]
    rows = {
        "classify": [{"text": t, "label": i % 3} for i, t in enumerate(texts)],
        "pair": [
            {"text": t, "text_pair": c, "label": i % 3}
            for i, (t, c) in enumerate(zip(texts, contexts, strict=True))
        ],
        "ordinal": [{"text": t, "label": i % 3} for i, t in enumerate(texts)],
        "multilabel": [
            {"text": t, "labels": [k for k in range(3) if i >> k & 1]} for i, t in enumerate(texts)
        ],
        "regress": [{"text": t, "score": i / 4} for i, t in enumerate(texts)],
        "choose": [
            {"question": t, "choices": [f"city {k}" for k in range(2 + i % 3)], "answer": i % 2}
            for i, t in enumerate(texts)
        ],
        "tag": [{"tokens": t.split(), "tags": [k % 3 for k in range(len(t.split()))]} for t in texts],
        "span": [
            {"question": t, "context": c, "answers": a}
            for t, c, a in zip(texts, contexts, spans, strict=True)
        ],
        "generate": [{"text": t, "target": c[:20]} for t, c in zip(texts, contexts, strict=True)],
    }
    labelled = ("classify", "pair", "ordinal", "multilabel", "tag")
    return {
        kind: (
            TaskSpec(f"toy/{kind}", kind, {"train": own}, labels=labels if kind in labelled else None),
            own,
        )
        for kind, own in rows.items()
    }
