"""Which outputs of a network's own classification head stand for the labels of a task; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtnlp.errors import MtnlpError, shown
from mtnlp.tasks.spec import TaskSpec

KINDS = {
    "ForSequenceClassification": ("classify", "pair", "ordinal", "multilabel", "regress"),
    "ForTokenClassification": ("tag",),
}


def head_of(config: Mapping[str, Any]) -> str | None:
    """The key of KINDS that a model's configuration (config.json) has; None = no such head."""
    trained = " ".join(config.get("architectures") or ())
    return next((head for head in KINDS if head in trained), None)


def columns(config: Mapping[str, Any], spec: TaskSpec) -> list[int]:
    """For each label of a task the output of the network that stands for it; [0] for a score.

    Names are compared without case; a network that never named its labels (LABEL_0 ...) has them in the
    task's order.

    Raises:
        MtnlpError: another kind of task, or labels that the network lacks.
    """
    head, named = head_of(config), config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if spec.kind not in KINDS[head or ""]:
        raise MtnlpError(f"a {spec.kind} task cannot be answered by its head ({head}).")
    if spec.kind == "regress":
        if len(named) != 1:
            raise MtnlpError(f"a score needs a head with one output, and it has {len(named)}.")
        return [0]
    names = [str(named[key]) for key in sorted(named, key=int)]
    labels = list(spec.labels or ())
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        if len(names) != len(labels):
            raise MtnlpError(
                f"its head has {len(names)} outputs without names, and the task {len(labels)} labels "
                f"({', '.join(labels[:12])}). Give the task as many `labels`, in the order of the outputs."
            )
        return list(range(len(labels)))
    place = {name.casefold(): i for i, name in enumerate(names)}
    if lacking := [label for label in labels if label.casefold() not in place]:
        raise MtnlpError(
            f"its head has no {', '.join(map(shown, lacking[:5]))}. It knows {', '.join(names[:12])}. Rename "
            "the task's labels to these, under `labels`."
        )
    return [place[label.casefold()] for label in labels]
