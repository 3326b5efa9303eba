"""Backbones with random weights and batches for them: 2 blocks, width 32, 60 tokens. No files, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers as tr
from torch import Tensor

from mtnlp import heads, strategies
from mtnlp.data.batch import Batch, TaskSlice
from mtnlp.models.backbone import Backbone
from mtnlp.models.multitask import MultitaskModel
from mtnlp.strategies._bank import generator_for
from mtnlp.tasks.spec import TaskSpec

VOCABULARY, PAD = 60, 0
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _bert2bert() -> tr.EncoderDecoderModel:
    """Two BERTs, one of them with cross-attention."""
    sizes = {**_IDS, **_BLOCKS, **_NO_DROPOUT, "max_position_embeddings": 64}
    net = tr.EncoderDecoderModel(
        encoder=tr.BertModel(tr.BertConfig(**sizes), add_pooling_layer=False),
        decoder=tr.BertLMHeadModel(tr.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)),
    )
    net.config.decoder_start_token_id, net.config.pad_token_id = 1, PAD
    return net


NETS = {
    "bert": (
        "encoder",
        lambda: tr.BertModel(
            tr.BertConfig(**_IDS, **_BLOCKS, **_NO_DROPOUT, max_position_embeddings=64),
            add_pooling_layer=False,
        ),
    ),
    "t5": (
        "encoder-decoder",
        lambda: tr.T5ForConditionalGeneration(
            tr.T5Config(
                **_IDS,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=PAD,
            )
        ),
    ),
    "llama": (
        "decoder",
        lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**_IDS, **_BLOCKS, max_position_embeddings=64)),
    ),
    "bert2bert": ("encoder-decoder", _bert2bert),
    "modernbert": (
        "encoder",
        lambda: tr.ModernBertModel(
            tr.ModernBertConfig(**_IDS, **_BLOCKS, cls_token_id=1, sep_token_id=2, max_position_embeddings=64)
        ),
    ),
    "gpt2": (
        "decoder",
        lambda: tr.GPT2LMHeadModel(
            tr.GPT2Config(
                **_IDS,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        ),
    ),
}


def backbone(kind: str, *, seed: int = 0) -> Backbone:
    """One of NETS; the same weights for the same seed."""
    family, make = NETS[kind]
    torch.manual_seed(seed)
    net = make()
    net.set_attn_implementation("eager")
    return Backbone(net.eval(), None, family, name=f"tiny-{kind}")


def batch(family: str, task_ids: Sequence[int], *, length: int = 9, seed: int = 0, labels: int = 3) -> Batch:
    """A batch with one sequence per entry of the sorted `task_ids`; lengths differ. Row i is the same for all
    task_ids of the same seed, so that parts of a batch can be compared."""
    assert list(task_ids) == sorted(task_ids)
    generator = torch.Generator().manual_seed(seed)
    count = len(task_ids)
    ids = torch.randint(3, VOCABULARY, (count, length), generator=generator)
    lengths = torch.randint(5, length + 1, (count, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    targets = {
        "encoder": lambda: None,
        "encoder-decoder": lambda: torch.randint(3, VOCABULARY, (count, 5), generator=generator),
        "decoder": lambda: ids.masked_fill((mask == 0) | (torch.arange(length) < 3), -100),
    }[family]()
    if family == "encoder-decoder":
        targets[:, 3:] = targets[:, 3:].masked_fill((torch.arange(count) % 2 == 0)[:, None], -100)
    classes = torch.randint(0, labels, (count,), generator=generator)
    return assemble(ids.masked_fill(mask == 0, PAD), mask, targets, classes, task_ids)


def assemble(
    ids: Tensor, mask: Tensor, targets: Tensor | None, classes: Tensor, task_ids: Sequence[int]
) -> Batch:
    """A Batch of these rows with one slice per task."""
    slices = []
    for task in sorted(set(task_ids)):
        start = list(task_ids).index(task)
        stop = start + list(task_ids).count(task)
        slices.append(
            TaskSlice(
                task,
                start,
                stop,
                np.arange(start, stop),
                torch.ones(stop - start, dtype=torch.long),
                classes[start:stop],
            )
        )
    return Batch(ids, mask, None, targets, torch.tensor(task_ids), tuple(slices))


def part(whole: Batch, rows: slice) -> Batch:
    """Some rows of a batch as a batch of their own."""
    classes = torch.cat([piece.target for piece in whole.slices])[rows]
    targets = None if whole.labels is None else whole.labels[rows]
    return assemble(
        whole.input_ids[rows], whole.attention_mask[rows], targets, classes, whole.task_ids[rows].tolist()
    )


def model(strategy: str, kind: str, tasks: Sequence[str], *, seed: int = 13, **options) -> MultitaskModel:
    """A tiny multi-task model with fresh parameters; classification heads on encoders. In eval mode."""
    made, base = strategies.get(strategy)(**options), backbone(kind)
    made.attach(base, tasks, seed)
    found = {}
    if base.family == "encoder":
        for task in tasks:
            torch.manual_seed(generator_for(seed, task).initial_seed())
            spec = TaskSpec(task, "classify", {}, labels=("x", "y", "z"))
            found[task] = heads.for_kind("classify")(base.width, spec, dropout=0.0)
    return MultitaskModel(base, made, found, tasks).eval()


def disturb(made: MultitaskModel, scale: float = 0.3) -> MultitaskModel:
    """Move everything trainable away from its start, each tensor by random numbers that depend on its name
    only."""
    for name, tensor in made.trainable_state().items():
        tensor += (
            scale
            * tensor.std().nan_to_num().clamp(min=0.1)
            * torch.randn(tensor.shape, generator=generator_for(0, name))
        )
    return made
