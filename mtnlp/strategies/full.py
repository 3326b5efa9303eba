"""Full fine-tuning: every weight of the backbone is trained, shared by all tasks (hard parameter sharing).

Source: Caruana 1997, "Multitask Learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtnlp import strategies
from mtnlp.strategies.base import Strategy

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("full")
class Full(Strategy):
    """Train the whole backbone. No options."""

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        for parameter in backbone.net.parameters():
            parameter.requires_grad_(True)
