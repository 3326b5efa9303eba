"""Weights chosen by hand: the weighted sum of the tasks' mean losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtnlp import balancers
from mtnlp.balancers.base import Balancer
from mtnlp.errors import MtnlpError, did_you_mean, shown


@balancers.register("fixed")
class Fixed(Balancer):
    """Loss of task t times weights[t].

    Args:
        weights: task name -> weight, finite and >= 0. Tasks not named count 1.
    """

    def __init__(self, *, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.named = dict(weights)
        self.factors: list[float] = []

    def setup(self, tasks: Sequence[str]) -> None:
        for name, weight in self.named.items():
            if name not in tasks:
                raise MtnlpError(
                    f"balancer.weights: no task of this recipe is called {shown(name)}. "
                    f"{did_you_mean(name, tasks)}"
                )
            if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise MtnlpError(
                    f"balancer.weights: {name}: got {shown(weight)}; expected a finite number >= 0."
                )
        self.factors = [float(self.named.get(task, 1.0)) for task in tasks]

    def weigh(self, tasks: Sequence[int], losses: Tensor, share: Tensor) -> Tensor:
        factors = torch.tensor([self.factors[task] for task in tasks], dtype=losses.dtype)
        return (losses * factors.to(losses.device)).sum()
