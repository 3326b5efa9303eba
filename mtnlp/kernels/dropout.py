"""Dropout on a CPU, several times faster than torch's, which draws every element by a scalar mt19937.

Masks come from 16 random bits an element of SFC64, keyed by one number of torch's own generator a call. So
whatever fixes or replays torch's generator (`torch.manual_seed`, gradient checkpointing) fixes or replays the
masks. The probability is the multiple of 2^-16 next to `p`, and kept elements are scaled by exactly its
inverse, which `nn.Dropout` rounds to the tensor's precision.

Everywhere but on a CPU, and for few elements, it is torch's own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16
FEWEST = 1 << 14  # elements from which on it is faster than torch's


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with each element set to 0 with probability `p`, the others scaled so that the mean stays.

    Args:
        x: any shape and floating dtype.
        p: in [0, 1].
        training: False = `x` as it is.

    Raises:
        ValueError: p outside [0, 1].
    """
    if not (training and _faster(x, p)):
        return F.dropout(x, p, training)
    return _Masked.apply(x, *mask(x, p))


def mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """What `dropout` multiplies a tensor like this one by, for functions that have dropout inside them.

    Args:
        p: in [0, 1), the chance of a 0.

    Returns:
        0 or 1 per element, in its shape, dtype and device, and the scale of what is kept.
    """
    if not _faster(like, p):
        return torch.empty_like(like, requires_grad=False).bernoulli_(1 - p), 1 / (1 - p)
    dropped = round(p * LEVELS)
    key = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(key).random_raw(-(-like.numel() // 4))
    draws = torch.from_numpy(words.view(np.int16)[: like.numel()].reshape(like.shape))
    kept = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty(like.shape, dtype=like.dtype))
    return kept, LEVELS / (LEVELS - dropped)


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def speed_up(module: nn.Module) -> None:
    """Put a `Dropout` in the place of every plain `nn.Dropout` inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children leaves out a child that it has seen
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, Dropout(child.p).train(child.training))


def _faster(x: Tensor, p: float) -> bool:
    return x.device.type == "cpu" and x.numel() >= FEWEST and 0 < round(p * LEVELS) < LEVELS


class _Masked(torch.autograd.Function):
    """x * mask * scale in one pass, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.addcmul(x.new_zeros(()), x, mask, value=scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, mask, value=ctx.scale), None, None
