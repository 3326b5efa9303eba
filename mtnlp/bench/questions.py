"""What a model is asked: examples of one task. Apart from the predictor, because it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtnlp.tasks.answers import CLOSED
from mtnlp.tasks.spec import Example, TaskSpec, Template

LIKELIHOODS = ("likelihood", "text")  # requests that are answered by how likely a text is


@dataclass(frozen=True)
class Questions:
    """Examples of one task to predict.

    Args:
        template, shots: as in tasks.templates.render.
        request: how a model that writes text is asked. "options": the likelihood of each option; "generate":
            what it writes is read; "auto": options where there is one closed list of them, else generate;
            "likelihood": of the target; "text": of the input `text` of a row by itself, by a decoder.
        drawn: id of a document (bench.shots.document) -> solved examples drawn for it, in place of `shots`;
            empty = the same shots for all.
        generation: how texts are written, as in models.generation.Generation.
    """

    spec: TaskSpec
    examples: Sequence[Example]
    template: str | Template | None = None
    shots: tuple[Example, ...] = ()
    request: str = "auto"
    drawn: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_options(self) -> bool:
        return self.request == "options" or (self.request == "auto" and self.spec.kind in CLOSED)
