"""A whole run in miniature: a random two-layer encoder, four tasks of four kinds, rows of random tokens.

As a script, one rank of several: `python tiny.py <folder>` runs PLAIN and SHARDED and leaves results there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mtnlp import balancers, heads, strategies
from mtnlp.data.mixture import Mixture
from mtnlp.data.store import TokenStore
from mtnlp.errors import TrainingError
from mtnlp.models.backbone import Backbone
from mtnlp.models.multitask import MultitaskModel
from mtnlp.samplers.base import Phase
from mtnlp.tasks.spec import TaskSpec
from mtnlp.train import checkpoint
from mtnlp.train.callbacks import Evaluate
from mtnlp.train.grads import place, whole
from mtnlp.train.loop import Run, fit, steps
from mtnlp.train.optim import Optimizer, Schedule

VOCABULARY, WIDTH = 50, 32
TASKS = {  # name -> (kind, rows, labels)
    "topic": ("classify", 23, ("a", "b", "c")),
    "mood": ("regress", 9, None),
    "names": ("tag", 14, ("O", "B-x", "I-x")),
    "pick": ("choose", 7, None),
}


def store(name: str) -> TokenStore:
    kind, rows, labels = TASKS[name]
    draw = np.random.default_rng([len(name), rows])
    sequences = draw.integers(2, 4, rows) if kind == "choose" else np.ones(rows, int)
    counts = draw.integers(3, 13, sequences.sum())
    length = np.array([own.max() for own in np.split(counts, np.cumsum(sequences)[:-1])])
    arrays = {
        "sequences": sequences.astype(np.int32),
        "token_counts": counts.astype(np.int32),
        "length": length.astype(np.int32),
        "target_length": np.zeros(rows, np.int32),
        "tokens": draw.integers(1, VOCABULARY, counts.sum()).astype(np.uint16),
    }
    if kind == "tag":
        arrays["tags"] = draw.integers(0, len(labels), counts.sum()).astype(np.int32)
        arrays["words"] = np.zeros(counts.sum(), np.int32)
    elif kind == "regress":
        arrays["target"] = draw.random(rows).astype(np.float32)
    else:
        arrays["target"] = draw.integers(0, len(labels or "xy"), rows)
    meta = {"kind": kind, "form": "encoder", "classes": 0, "labelled": True, "truncated": 0}
    return TokenStore(arrays, meta)


def backbone(dropout: float) -> Backbone:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return Backbone(BertModel(config, add_pooling_layer=False), None, "encoder")


def make(
    *,
    strategy: str = "lora-per-task",
    balancer: str = "equal",
    tasks=tuple(TASKS),
    total: int = 6,
    dropout: float = 0.1,
    seed: int = 3,
    examples: int = 10,
    max_tokens: int = 60,
    precision: str = "no",
    schedule: Schedule | None = None,
    rates=None,
    flat: bool = False,
    **optimizer,
) -> Run:
    """A run; the same arguments always give the same one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    acc = Accelerator(cpu=True, mixed_precision=precision)
    trunk, shared = backbone(dropout), strategies.get(strategy)()
    shared.attach(trunk, tasks, seed)
    own = {}
    for name in tasks:
        torch.manual_seed(len(name))
        kind, _, labels = TASKS[name]
        own[name] = heads.for_kind(kind)(
            WIDTH, TaskSpec(name=name, kind=kind, source={}, labels=labels), dropout=dropout
        )
    model = MultitaskModel(trunk, shared, own, tasks)
    weigher = balancers.get(balancer)()
    weigher.setup(tasks)
    place(model, weigher, acc)
    stores = [store(name) for name in tasks]
    sizes = np.array([len(s) for s in stores])
    phases = [Phase(0, sizes / sizes.sum() if rates is None else np.array(rates))]
    mixture = Mixture(
        tasks,
        stores,
        phases,
        seed=seed,
        examples_per_step=examples,
        max_tokens=max_tokens,
        pad_id=0,
        form="encoder",
        flat=flat,
    )
    update = Optimizer(model, weigher, schedule or Schedule(lr=1e-2, steps=total, warmup=1), **optimizer)
    return Run(
        tasks=tasks,
        model=model,
        mixture=mixture,
        balancer=weigher,
        optimizer=update,
        accelerator=acc,
        steps=total,
        seed=seed,
    )


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = run.model.trainable_state()
    found |= {f"balancer/{name}": parameter for name, parameter in run.balancer.named_parameters()}
    return {name: whole(tensor.detach()).clone() for name, tensor in found.items()}


PLAIN = {  # run on 1 and on 2 ranks; eps keeps AdamW from blowing up what rounding leaves of zero gradients
    "bank": {"strategy": "lora-per-task", "dropout": 0.0, "eps": 1e-4},
    "one row": {"strategy": "lora-per-task", "dropout": 0.0, "eps": 1e-4, "examples": 1},  # none for rank 1
    "bank, flat": {"strategy": "lora-per-task", "dropout": 0.0, "eps": 1e-4, "flat": True},
    "shared": {"strategy": "lora", "balancer": "uncertainty", "dropout": 0.0, "eps": 1e-4},
    "gram": {"strategy": "lora", "balancer": "pcgrad", "dropout": 0.0, "eps": 1e-4, "examples": 5},
}
SHARDED = {
    "full": {"strategy": "full", "dropout": 0.0, "eps": 1e-4, "max_tokens": 30},
    "full, flat": {"strategy": "full", "dropout": 0.0, "eps": 1e-4, "max_tokens": 30, "flat": True},
    "full, one row": {"strategy": "full", "dropout": 0.0, "eps": 1e-4, "examples": 1},
    "full, gram": {"strategy": "full", "balancer": "pcgrad", "dropout": 0.0, "eps": 1e-4, "examples": 5},
    "sharded bank": {"strategy": "lora-per-task", "dropout": 0.0, "eps": 1e-4},
}


def outcome(options: dict) -> tuple[list[list], dict[str, torch.Tensor]]:
    """Losses, norm and tokens of every step, and the weights at the end."""
    run = make(**options)
    records = [[r.losses, r.grad_norm, r.tokens] for r in steps(run)]
    return records, weights(run)


def predictions(run: Run) -> list:
    """Of the first micro-batch of step 0, as one process would see it."""
    batch = run.mixture.batches(run.mixture.plan(0))[0]
    run.model.eval()
    with torch.no_grad():
        run.model.begin(list(range(len(run.tasks))))
        return run.model.predict(batch)


def nan_on_one_rank(folder: Path, rank: int) -> None:
    """Only rank 1 sees a loss that is not finite."""
    run = make(dropout=0.0)
    before = weights(run)
    if rank == 1:
        head = run.model.head(0)
        head.loss = lambda hidden, mask, part: torch.full((part.examples,), torch.nan, requires_grad=True)
    message = ""
    try:
        next(steps(run))
    except TrainingError as error:
        message = str(error)
    same = all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    (folder / f"nan-{rank}.json").write_text(json.dumps({"message": message, "same": same}))


def asked_on_one_rank(folder: Path, rank: int) -> None:
    """Only rank 1 is told to stop, after step 2."""
    run = make(dropout=0.0)
    for record in steps(run):
        run.asked_to_stop = rank == 1 and record.step == 2
    (folder / f"asked-{rank}.json").write_text(json.dumps([run.step, run.stopped]))


def ended_on_ranks(folder: Path, rank: int) -> None:
    """The ranks score differently; what ends when, and what is kept, must be the same on both."""
    run = make(dropout=0.0, total=12)

    def evaluate() -> dict[str, float]:
        return {"topic": run.step, "mood": -run.step, "names": run.step * (-1 if rank else 1)}

    best = folder / "best.safetensors"
    fit(run, [Evaluate(run, evaluate, best=best, patience=2)])
    found = {"memory": run.memory, "step": run.step, "after": run.mixture.plan(11).counts}
    (folder / f"ended-{rank}.json").write_text(json.dumps(found))
    save_file(weights(run), folder / f"ended-{rank}.safetensors")


def sharded_resume(folder: Path, rank: int) -> None:
    """Save sharded weights in the middle of an epoch, load them into a new run, go on to the end."""
    half = make(**SHARDED["full"])
    assert half.sharded
    for record in steps(half):
        if record.step == 3:
            break
    saved = checkpoint.save(half, folder / "sharded")
    resumed = make(**SHARDED["full"])
    checkpoint.load(resumed, saved)
    list(steps(resumed))
    save_file(weights(resumed), folder / f"resumed-{rank}.safetensors")
    (folder / f"predicted-{rank}.json").write_text(json.dumps(predictions(resumed)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for sharded, scenarios in (("false", PLAIN), ("true", SHARDED)):
        os.environ["ACCELERATE_USE_FSDP"] = sharded  # what `accelerate launch --use_fsdp` sets
        for name, options in scenarios.items():
            records, end = outcome(options)
            (folder / f"{name}-{rank}.json").write_text(json.dumps(records))
            save_file(end, folder / f"{name}-{rank}.safetensors")
        (sharded_resume if sharded == "true" else nan_on_one_rank)(folder, rank)
        asked_on_one_rank(folder, rank)
        ended_on_ranks(folder, rank)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
