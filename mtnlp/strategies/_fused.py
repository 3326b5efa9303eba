"""The low-rank update of linear layers that read the same input, forward and backward in one step each.

    y_i = x W_i^T + b_i + s_t * mask(x) A_ti^T B_ti        i = 1..n layers (query, key, value ...), t the task

One autograd node per group of layers: all A_i are one product, the input's gradient is summed in place, and
what a bank's rows receive is added straight into the bank's own gradient, so nothing of the bank's size is
made anew in a step. The frozen W_i get no gradient.

Source: Hu et al. 2021, arXiv:2106.09685; one update per sequence, gathered by its task.
Shapes: N tokens, n sequences of a part, l tokens of each, I inputs, O_i outputs, R rank, U live rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtnlp.kernels.dropout import dropout
from mtnlp.strategies.base import Part, Runs

SMALL = 8  # times as many tokens as rows of the factors; see `_bias_as_a_rank`


@dataclass(frozen=True)
class Update:
    """What n layers need besides their input and their factors.

    Args:
        weights: (O_i, I) each, frozen; None = the layer's own product is made elsewhere.
        biases: (O_i,) or None each.
        parts: which tokens take which row; () where `only` is given.
        only: the row that all tokens take, else None.
        scale: alpha / rank of all rows, or (U,) of each.
        dropout: probability with which an input of the update is dropped, for every element by itself.
        sinks: called in backward, gives tensors like `down` and `ups` to add their gradients to; None =
            these go autograd's way.
        gate: (N, U R), the scale of a token's own row and 0 elsewhere. With it every token meets all rows in
            one product, of which the others' part is masked, so neither `parts` nor `scale` count.
        runs: the tokens of `parts`, where they are multiplied as groups; see `kernels.grouped`.
    """

    weights: Sequence[Tensor | None]
    biases: Sequence[Tensor | None]
    parts: Sequence[Part]
    only: int | None
    scale: float | Tensor
    dropout: float = 0.0
    sinks: Callable[[], Sequence[Tensor]] | None = None
    gate: Tensor | None = None
    runs: Runs | None = None

    @property
    def row(self) -> int | None:
        """Which of the factors, seen as `_abreast` gives them, multiply all tokens."""
        return self.only if self.gate is None else 0


class LowRank(torch.autograd.Function):
    """apply(x, down, update, anchor, *ups) -> n tensors (..., O_i).

    x (..., I); down (U, n R, I), the A of all n layers; ups (U, R, O_i). Their products are made in the type
    of the factors: that of x or a wider one. `anchor` is any tensor that requires a gradient: it makes the
    node part of the graph where x and the factors require none.
    """

    @staticmethod
    def forward(ctx, x: Tensor, down: Tensor, update: Update, anchor: Tensor, *ups: Tensor) -> tuple:
        tokens = x.reshape(-1, x.shape[-1])
        read = tokens.to(down.dtype)
        mask = dropout(torch.ones_like(read), update.dropout, True) if update.dropout else None
        given = (down, *ups)
        down, *ups = _abreast(given, update)
        low = _project(read if mask is None else read * mask, down, update)
        _scale(low, update)
        outputs = []
        for weight, bias, up, own in zip(update.weights, update.biases, ups, _each(low, ups), strict=True):
            y = _layer(tokens, weight, bias, own, up, update)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.update = update
        ctx.save_for_backward(x, mask, low, *given, *update.weights)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple:
        update, count, wants_x = ctx.update, len(grads), ctx.needs_input_grad[0]
        x, mask, low, *rest = ctx.saved_tensors
        given, weights = rest[: 1 + count], rest[1 + count :]
        down, *ups = _abreast(given, update)
        read = x.reshape(-1, x.shape[-1]).to(down.dtype)
        sinks = update.sinks() if update.sinks else [torch.zeros_like(factor) for factor in given]
        d_low, d_tokens = torch.empty_like(low), None
        layers = zip(grads, weights, ups, sinks[1:], _each(low, ups), _each(d_low, ups), strict=True)
        for grad, weight, up, sink, own, d_own in layers:
            grad = grad.reshape(-1, grad.shape[-1])
            wide = grad.to(down.dtype)
            d_own.copy_(_project(wide, up, update))
            _add_outer(sink, own, wide, update)
            if wants_x and weight is not None:
                d_tokens = grad @ weight if d_tokens is None else d_tokens.addmm_(grad, weight)
        _scale(d_low, update)
        into = sinks[0] if update.gate is None else _by_layer(sinks[0], count)
        _add_outer(into, d_low, read if mask is None else read * mask, update)
        if wants_x:
            d_tokens = torch.zeros_like(read, dtype=x.dtype) if d_tokens is None else d_tokens
            if mask is None:
                _add_product(d_tokens, d_low, down, update)
            else:
                d_masked = torch.zeros_like(read)
                _add_product(d_masked, d_low, down, update)
                d_tokens.add_(d_masked.mul_(mask))
            d_tokens = d_tokens.view(x.shape)
        by_autograd = sinks if update.sinks is None else [None] * (1 + count)
        return d_tokens, by_autograd[0], None, None, *by_autograd[1:]


def _layer(
    tokens: Tensor, weight: Tensor | None, bias: Tensor | None, low: Tensor, up: Tensor, update: Update
) -> Tensor:
    """(N, O) of one layer, with low (N, R) and up (U, R, O)."""
    if weight is None:  # the layer's own product is made elsewhere
        y = tokens.new_zeros(len(tokens), up.shape[2])
    elif not _bias_as_a_rank(tokens, up, update):
        y = F.linear(tokens, weight, bias)
    else:
        if bias is not None:
            low = torch.cat([low, low.new_ones(len(low), 1)], 1)
            up = torch.cat([up, bias.expand(len(up), 1, -1)], 1)
        y = tokens.new_empty(len(tokens), up.shape[2])
        _add_product(y, low, up, update, beta=0)
        return y.addmm_(tokens, weight.t())
    _add_product(y, low, up, update)
    return y


def _bias_as_a_rank(tokens: Tensor, up: Tensor, update: Update) -> bool:
    """Whether the update is written first, with the bias as one more rank, and the layer's product added.

    On a CPU a product in float32 with a bias writes that first, and reads all again: one pass through memory
    less, where factors are small beside tokens. In bfloat16 it takes the bias along.
    """
    plain = update.gate is None and update.runs is None and tokens.dtype == up.dtype != torch.bfloat16
    small = SMALL * len(up) * up.shape[1] <= len(tokens)
    return plain and small and tokens.device.type == "cpu"


def _abreast(factors: Sequence[Tensor], update: Update) -> Sequence[Tensor]:
    """The factors (U, n R, I), (U, R, O_i) ... as one row where all rows are one product: (1, n U R, I) by
    layer, then by row; (1, U R, O_i)."""
    if update.gate is None:
        return factors
    down, *ups = factors
    return [
        _by_layer(down, len(ups)).flatten(0, 2).unsqueeze(0),
        *(up.reshape(1, -1, up.shape[2]) for up in ups),
    ]


def _by_layer(down: Tensor, layers: int) -> Tensor:
    """(U, n R, I) -> (n, U, R, I)."""
    return down.unflatten(1, (layers, -1)).transpose(0, 1)


def _each(low: Tensor, ups: Sequence[Tensor]) -> Sequence[Tensor]:
    """(N, n R) -> n views (N, R)."""
    return low.split([up.shape[1] for up in ups], dim=1)


def _scale(low: Tensor, update: Update) -> None:
    """low (N, ...) *= s_t, in place."""
    if update.gate is not None:
        low.unflatten(1, (-1, update.gate.shape[1])).mul_(update.gate.unsqueeze(1))
    elif not isinstance(update.scale, Tensor):
        low.mul_(update.scale)
    elif update.only is not None:
        low.mul_(update.scale[update.only].to(low.dtype))
    else:
        for start, stop, rows, _ in update.parts:
            low[start:stop].unflatten(0, (len(rows), -1)).mul_(
                update.scale[rows].to(low.dtype).view(-1, 1, 1)
            )


def _project(x: Tensor, factor: Tensor, update: Update) -> Tensor:
    """(N, K) -> (N, R): x factor[t]^T, with factor (U, R, K)."""
    if (row := update.row) is not None:
        return x @ factor[row].t()
    if (runs := update.runs) is not None:
        own = factor.index_select(0, runs.rows).transpose(1, 2)
        return F.grouped_mm(x.contiguous(), own, offs=runs.stops)
    found = [
        torch.bmm(x[start:stop].unflatten(0, (len(rows), -1)), _taken(factor, rows, taken).transpose(1, 2))
        for start, stop, rows, taken in update.parts
    ]
    return found[0].flatten(0, 1) if len(found) == 1 else torch.cat([part.flatten(0, 1) for part in found])


def _add_product(y: Tensor, low: Tensor, factor: Tensor, update: Update, beta: int = 1) -> None:
    """y (N, K) = beta y + low factor[t], with low (N, R) and factor (U, R, K), which may be wider than y.

    beta: 1, or 0 where y holds nothing yet; then y has the type of the factors, and there are no runs.
    """
    assert beta or (update.runs is None and y.dtype == factor.dtype)
    if (row := update.row) is not None:
        y.addmm_(low, factor[row], beta=beta)
        return
    if (runs := update.runs) is not None:
        y.add_(F.grouped_mm(low, factor.index_select(0, runs.rows), offs=runs.stops))
        return
    for start, stop, rows, taken in update.parts:
        shape = (len(rows), -1)
        part, own = y[start:stop].unflatten(0, shape), low[start:stop].unflatten(0, shape)
        if part.dtype == own.dtype:
            part.baddbmm_(own, _taken(factor, rows, taken), beta=beta)
        else:
            part.add_(torch.bmm(own, _taken(factor, rows, taken)).to(part.dtype))


def _taken(factor: Tensor, rows: Tensor, taken: list[int] | None) -> Tensor:
    """(n, R, K) of (U, R, K); no copy where a part takes every row in its turn."""
    return factor if taken == list(range(len(factor))) else factor.index_select(0, rows)


def _add_outer(sink: Tensor, low: Tensor, x: Tensor, update: Update) -> None:
    """sink (U, R, K)[t] += low^T x, summed over the tokens of t, with low (N, R) and x (N, K)."""
    if update.only is not None or update.gate is not None:
        into = sink if update.gate is not None else sink[update.only]
        into.add_((low.t() @ x).view(into.shape))
        return
    if (runs := update.runs) is not None:
        found = F.grouped_mm(low.t(), x.contiguous(), offs=runs.stops)
        sink.index_add_(0, runs.rows, found.to(sink.dtype))
        return
    for start, stop, rows, taken in update.parts:
        shape = (len(rows), -1)
        found = torch.bmm(
            low[start:stop].unflatten(0, shape).transpose(1, 2), x[start:stop].unflatten(0, shape)
        )
        if taken is None:
            sink.index_add_(0, rows, found.to(sink.dtype))
        elif taken == list(range(len(sink))):
            sink.add_(found)
        else:  # on a CPU 2-8 times faster than index_add_, and as deterministic
            live = sink.unbind(0)
            torch._foreach_add_([live[row] for row in taken], list(found.to(sink.dtype).unbind(0)))
