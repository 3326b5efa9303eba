"""A small task of every kind with rows of random words, as a recipe holds it; runs of them on tiny backbones.

A run is put together by mtnlp.assemble from a recipe, as `mtnlp finetune` does; only the backbone is small.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tiny_hub import stand_in
from torch import Tensor, nn

from mtnlp import assemble
from mtnlp.data.batch import Batch
from mtnlp.data.kept import cache_dir
from mtnlp.models.backbone import Backbone
from mtnlp.resolve import resolve
from mtnlp.train.grads import whole
from mtnlp.train.loop import Run

TEXT = """card city river answer music light stone winter market doctor letter garden window paper night
water king engine number field summer horse bridge colour table forest train story"""
WORDS = TEXT.split()
LABELS = ("negative", "neutral", "positive")
ENTITIES = ("O", "B-loc", "I-loc")
TWELVE = {  # tasks of every kind that an encoder can do
    "topic": "classify", "mood": "classify", "entails": "pair", "same": "pair", "stars": "ordinal",
    "tags": "multilabel", "rating": "regress", "likeness": "regress", "pick": "choose", "exam": "choose",
    "names": "tag", "answer": "span",
}  # fmt: skip
KINDS = ("classify", "pair", "ordinal", "multilabel", "regress", "choose", "tag", "span", "generate")


def task(name: str, kind: str, *, rows: int = 24, words: int = 7) -> dict[str, Any]:
    """A recipe's mapping of a task with rows in memory; they depend on its name only."""
    draw = random.Random(f"{name} {kind}")
    train, validation = ([_row(kind, draw, words) for _ in range(n)] for n in (rows, 6))
    made = {"name": name, "kind": kind, "source": {"train": train, "validation": validation}}
    if kind == "tag":
        made["labels"] = list(ENTITIES)
    elif kind in ("classify", "pair", "ordinal", "multilabel"):
        made["labels"] = list(LABELS)
    return made


def _row(kind: str, draw: random.Random, words: int) -> dict[str, Any]:
    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, words)))

    if kind in ("classify", "ordinal"):
        return {"text": text(), "label": draw.choice(LABELS)}
    if kind == "pair":
        return {"text": text(), "text_pair": text(), "label": draw.choice(LABELS)}
    if kind == "multilabel":
        return {"text": text(), "labels": [label for label in LABELS if draw.random() < 0.5]}
    if kind == "regress":
        return {"text": text(), "score": draw.randint(0, 20) / 4}
    if kind == "choose":
        choices = draw.sample(WORDS, draw.randint(2, 4))
        return {"question": text(), "choices": choices, "answer": draw.randrange(len(choices))}
    if kind == "tag":
        tokens = text().split()
        return {"tokens": tokens, "tags": [draw.choice(ENTITIES) for _ in tokens]}
    if kind == "span":
        context = draw.sample(WORDS, words + 2)
        found = draw.choice(context) if draw.random() < 0.7 else None
        context = " ".join(context)
        start = [] if found is None else [f" {context} ".index(f" {found} ")]
        answers = {"text": [found] * len(start), "answer_start": start}
        return {"question": text(), "context": context, "answers": answers}
    return {"text": text(), "target": text()}


def backbone(kind: str, folder: Path, *, dropout: float = 0.0) -> str:
    """Path of a folder with a random network (see tiny_hub) and this much dropout in it."""
    place = stand_in(kind, folder) / "config.json"
    config = json.loads(place.read_text("utf-8"))
    config |= {name: dropout for name in config if name.endswith(("dropout", "dropout_prob", "dropout_rate"))}
    place.write_text(json.dumps(config), "utf-8")
    return str(folder)


def recipe(
    path: str, tasks: Iterable[Mapping[str, Any]], *, strategy: Any = "lora-per-task", **train: Any
) -> dict[str, Any]:
    """A recipe as plain data: uniform sampler, float32, no head dropout, nothing left to measurement, and no
    clipping unless asked for."""
    plain = {"lr": 1e-3, "precision": "fp32", "matmul": "highest", "warmup": 1, "max_norm": 1e9, "steps": 4}
    return {
        "model": {"backbone": path, "attention": "eager", "strategy": strategy, "head_dropout": 0.0,
                  "max_length": 96, "max_target_length": 16},
        "tasks": list(tasks),
        "sampler": "uniform",
        "train": plain | train,
    }  # fmt: skip


def build(recipe: Mapping[str, Any], *, trunk: Backbone | None = None) -> Run:
    """The run of a recipe, as `mtnlp finetune` puts it together; on a copy of `trunk` where that is given."""
    plan = resolve(recipe)
    trunk = assemble.build_backbone(plan.recipe) if trunk is None else copy.deepcopy(trunk)
    encoder = assemble.encoder_for(plan.recipe, trunk.tokenizer, trunk.family)
    accelerator = assemble.build_accelerator(plan.recipe)
    stores = [data.store("train", encoder, cache_dir() / "tokens") for data in plan.data]
    return assemble.build_run(plan, trunk, stores, encoder, accelerator)


def batches(run: Run, step: int, **options: Any) -> list[Batch]:
    return run.mixture.batches(run.mixture.plan(step), **options)


def weights(run: Run) -> dict[str, Tensor]:
    """Everything that is trained, by name, copied."""
    return {name: whole(tensor).clone() for name, tensor in run.model.trainable_state().items()}


def dropouts(net: nn.Module) -> set[float]:
    return {module.p for module in net.modules() if isinstance(module, nn.Dropout)}
