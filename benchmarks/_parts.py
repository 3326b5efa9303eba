"""What the benchmarks are made of: networks with random weights, rows of random tokens, our side and peft's.

Our side goes through the same doors as `mtnlp finetune` (config, assemble, the rooms), never through
internals.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp import assemble, config
from mtnlp.config import Recipe
from mtnlp.data.encode import Columns
from mtnlp.data.store import TokenStore
from mtnlp.data.task_data import TaskData
from mtnlp.resolve import Plan
from mtnlp.tasks.spec import TaskSpec
from mtnlp.train.engine import Engine
from mtnlp.train.loop import Run

VOCABULARY, PAD, END, FIRST = 8192, 0, 1, 5
LABELS = ("a", "b", "c", "d")
RANK, ALPHA = 8, 16.0
LORA = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0}
BERT_LINEARS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
T5_LINEARS = r".*block\.\d+\..*\.(q|k|v|o|wi|wo)"


# Networks.


def bert_shape(width: int, layers: int, **more: Any) -> Any:
    """The configuration of a BERT without dropout."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=512,
        pad_token_id=PAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )


def bert(*, attention: str = "eager", labels: int = 0, width: int = 384, layers: int = 6) -> nn.Module:
    """A BERT-shaped encoder, the same weights every time; with a classifier if labels > 0."""
    from transformers import BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    settings = bert_shape(width, layers, num_labels=labels or 2, attn_implementation=attention)
    return BertForSequenceClassification(settings) if labels else BertModel(settings, add_pooling_layer=False)


def t5(*, attention: str = "eager", width: int = 384, layers: int = 4) -> nn.Module:
    """A T5-shaped encoder-decoder without dropout, the same weights every time."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    settings = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=64,
        d_ff=4 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=width // 64,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=END,
        attn_implementation=attention,
    )
    return T5ForConditionalGeneration(settings)


def bert2bert(*, attention: str = "eager", width: int = 384, layers: int = 4) -> nn.Module:
    """Two BERTs as an encoder-decoder, the shape of `minilm-seq2seq`; the same weights every time."""
    from transformers import EncoderDecoderConfig, EncoderDecoderModel

    torch.manual_seed(0)
    halves = [bert_shape(width, layers, is_decoder=last, add_cross_attention=last) for last in (False, True)]
    joint = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    joint.decoder_start_token_id, joint.pad_token_id, joint.eos_token_id = PAD, PAD, END
    joint.vocab_size = VOCABULARY
    net = EncoderDecoderModel(config=joint)
    net.set_attn_implementation(attention)
    return net


def autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


# Rows.


def random_tokens(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(FIRST, VOCABULARY, length) for length in lengths]


def classified(tokens: Sequence[np.ndarray], labels: np.ndarray) -> TokenStore:
    """Rows with a label each, as an encoder reads them."""
    return TokenStore.from_columns(
        Columns({**_sources(tokens), "target": labels.astype(np.int64)}, "classify", "encoder", 0, True, ())
    )


def written(tokens: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> TokenStore:
    """Rows with a text each, as an encoder-decoder reads them."""
    sizes = np.array([len(row) for row in targets], np.int32)
    arrays = {
        **_sources(tokens),
        "target_length": sizes,
        "target_counts": sizes,
        "target_tokens": np.concatenate(targets).astype(np.uint16),
    }
    return TokenStore.from_columns(Columns(arrays, "generate", "encoder-decoder", 0, True, ()))


def _sources(tokens: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    sizes = np.array([len(row) for row in tokens], np.int32)
    return {
        "sequences": np.ones(len(tokens), np.int32),
        "length": sizes,
        "target_length": np.zeros(len(tokens), np.int32),
        "token_counts": sizes,
        "tokens": np.concatenate(tokens).astype(np.uint16),
    }


# Our side.


def recipe(strategy: str, *, attention: str = "auto", **train: Any) -> Recipe:
    """A recipe with the house defaults, but for what is given; its tasks and backbone are put in by hand."""
    options = LORA if strategy.startswith("lora") else {}
    slot = {"name": strategy, **options}
    model = {"backbone": "random", "strategy": slot, "max_length": 512, "head_dropout": 0.0}
    model["attention"] = attention
    return config.load({"name": "bench", "model": model, "tasks": ["random"], "train": {"steps": 1, **train}})


def settled(strategy: str, **options: Any) -> tuple[Recipe, Engine]:
    """The same with what it leaves open chosen for this machine, as `mtnlp finetune` does first."""
    return assemble.settle(recipe(strategy, **options))


def our_run(net: nn.Module, stores: Sequence[TokenStore], settings: Recipe) -> Run:
    """A run of settled `settings` on `net`, with a task for every store, as `mtnlp finetune` makes it.

    The network is written to a folder and loaded like any backbone. Train inside `engine.applied(...)`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    form, kind = stores[0].form, stores[0].kind
    labels = LABELS if kind == "classify" else None
    specs = [TaskSpec(f"task{i}", kind, {}, labels=labels) for i in range(len(stores))]
    with TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        model = settings.model.model_copy(update={"backbone": folder})
        settings = settings.model_copy(update={"model": model})
        backbone = assemble.build_backbone(settings)
    assert backbone.family == form, f"a {backbone.family} for rows of an {form}"
    plan = Plan(settings, tuple(TaskData(spec, {}) for spec in specs))
    encoder = assemble.encoder_for(settings, backbone.tokenizer, backbone.family)
    return assemble.build_run(plan, backbone, stores, encoder, assemble.build_accelerator(settings))


# Peft's side.


def lora_config(targets: str = BERT_LINEARS, task_type: str | None = None) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type=task_type)


def tokenizer() -> Any:
    """One that only pads: the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[PAD]": PAD, "[END]": END, "[UNK]": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]", model_max_length=512
    )


def with_peft(net: nn.Module, adapters: int = 1, targets: str = BERT_LINEARS, **options: Any) -> nn.Module:
    """`net` with that many LoRAs called a0, a1, ... on all linear layers of its blocks, a0 active."""
    from peft import get_peft_model

    made = get_peft_model(net, lora_config(targets), adapter_name="a0", **options)
    for i in range(1, adapters):
        made.add_adapter(f"a{i}", lora_config(targets))
    return made.train()


def pooled_loss(head: nn.Linear, hidden: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy over the mean of each row's tokens, in float32: what a classify head computes."""
    weight = mask.unsqueeze(-1).float()
    states = (hidden.float() * weight).sum(1) / weight.sum(1)
    return F.cross_entropy(head(states), labels, reduction="sum")
