"""A pretrained network of any of three families behind one face.

    encoder           hidden states, read by heads
    encoder-decoder   likelihood of a target text given a prompt; generation
    decoder           the same, prompt and target in one sequence

Shapes: S sequences, L padded length, Lt padded target length, D width, V vocabulary, N tokens with a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp.data.batch import IGNORED, Batch
from mtnlp.models import generation
from mtnlp.models.flat import Flat
from mtnlp.models.generation import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = ("encoder", "encoder-decoder", "decoder")
UNBOUNDED = 1 << 20  # max_length of a network without absolute positions whose tokenizer states no limit


class Backbone(nn.Module):
    """A network, its tokenizer, and what family it is of.

    Args:
        net: a transformers model; with a language-modelling head unless the family is encoder.
        tokenizer: may be None where nothing is tokenised or generated.
        family: one of FAMILIES.
        name, revision: where it came from, for cards and messages.
        fresh: names of parameters that no checkpoint gave values to; every strategy trains them.

    Attributes:
        runs_flat: whether the network is known to give the same results on batches with a layout; `load`
            tries it.
    """

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        family: str,
        *,
        name: str = "",
        revision: str | None = None,
        fresh: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.net, self.tokenizer, self.family = net, tokenizer, family
        self.name, self.revision, self.fresh = name, revision, fresh
        self.runs_flat = False
        self._flat = Flat(net)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        family: str = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
    ) -> Backbone:
        """Load a backbone with its tokenizer, in float32.

        Args:
            name: alias (`minilm`, `minilm-seq2seq`), folder, or hub id.
            revision: branch, tag or commit of a hub id.
            family: one of FAMILIES, or "auto" = as its configuration says.
            attention: a transformers attention implementation; "default" = transformers' own choice; "auto" =
                eager on a CPU, where it mostly trains faster, else that choice.
            trust_remote_code: run code that comes with the weights.

        Raises:
            MtnlpError: not found (with the offline fix), unknown family, weights that do not fit.
        """
        from mtnlp.models import _load

        return _load.load(
            name, revision=revision, family=family, attention=attention, trust_remote_code=trust_remote_code
        )

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, family: str = "auto", trust_remote_code: bool = False
    ) -> Backbone:
        """Sizes, names and tokenizer only: no weights are read or downloaded."""
        from mtnlp.models import _load

        return _load.load(
            name,
            revision=revision,
            family=family,
            attention="auto",
            trust_remote_code=trust_remote_code,
            weights=False,
        )

    @property
    def described(self) -> str:
        """How messages call it."""
        return self.name or type(self.net).__name__

    @property
    def width(self) -> int:
        """D of the hidden states."""
        config = self.net.config
        return getattr(config, "encoder", config).hidden_size

    @property
    def max_length(self) -> int:
        """Tokens a sequence may have: learned positions or the tokenizer's own limit, whichever is less."""
        config = getattr(self.net.config, "encoder", self.net.config)
        limits = [UNBOUNDED, getattr(config, "max_position_embeddings", None) or UNBOUNDED]
        for name, module in self.net.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa counts positions from the one after its padding index.
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
                limits.append(module.num_embeddings - unused)
        if self.tokenizer is not None:
            limits.append(self.tokenizer.model_max_length)
        return min(limits)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """(name, module) of every transformer block: items of the outermost ModuleLists of equal layers."""
        found: list[tuple[str, nn.Module]] = []
        for name, module in self.net.named_modules():
            inside = any(name.startswith(f"{block}.") for block, _ in found)
            equal = isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
            if equal and not inside:
                found += [(f"{name}.{i}", item) for i, item in enumerate(module)]
        return found

    def checkpoint_activations(self) -> None:
        """Keep only what enters the blocks and run each again in backward: less memory, a third more time."""
        net = self.net
        enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
        # Reentrant ones lose the gradient of a router's balance loss.
        enable({"use_reentrant": False, "context_fn": self._flat.contexts})

    # Encoders.

    def hidden(self, batch: Batch) -> Tensor:
        """(S, L, D) hidden states of the last layer; of an encoder-decoder, of its encoder."""
        if self.family == "encoder":
            net = self.net
        else:
            net = self.net.get_encoder() if self.family == "encoder-decoder" else self.net.base_model
        with self._laid_out(batch):
            hidden = net(**self._inputs(net, batch)).last_hidden_state
        return hidden if batch.layout is None else batch.layout.source.give_back(hidden, len(batch.task_ids))

    # Text to text.

    def text_losses(self, batch: Batch) -> Tensor:
        """(S,) float32: mean cross-entropy per target token of each sequence, in nats; 0 without any."""
        sums_S, counts_S = self._target_losses(batch)
        return sums_S / counts_S.clamp(min=1)

    def option_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(S,) float32 log-likelihood of each target, summed over its tokens, and (S,) their number."""
        sums_S, counts_S = self._target_losses(batch)
        return -sums_S, counts_S

    def generate(
        self,
        batch: Batch,
        how: Generation | None = None,
        *,
        keys: Sequence[str] = (),
        encoded: Tensor | None = None,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """S texts; see models.generation. Where it is not said how, greedy ones of so many tokens."""
        how = how or Generation(max_new_tokens)
        return generation.generate(self, batch, how, keys=keys, encoded=encoded)

    def _target_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(S,) summed cross-entropy and (S,) number of the labelled tokens."""
        labels, extra = batch.labels, {}
        if self.family == "decoder":  # the state at a token predicts the next one
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        else:
            extra["decoder_input_ids"] = self.net.prepare_decoder_input_ids_from_labels(labels)
        sequences, counts_S = None, (labels != IGNORED).sum(1)
        if batch.layout is not None:
            stream = batch.layout.target or batch.layout.source
            labels, sequences = stream.take(labels), stream.rows
            extra = {name: stream.take(ids) for name, ids in extra.items()}
        kept = labels != IGNORED
        with self.scoring_only(kept), self._laid_out(batch):
            logits_NV = self.net(**self._inputs(self.net, batch), **extra, use_cache=False).logits[0]
        losses_N = F.cross_entropy(logits_NV.float(), labels[kept], reduction="none")
        sequence_N = kept.nonzero()[:, 0] if sequences is None else sequences[kept[0]]
        return losses_N.new_zeros(len(counts_S)).index_add(0, sequence_N, losses_N), counts_S

    @contextmanager
    def scoring_only(self, kept: Tensor) -> Iterator[None]:
        """Inside, the language-modelling head sees only the (S, L) `kept` places, as one row (1, N, V)."""
        head = self.net.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: (args[0][kept].unsqueeze(0),))
        try:
            yield
        finally:
            handle.remove()

    def _inputs(self, net: nn.Module, batch: Batch) -> dict[str, Any]:
        """Arguments of a forward of the network or of its encoder."""
        found = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            found["token_type_ids"] = batch.token_type_ids
        if batch.layout is None:
            return found
        flat = {name: batch.layout.source.take(values) for name, values in found.items()}
        return flat | self._flat.positions(net, batch.layout)

    def _laid_out(self, batch: Batch) -> AbstractContextManager:
        return nullcontext() if batch.layout is None else self._flat.on(batch.layout)
