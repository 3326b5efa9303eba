"""The face of a balancer: how the losses of several tasks become one update."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Balancer(nn.Module, ABC):
    """Loss balancers override `weigh`; gradient balancers set `needs_gram` and override `weights`.

    Options come in `__init__` (keyword-only, what YAML can say); the tasks come in `setup`. Whatever must
    survive a resume is a parameter, a buffer, or the tensor that `get_extra_state` returns.
    """

    needs_gram = False

    def __init__(self) -> None:  # without options; nn.Module's own signature would let a recipe say anything
        super().__init__()

    def setup(self, tasks: Sequence[str]) -> None:
        """Called once with the (T,) task names, before the optimizer is made."""

    def weigh(self, tasks: Sequence[int], losses: Tensor, share: Tensor) -> Tensor:
        """One micro-batch's part of the loss to differentiate.

        The micro-batches of a step (over all ranks) add up: the sum of `losses` over them is each task's mean
        loss and the sum of `share` is 1 for each live task. So whatever is linear in both is independent of
        the cut.

        Args:
            tasks: (U,) task indices in this micro-batch.
            losses: (U,) sum of the task's example losses here / number of its examples in the global step.
            share: (U,) examples of the task here / number of its examples in the global step.

        Returns:
            () scalar. Default: every task counts the same, sum of losses.
        """
        return losses.sum()

    def weights(self, gram: Tensor) -> Tensor:
        """Weights w such that sum_t w_t g_t is the update of the shared parameters.

        Args:
            gram: (U, U) float64 on the CPU, gram[i, j] = <g_i, g_j> of the live tasks; equal on all ranks.

        Returns:
            (U,) weights, no unit. Default: all ones.
        """
        return torch.ones(len(gram), dtype=gram.dtype)

    def observe(self, losses: Mapping[int, float]) -> None:
        """Called after each step with the live tasks' mean losses, equal on all ranks."""
