"""Frozen backbone: only the heads of the tasks are trained. The cheapest baseline, and the weakest.

For encoders; a text-to-text backbone has no heads, so nothing would be trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtnlp import strategies
from mtnlp.strategies.base import Strategy, freeze, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("heads")
class Heads(Strategy):
    """Freeze the backbone. No options."""

    families = ("encoder",)

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        require(
            backbone.family in self.families,
            f"heads: {backbone.described} ({backbone.family}) answers in text, has no heads: nothing would "
            "be trained. Use lora, lora-per-task or full, or an encoder.",
        )
        freeze(backbone)
