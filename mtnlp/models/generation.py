"""Writing texts: greedy, by beams, or sampled; ended by a number of tokens, an end token or a stop string.

What a row becomes depends on its own prompt, the settings and, where it is sampled, its own key: not on the
rows beside it, their order or their padding.

Shapes: S sequences, L padded length, V vocabulary, M tokens so far (a decoder's prompt among them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtnlp.data.batch import Batch
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from mtnlp.models.backbone import Backbone

# What is taken from a checkpoint's own settings: what a text starts with, which tokens are none of a text.
# Its lengths, penalties, sampling and beams are not: they would change answers without anyone asking for it.
KEPT = (
    "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip
MARGIN = 8  # tokens looked through for a stop string beyond its bytes: specials, parts of characters


@dataclass(frozen=True)
class Generation:
    """How texts are written.

    Args:
        max_new_tokens: most tokens of an answer, its end token counted, the prompt and a decoder's start not.
        beams: 1 = the likeliest token each time; more = beam search.
        temperature: divides the scores before sampling; None = no sampling.
        top_k, top_p: sample only from so many of the likeliest tokens, and only from the fewest that hold so
            much of the probability; None = from all.
        stop: strings that end a text; it is cut before the first.
        seed: of sampling.

    Raises:
        MtnlpError: a number out of its range, an empty stop string, sampling with beams, or top_k or top_p
            without a temperature.
    """

    max_new_tokens: int = 64
    beams: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be 1 or more.")
        _check(self.beams >= 1, f"beams={self.beams} must be 1 (greedy) or more.")
        _check(
            self.temperature is None or self.temperature > 0,
            f"temperature={self.temperature} must be above 0; leave it out for greedy answers.",
        )
        _check(self.top_k is None or self.top_k >= 1, f"top_k={self.top_k} must be 1 or more.")
        _check(self.top_p is None or 0 < self.top_p <= 1, f"top_p={self.top_p} must be in (0, 1].")
        _check(not isinstance(self.stop, str), f"stop={self.stop!r} must be a list of strings.")
        _check(all(self.stop), "stop: an empty string would end every text; leave it out.")
        sampled = self.temperature is not None
        _check(
            sampled or (self.top_k is None and self.top_p is None),
            "top_k and top_p choose what is sampled from, but without a temperature nothing is sampled. "
            "Set one (1 = the model's own probabilities), or leave them out.",
        )
        _check(not sampled or self.beams == 1, "temperature: sample with beams=1, or leave it out.")


def generate(
    backbone: Backbone,
    batch: Batch,
    how: Generation,
    *,
    keys: Sequence[str] = (),
    encoded: Tensor | None = None,
) -> list[str]:
    """S texts, without special tokens.

    Args:
        batch: prompts; those of a decoder are padded on the left.
        keys: S names of the documents; sampling depends on them and the seed. Needed only for sampling.
        encoded: (S, L, D) states of an encoder-decoder's encoder, where they are known.

    Raises:
        MtnlpError: prompts and answers longer than the network can take.
    """
    _check_room(backbone, batch, how.max_new_tokens)
    config, ends = _settings(backbone, how)
    inputs: dict[str, Any] = {"attention_mask": batch.attention_mask, "input_ids": batch.input_ids}
    if encoded is not None:
        from transformers.modeling_outputs import BaseModelOutput

        inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
        del inputs["input_ids"]
    first = batch.input_ids.shape[1] if backbone.family == "decoder" else 1
    stop = [Stop(backbone.tokenizer, how.stop, first)] if how.stop else []
    draw = [Draw(how, keys, first)] if how.temperature is not None else []
    with _instead(backbone.net):
        tokens_SM = backbone.net.generate(
            **inputs, generation_config=config, stopping_criteria=stop, logits_processor=draw
        )
    return [
        before(text, how.stop)
        for text in backbone.tokenizer.batch_decode(
            [_ended(row, ends) for row in tokens_SM[:, first:].tolist()], skip_special_tokens=True
        )
    ]


def before(text: str, stop: Sequence[str]) -> str:
    """What stands before the first stop string."""
    return text[: min([at for one in stop if (at := text.find(one)) >= 0], default=None)]


class Stop:
    """Which rows hold a stop string among their new tokens, as a stopping criterion of transformers.

    Only the last tokens are looked through at each step, and where something is found there, all of them:
    the end of a text can decode to something else than it is inside the text.

    Args:
        first: place of the first new token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], first: int) -> None:
        self.tokenizer, self.stop, self.first = tokenizer, stop, first
        self.tail = max(len(one.encode()) for one in stop) + MARGIN  # a token is a byte or more

    def __call__(self, ids_SM: Tensor, scores: Any, **_: Any) -> Tensor:
        """(S,) bool, True where a row is to end."""
        new = ids_SM[:, self.first :]
        found = self._hold(new[:, -self.tail :].tolist())
        if new.shape[1] > self.tail and any(found):
            rows = [row for row, held in enumerate(found) if held]
            for row, held in zip(rows, self._hold(new[rows].tolist())):
                found[row] = held
        return torch.tensor(found, device=ids_SM.device)

    def _hold(self, rows: list[list[int]]) -> list[bool]:
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [any(one in text for one in self.stop) for text in texts]


class Draw:
    """Makes the likeliest token a sampled one, as a logits processor of transformers.

    The largest of score + Gumbel noise is a sample from the softmax of the scores. The noise comes from a
    counter-based generator keyed by (seed, key of the document) and counted by the place of the token, so it
    is the same whatever else is in the batch.

    Sources: Gumbel 1954, "Statistical Theory of Extreme Values and Some Practical Applications"; Maddison et
    al. 2014, "A* Sampling", section 2, arXiv:1411.0030; Salmon et al. 2011, "Parallel Random Numbers: As Easy
    as 1, 2, 3" (Philox).

    Args:
        keys: of the S rows.
        first: place of the first new token.
    """

    def __init__(self, how: Generation, keys: Sequence[str], first: int) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.warpers = [TemperatureLogitsWarper(float(how.temperature))]
        self.warpers += [TopKLogitsWarper(how.top_k)] if how.top_k is not None else []
        self.warpers += [TopPLogitsWarper(how.top_p)] if how.top_p is not None else []
        self.keys, self.first = [_key(how.seed, key) for key in keys], first

    def __call__(self, ids_SM: Tensor, scores_SV: Tensor) -> Tensor:
        """(S, V) scores whose largest is the sampled token."""
        assert len(self.keys) == len(scores_SV), "a key for every row"
        for warper in self.warpers:
            scores_SV = warper(ids_SM, scores_SV)
        place = ids_SM.shape[1] - self.first
        noise_SV = np.stack([_gumbel(key, place, scores_SV.shape[1]) for key in self.keys])
        return scores_SV + torch.from_numpy(noise_SV).to(scores_SV.device)


def _key(seed: int, key: str) -> np.ndarray:
    """(2,) uint64."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8")


def _gumbel(key: np.ndarray, place: int, count: int) -> np.ndarray:
    """(count,) float32: minus the logarithm of a standard exponential number is a standard Gumbel number."""
    bits = np.random.Philox(key=key, counter=np.array([0, 0, place, 0], np.uint64))
    return -np.log(np.random.Generator(bits).standard_exponential(count, dtype=np.float32))


def _settings(backbone: Backbone, how: Generation) -> tuple[GenerationConfig, set[int]]:
    """For transformers, and the ids that end a text: those of the checkpoint and of its tokenizer."""
    from transformers import GenerationConfig

    own, tokenizer, named = backbone.net.generation_config, backbone.tokenizer, backbone.net.config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
    kept = {name: value for name in KEPT if (value := getattr(own, name, None)) is not None}
    if (start := getattr(named, "decoder_start_token_id", None)) is not None:
        kept.setdefault("decoder_start_token_id", start)
    config = GenerationConfig(
        **kept,
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        num_beams=how.beams,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
    )
    return config, ends


@contextmanager
def _instead(net: PreTrainedModel) -> Iterator[None]:
    """Inside, the network has no settings of its own, from which transformers would fill what ours leave."""
    from transformers import GenerationConfig

    own, net.generation_config = net.generation_config, GenerationConfig()
    try:
        yield
    finally:
        net.generation_config = own


def _ended(row: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return row[: next((place for place, token in enumerate(row) if token in ends), None)]


def _check_room(backbone: Backbone, batch: Batch, new: int) -> None:
    if backbone.family == "decoder":
        limit, prompt = backbone.max_length, int(batch.attention_mask.sum(1).max())
    else:
        config = getattr(backbone.net.config, "decoder", backbone.net.config)
        limit, prompt = getattr(config, "max_position_embeddings", None) or new, 0
    _check(
        prompt + new <= limit,
        f"{backbone.described} takes {limit} tokens, but {f'a prompt of {prompt} and ' if prompt else ''}"
        f"max_new_tokens={new} are more. Ask for at most {max(0, limit - prompt)} new tokens"
        f"{', or cut the prompts (max_length)' if prompt else ''}.",
    )


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise MtnlpError(message)
