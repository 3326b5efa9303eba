"""Backbones with random weights as folders that transformers loads: the families of the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as tr
from hub_rows import ROWS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, VOCABULARY = 32, 320
SIZE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Backbones by a part of their name: the network, and what the tokenizer puts around a text and calls what.
STAND_INS = {
    "minilm": (
        lambda ids: tr.BertModel(tr.BertConfig(**SIZE, **ids), add_pooling_layer=False),
        ("<s> $A </s>", "<s> $A </s> $B </s>"),
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
    ),
    "ModernBERT": (
        lambda ids: tr.ModernBertModel(
            tr.ModernBertConfig(**SIZE, **ids, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2)
        ),
        ("<s> $A </s>", "<s> $A </s> $B </s>"),
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
    ),
    "t5": (
        lambda ids: tr.T5ForConditionalGeneration(
            tr.T5Config(
                **ids, d_model=WIDTH, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        ),
        ("$A </s>", "$A </s> $B </s>"),
        {"eos_token": "</s>", "pad_token": "<pad>"},
    ),
    "SmolLM2": (
        lambda ids: tr.LlamaForCausalLM(tr.LlamaConfig(**SIZE, **ids, num_key_value_heads=1)),
        None,
        {"bos_token": "<s>", "eos_token": "</s>"},  # no padding token, as in the original
    ),
}


def stand_in(backbone: str, folder: Path) -> Path:
    """A folder with a random network of the backbone's family and a byte-level tokenizer."""
    name = next((part for part in STAND_INS if part in backbone), None)
    assert name, f"{backbone} has no stand-in: add one to STAND_INS"
    network, around, special = STAND_INS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps([row for row, _ in ROWS.values()])], trainer)
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around[0], pair=around[1], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    torch.manual_seed(0)
    made = network({"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    made.save_pretrained(folder)
    tr.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
