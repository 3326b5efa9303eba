"""Running a network on flat streams of tokens instead of padded batches, where it can.

Inside `Flat.on(layout)` the network takes (1, N) tokens: its attention follows the blocks of the layout, and
positions restart with every sequence. Outside, nothing of the network is changed. Whether a network can do it
is found out by running it both ways: `supported`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtnlp.data.batch import IGNORED, Batch
from mtnlp.data.stream import Layout, lay_out
from mtnlp.models import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mtnlp.models.backbone import Backbone

TOLERANCE = 1e-4  # of hidden states and losses in float32, relative to the largest where that is above 1
LONGEST_PROBE = 512  # tokens; attention windows above it are taken on trust


class Flat:
    """Switches one network between padded batches and flat streams.

    Args:
        net: its configurations, embeddings and attention modules must stay the same objects.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        attention.register()
        modules = list(net.modules())
        self._configs = list({id(m.config): m.config for m in modules if hasattr(m, "config")}.values())
        # BART and kin make the positions of tokens themselves.
        self._positions = [m for m in modules if isinstance(m, nn.Embedding) and _takes_positions(m)]
        # T5 and kin make a bias for every pair of tokens.
        self._biases = [m for m in modules if hasattr(m, "has_relative_attention_bias")]
        # RoBERTa counts positions from the one after its padding index.
        learned = [m for name, m in net.named_modules() if name.endswith("position_embeddings")]
        padding = [index for m in learned if (index := getattr(m, "padding_idx", None)) is not None]
        self._first = padding[0] + 1 if padding else 0

    def on(self, layout: Layout) -> AbstractContextManager:
        """Inside, the network takes streams that are laid out so."""
        return self._switched(attention.Active(layout))

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """context_fn of torch.utils.checkpoint: what ran flat runs flat again in backward, after `on`."""
        active = attention.current()
        return nullcontext(), nullcontext() if active is None else self._switched(active)

    def positions(self, net: nn.Module, layout: Layout) -> dict[str, Tensor]:
        """Arguments for `net`, the network or its encoder: the place of each token in its sequence."""
        source = {"position_ids": layout.source.positions + self._first}
        if net.config.model_type == "encoder-decoder":
            return source | {"decoder_position_ids": layout.target.positions + self._first}
        return source if _takes_positions(net) else {}

    @contextmanager
    def _switched(self, active: attention.Active) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(attention.following(active))
            for config in self._configs:
                stack.enter_context(_changed(config, _attn_implementation_internal=attention.NAME))
            for module in self._positions:
                hook = partial(_place, active)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for module in self._biases:
                bias = partial(_block_bias, module, active, module.has_relative_attention_bias)
                changes = {"compute_bias": bias, "has_relative_attention_bias": True}
                stack.enter_context(_changed(module, **changes))
            yield


def supported(backbone: Backbone) -> bool:
    """Whether the network, as it came from its files, gives the same results flat as padded."""
    net = backbone.net
    if any(parameter.is_meta for parameter in net.parameters()):
        return False
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            padded, flat = (_results(backbone, batch) for batch in _probes(backbone))
            return all(map(_close, padded, flat))
    except Exception:  # whatever a network raises that was not made for this
        return False
    finally:
        net.train(was_training)


def _results(backbone: Backbone, batch: Batch) -> list[Tensor]:
    real = batch.attention_mask.bool()
    hidden = backbone.hidden(batch)[real]
    return [hidden] if batch.labels is None else [hidden, backbone.text_losses(batch)]


def _close(padded: Tensor, flat: Tensor) -> bool:
    scale = padded.abs().max().clamp(min=1)
    return bool((padded - flat).abs().max() <= TOLERANCE * scale)  # False for nan


def _probes(backbone: Backbone) -> tuple[Batch, Batch]:
    """Three short sequences in two blocks, one of which has padding: as a padded batch, and flat."""
    config, vocabulary = backbone.net.config, backbone.net.get_input_embeddings().num_embeddings
    window = getattr(config, "sliding_window", None)
    longest = window + 5 if isinstance(window, int) and window + 5 <= LONGEST_PROBE else 9
    lengths = np.minimum([5, longest, 4], backbone.max_length)
    mask = torch.arange(lengths.max()) < torch.from_numpy(lengths)[:, None]
    ids = 3 + 7 * torch.arange(mask.numel()).view(mask.shape) % max(1, vocabulary - 4)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    ids = torch.where(ids == pad, ids + 1, ids).masked_fill(~mask, pad)
    labels, targets = None, np.array([3, 2, 6])
    apart = backbone.family == "encoder-decoder"
    if apart:
        there = torch.arange(6) < torch.from_numpy(targets)[:, None]
        labels = (3 + torch.arange(6)).expand(3, 6).masked_fill(~there, IGNORED)
    elif backbone.family == "decoder":
        labels = ids.masked_fill(~mask, IGNORED)
    blocks = np.array([0, 1, 0])
    layout = lay_out(blocks, lengths, targets if apart else None)
    probe = (ids, mask.long(), None, labels, torch.zeros(3, dtype=torch.long), (), apart)
    return Batch(*probe), Batch(*probe, layout)


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _place(active: attention.Active, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Give a position embedding the places in the sequences of the stream (1, N, ...) it is asked for."""
    _, tokens, *_ = getattr(args[0], "shape", args[0])  # some are given only a shape
    return args, {**kwargs, "position_ids": active.streams[tokens].positions[0]}


def _block_bias(
    module: nn.Module, active: attention.Active, learned: bool, queries: int, keys: int, **options: Any
) -> Tensor:
    """For streams of so many tokens, the learned bias of their longest block; nothing if none is learned."""
    if not learned:
        return torch.empty(0, device=options.get("device"))
    queries, keys = (max(length for _, length in active.streams[n].shapes) for n in (queries, keys))
    return type(module).compute_bias(module, queries, keys, **options)


@contextmanager
def _changed(thing: Any, **values: Any) -> Iterator[None]:
    """Inside, the attributes of this one object have other values."""
    before = {name: thing.__dict__[name] for name in values if name in thing.__dict__}
    thing.__dict__.update(values)
    try:
        yield
    finally:
        for name in values:
            thing.__dict__.pop(name)
        thing.__dict__.update(before)
