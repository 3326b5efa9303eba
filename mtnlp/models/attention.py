"""Attention inside the blocks of a flat stream of tokens, as an implementation that transformers can call.

    softmax(scaling * Q K^T + bias, hidden places out) V       for every block of sequences apart

One autograd node does all blocks of a layer: it writes into one output and one gradient per input, and keeps
for backward only the blocks' queries, keys, values and probabilities. On a CPU, a block of bfloat16 has round
lengths inside: oneDNN compiles every new shape for milliseconds, and forgets old ones after a thousand.

Shapes: N tokens of a stream, H heads of queries, K heads of keys and values (H = G K), E width of a head; of
a block: n sequences of length l (Lq queries, Lk keys).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtnlp.data.stream import Layout, Stream
from mtnlp.errors import MtnlpError
from mtnlp.kernels.dropout import mask as dropout_mask

NAME = "mtnlp_flat"
ROUND = 32  # what lengths inside a block of bfloat16 on a CPU are multiples of
CACHED = 1 << 20  # bytes of scores that a core's own cache holds beside all else
SMALL = 1 << 14  # scores of a head in a block, up to which float32 is as fast on a CPU, all told

_active: Active | None = None


class Active:
    """The layout that attention follows at present, and the masks that it asked for.

    It must be what it was in the forward when gradient checkpointing runs that again: `flat.Flat.contexts`.
    """

    def __init__(self, layout: Layout) -> None:
        streams = [layout.source] if layout.target is None else [layout.source, layout.target]
        self.streams = {stream.tokens: stream for stream in streams}
        self._bands: dict[tuple, Tensor] = {}
        self._paddings: dict[int, list[Tensor | None]] = {}

    def band(self, length: int, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
        """(length, length) to be added to scores: -inf at keys after the query (causal) or `window` and more
        places away from it; None = all are seen."""
        window = window if window is not None and window < length else None
        if not causal and window is None:
            return None
        key = (length, causal, window, like.dtype)
        if key not in self._bands:
            places = torch.arange(length, device=like.device)
            ahead = places - places.unsqueeze(1)
            out = ahead > 0 if causal else torch.zeros_like(ahead, dtype=torch.bool)
            out = out if window is None else out | (ahead.abs() >= window)
            self._bands[key] = like.new_zeros(out.shape).masked_fill_(out, -torch.inf)
        return self._bands[key]

    def paddings(self, stream: Stream) -> list[Tensor | None]:
        """Of every block (n, 1, 1, length - shortest), True on padding among its last places; None = none."""
        if stream.tokens not in self._paddings:
            masks = stream.mask[0].split([n * length for n, length in stream.shapes])
            self._paddings[stream.tokens] = [
                None if shortest == length else (mask == 0).view(n, 1, 1, length)[..., shortest:]
                for mask, (n, length), shortest in zip(masks, stream.shapes, stream.shortest, strict=True)
            ]
        return self._paddings[stream.tokens]


def register() -> None:
    """Make the implementation known to transformers as NAME; it has no masks, so none are made for it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


@contextmanager
def following(active: Active) -> Iterator[None]:
    """Inside, attention works on the blocks of `active`."""
    global _active
    before, _active = _active, active
    try:
        yield
    finally:
        _active = before


def current() -> Active | None:
    return _active


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (1, H, N, E), key and value (1, K, M, E) -> (1, N, H, E).

    position_bias: (1, H, Lq, Lk) for the longest block, learned; a tensor without elements = none.

    Raises:
        MtnlpError: something is asked for that is not done here.
    """
    if attention_mask is not None or softcap is not None or s_aux is not None:
        raise MtnlpError(f"{type(module).__name__}: flat attention knows no masks, soft caps or sinks.")
    active, kind = _active, query.device.type
    queries, keys = active.streams[query.shape[2]], active.streams[key.shape[2]]
    causal = bool(getattr(module, "is_causal", False)) and queries is keys
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    bias = position_bias if position_bias is not None and position_bias.numel() else None
    query, key, value = (x.squeeze(0).to(dtype) for x in (query, key, value))
    bands: list[Tensor | None] = [None] * len(keys.shapes)
    if queries is keys:
        bands = [active.band(length, causal, sliding_window, query) for _, length in keys.shapes]
    plan = Plan(
        queries.shapes,
        keys.shapes,
        bands,
        # Where attention is causal, no token sees the padding, which comes after it.
        [None] * len(bands) if causal else active.paddings(keys),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout,
    )
    return BlockAttention.apply(query, key, value, None if bias is None else bias.squeeze(0), plan), None


@dataclass(frozen=True)
class Plan:
    """How one layer attends: shapes of the blocks, what is out of sight in each, and the usual numbers."""

    queries: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, int], ...]
    bands: list[Tensor | None]
    paddings: list[Tensor | None]
    scaling: float
    dropout: float


class Portion(NamedTuple):
    """Some sequences of a block and some of their heads."""

    sequences: slice
    heads: slice  # of queries
    both: slice  # of sequences x heads of keys

    def scores(self, block: Tensor) -> Tensor:
        """Its own of (n, H, ...)."""
        return block if self is WHOLE else block[self.sequences, self.heads]

    def rows(self, block: Tensor) -> Tensor:
        """Its own of (n K, ...)."""
        return block if self is WHOLE else block[self.both]


WHOLE = Portion(slice(None), slice(None), slice(None))


class BlockAttention(torch.autograd.Function):
    """(H, N, E), (K, M, E), (K, M, E), (H, Lq, Lk) or None -> (1, N, H, E)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        saved, rises, at, seen = [], [], 0, 0
        with torch.autocast(query.device.type, enabled=False):
            for (n, lq), (_, lk), band, padding in zip(plan.queries, plan.keys, plan.bands, plan.paddings):
                # The G heads that share a key lie one after the other, as if they were further queries.
                dtype = _block_dtype(query, n * lq * lk)
                rows, columns = (_rounded(length, query, dtype) for length in (lq, lk))
                q = _cut(query, at, n, lq, rows, dtype).view(n * len(key), -1, width)
                k, v = (_cut(x, seen, n, lk, columns, dtype) for x in (key, value))
                chances = q.new_empty(n, heads, rows, columns)
                kept, rise = dropout_mask(chances, plan.dropout) if plan.dropout else (None, 1.0)
                mixed = torch.empty_like(q)
                for part in _parts(chances, len(key)):
                    own, (qs, ks, vs, ms) = part.scores(chances), map(part.rows, (q, k, v, mixed))
                    used = own.view(-1, q.shape[1], columns)
                    torch.baddbmm(
                        q.new_empty(1), qs, ks.transpose(1, 2), beta=0, alpha=plan.scaling, out=used
                    )
                    _hide(own, lq, lk, part, bias, band, padding)
                    torch.softmax(own, -1, out=own)  # of bfloat16 too, float32 inside and rounded once
                    if kept is not None:
                        used = _thinned(used, part.scores(kept).view_as(used), rise)
                    torch.bmm(used, vs, out=ms)
                _paste(out, at, lq, mixed.view(n, heads, rows, width))
                saved += [q, k, v, chances, kept]
                rises.append(rise)
                at, seen = at + n * lq, seen + n * lk
        ctx.save_for_backward(*saved)
        ctx.plan, ctx.rises, ctx.shapes = plan, rises, (query.shape, key.shape)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        return out.unsqueeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, iter(ctx.saved_tensors)
        (heads, tokens, width), (key_heads, others, _) = ctx.shapes
        grad = grad.squeeze(0).transpose(0, 1)
        d_query = grad.new_empty(tokens, heads, width)
        d_key, d_value = (grad.new_empty(others, key_heads, width) for _ in range(2))
        d_bias = None
        if ctx.needs_input_grad[3]:
            d_bias = grad.new_zeros(ctx.bias[0], dtype=ctx.bias[1])
        at = seen = 0
        blocks = zip(plan.queries, plan.keys, ctx.rises, *[saved] * 5)
        with torch.autocast(grad.device.type, enabled=False):
            for (n, lq), (_, lk), rise, q, k, v, chances, kept in blocks:
                rows, columns = chances.shape[2:]
                g = _cut(grad, at, n, lq, rows, q.dtype).view(q.shape)
                dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
                for part in _parts(chances, key_heads):
                    own, flat = part.scores(chances), (-1, q.shape[1], columns)
                    qs, ks, vs, gs = map(part.rows, (q, k, v, g))
                    dqs, dks, dvs = map(part.rows, (dq, dk, dv))
                    used = own if kept is None else _thinned(own, part.scores(kept), rise)
                    torch.bmm(used.view(flat).transpose(1, 2), gs, out=dvs)
                    d = torch.bmm(gs, vs.transpose(1, 2)).view(own.shape)
                    if kept is not None:
                        d = _thinned(d, part.scores(kept), rise)
                    torch._softmax_backward_data(d, own, -1, own.dtype, grad_input=d)
                    if d_bias is not None:
                        d_bias[part.heads, :lq, :lk] += d[..., :lq, :lk].sum(0, dtype=d_bias.dtype)
                    d, empty = d.view(flat), d.new_empty(1)
                    torch.baddbmm(empty, d, ks, beta=0, alpha=plan.scaling, out=dqs)
                    torch.baddbmm(empty, d.transpose(1, 2), qs, beta=0, alpha=plan.scaling, out=dks)
                _paste(d_query, at, lq, dq.view(n, heads, rows, width))
                _paste(d_key, seen, lk, dk.view(n, -1, columns, width))
                _paste(d_value, seen, lk, dv.view(n, -1, columns, width))
                at, seen = at + n * lq, seen + n * lk
        return *(x.transpose(0, 1) for x in (d_query, d_key, d_value)), d_bias, None


def _parts(chances: Tensor, key_heads: int) -> Iterator[Portion]:
    """The parts of a block (n, H, rows, columns) that are computed one after the other: on a CPU so few that
    their scores stay in its cache from one operation to the next. In bfloat16, whose products take long to
    begin, and on other devices all at once."""
    n, heads = chances.shape[:2]
    group, size = heads // key_heads, chances[0].numel() * chances.element_size()
    if chances.device.type != "cpu" or chances.dtype == torch.bfloat16 or n * size <= CACHED:
        yield WHOLE
    elif size <= CACHED:
        for own in _even(n, CACHED // size):
            yield Portion(own, slice(heads), slice(own.start * key_heads, own.stop * key_heads))
    else:
        for i in range(n):
            for own in _even(key_heads, max(1, CACHED * key_heads // size)):
                both = slice(i * key_heads + own.start, i * key_heads + own.stop)
                yield Portion(slice(i, i + 1), slice(own.start * group, own.stop * group), both)


def _even(count: int, most: int) -> list[slice]:
    """0..count-1 in as few slices of at most `most` as can be, about equally long."""
    each = -(-count // -(-count // most))
    return [slice(start, min(start + each, count)) for start in range(0, count, each)]


def _hide(
    scores: Tensor,
    lq: int,
    lk: int,
    part: Portion,
    bias: Tensor | None,
    band: Tensor | None,
    padding: Tensor | None,
) -> None:
    """Add what is added to the scores (s, h, rows, columns) of a part, and take out what is not seen."""
    real = scores[..., :lq, :lk]
    if bias is not None:
        real += bias[part.heads, :lq, :lk]
    if band is not None:
        real += band
    if padding is not None:
        # Not -inf: a padded query may see nothing else.
        hidden = padding[part.sequences]
        real[..., -hidden.shape[-1] :].masked_fill_(hidden, torch.finfo(scores.dtype).min)
    if scores.shape[-1] > lk:
        scores[..., lk:] = -torch.inf


def _block_dtype(x: Tensor, scores: int) -> torch.dtype:
    """What a block is computed in: for bfloat16 on a CPU, oneDNN compiles every new shape for milliseconds,
    so small blocks, which come in many, are float32."""
    small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and scores <= SMALL
    return torch.float32 if small else x.dtype


def _rounded(length: int, x: Tensor, dtype: torch.dtype) -> int:
    """What a block of x of this length is computed in."""
    return -(-length // ROUND) * ROUND if x.device.type == "cpu" and dtype == torch.bfloat16 else length


def _cut(x: Tensor, start: int, n: int, length: int, rounded: int, dtype: torch.dtype) -> Tensor:
    """(heads, tokens, E) -> (n heads, rounded, E) in `dtype`, 0 behind each sequence."""
    block = x.new_empty(n, len(x), rounded, x.shape[-1], dtype=dtype)
    block[:, :, :length] = x[:, start : start + n * length].unflatten(1, (n, length)).transpose(0, 1)
    if rounded > length:
        block[:, :, length:] = 0
    return block.flatten(0, 1)


def _paste(out: Tensor, start: int, length: int, block: Tensor) -> None:
    """Write (n, heads, rounded, E), but for what is behind each sequence, into its place of (tokens, heads,
    E)."""
    n, heads, _, width = block.shape
    into = out[start : start + n * length].view(n, length, heads, width)
    into.copy_(block[:, :, :length].transpose(1, 2))


def _thinned(x: Tensor, kept: Tensor, rise: float) -> Tensor:
    """x * kept * rise: what dropout does, in one pass."""
    return torch.addcmul(x.new_zeros(()), x, kept, value=rise)
