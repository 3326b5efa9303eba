"""What a model is asked: examples of one task. Apart from the predictor, because it needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtnlp.tasks.spec import Example, TaskSpec


@dataclass(frozen=True)
class Questions:
    """Examples of one task to predict; `template` and `shots` as in tasks.templates.render."""

    spec: TaskSpec
    examples: Sequence[Example]
    template: str | None = None
    shots: tuple[Example, ...] = ()
