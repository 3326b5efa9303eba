"""Homoscedastic uncertainty weighting: every task learns how noisy its own loss is.

    sum_t  1/2 (exp(-s_t) L_t + s_t),   s_t = log of the task's noise variance, learned, starts at 0

Source: Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses",
arXiv:1705.07115.
Deviations: the 1/2 form for every kind of loss; s_t is held in [-5, 5], for a loss near 0 would drive it to
minus infinity; the s_t of tasks absent from a step stay as they are. The optimizer decays no s_t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtnlp import balancers
from mtnlp.balancers.base import Balancer

LIMIT = 5.0


@balancers.register("uncertainty")
class Uncertainty(Balancer):
    """Learned task weights exp(-s_t) / 2."""

    def __init__(self) -> None:
        super().__init__()
        # One parameter per task, not one vector: an absent task must have no gradient, else AdamW moves it.
        self.log_variances = nn.ParameterList()

    def setup(self, tasks: Sequence[str]) -> None:
        self.log_variances = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in tasks)

    def weigh(self, tasks: Sequence[int], losses: Tensor, share: Tensor) -> Tensor:
        s_U = torch.stack([self.log_variances[task] for task in tasks])
        return 0.5 * ((-s_U).exp() * losses + s_U * share).sum()

    @torch.no_grad()
    def observe(self, losses: Mapping[int, float]) -> None:
        for task in losses:  # not inside the loss: a clamped s would have no gradient to return
            self.log_variances[task].clamp_(-LIMIT, LIMIT)
