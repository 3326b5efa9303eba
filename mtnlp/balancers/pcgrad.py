"""PCGrad: drop from each task's gradient the part that opposes another task's.

Source: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", Algorithm 1, arXiv:2001.06782.
Deviation: projections are computed on dot products, not on gradients; the result is the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtnlp import balancers
from mtnlp.balancers.base import Balancer


@balancers.register("pcgrad")
class PCGrad(Balancer):
    """Project conflicting gradients.

    Args:
        seed: of the random order in which a task meets the others.
    """

    needs_gram = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.calls = 0  # counter of the random numbers: all the state there is

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)

    def weights(self, gram: Tensor) -> Tensor:
        """Weights w such that sum_t w_t g_t is the PCGrad update.

        Args:
            gram: (U, U) float64, gram[i, j] = <g_i, g_j>.

        Returns:
            (U,) weights, no unit. All ones when no two gradients conflict.
        """
        draw = np.random.default_rng([self.seed, self.calls])
        self.calls += 1
        rows = torch.eye(len(gram), dtype=gram.dtype)  # row i: g_i' in terms of the g_j
        for i in range(len(gram)):
            for j in draw.permutation(len(gram)).tolist():
                dot = rows[i] @ gram[:, j]  # <g_i', g_j>
                if i != j and dot < 0:  # never for a zero gradient, whose dot products are 0
                    rows[i, j] -= dot / gram[j, j]
        return rows.sum(0)
