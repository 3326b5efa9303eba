"""What a model is asked: examples of one task. Apart from the predictor, because it needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtnlp.tasks.answers import CLOSED
from mtnlp.tasks.spec import Example, TaskSpec, Template


@dataclass(frozen=True)
class Questions:
    """Examples of one task to predict.

    Args:
        template, shots: as in tasks.templates.render.
        request: how a model that writes text is asked. "options": the likelihood of each option; "generate":
            what it writes is read; "auto": options where there is one closed list of them, else generate.
    """

    spec: TaskSpec
    examples: Sequence[Example]
    template: str | Template | None = None
    shots: tuple[Example, ...] = ()
    request: str = "auto"

    @property
    def by_options(self) -> bool:
        return self.request == "options" or (self.request == "auto" and self.spec.kind in CLOSED)
