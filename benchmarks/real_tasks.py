"""Twelve real tasks: one joint run of mtnlp against twelve single-task runs of the Trainer with peft.

Run:     python benchmarks/real_tasks.py [--tasks N] [--steps K] [--json real.json]
         (needs the weights of `minilm` and the folder ../shared/data beside the checkout)
Cost:    hours on one core for all 400 steps; a quarter of an hour with --steps 20; a minute with --quick
The recipe is benchmarks/real-tasks.yaml: 400 steps of 144 rows, so many of each task in every step, one
LoRA and one head per task. A single-task run has the same rows (the tokens that ours reads), as many of
them per step, the same number of steps, learning rate and LoRA (rank 8, all 36 linear layers); all else is
the library's default: transformers' model for the kind of task, fp32, SDPA, random batches. Each side runs
in a process of its own and is timed by CPU seconds from the first step to the last; neither loading,
tokenising nor scoring counts.

With fewer than 400 steps, time is measured per step and multiplied ("projected"); only whole runs are
scored, both on the same rows of the validation split and by the same metrics.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _kit import Row, apart, arguments, clock_for, doing, report

from mtnlp import assemble, config
from mtnlp.bench.evaluate import TaskScore, evaluate, score
from mtnlp.data.encode import decode
from mtnlp.data.store import TokenStore
from mtnlp.data.task_data import TaskData
from mtnlp.resolve import Plan, resolve
from mtnlp.runs.session import questions_of, store_of, train_targets

RECIPE, SPLIT = Path(__file__).parent / "real-tasks.yaml", "validation"
TARGET = 1 / 3
Record = dict[str, Any]


def plan_of(count: int, steps: int) -> Plan:
    """The recipe's first `count` tasks, each with its own number of rows in every step."""
    whole = config.load(RECIPE)
    tasks = list(whole.tasks)[:count]
    rates = {Path(task).name: whole.sampler.options["rates"][Path(task).name] for task in tasks}
    budget = {"steps": steps, "examples_per_step": sum(rates.values())}
    data = whole.data() | {"tasks": tasks, "sampler": {"name": "weights", "rates": rates}}
    data["train"] = data["train"] | budget
    return resolve(data)


def store(data: TaskData, split: str, recipe: config.Recipe, tokenizer: Any) -> TokenStore:
    problems: list[str] = []
    found = store_of(data, split, assemble.encoder_for(recipe, tokenizer, "encoder"), problems)
    assert found is not None, problems
    return found


# One run of all.


def joint(count: int, steps: int, rows: int, threads: int, scored: bool) -> dict[str, Any]:
    """CPU seconds of all steps, and each task's scores."""
    from dataclasses import replace

    from mtnlp.train.callbacks import MetricsWriter, Progress
    from mtnlp.train.loop import fit

    plan = plan_of(count, steps)
    train = plan.recipe.train.model_copy(update={"threads": threads})
    recipe, engine = assemble.settle(plan.recipe.model_copy(update={"train": train}))
    plan = replace(plan, recipe=recipe)
    with tempfile.TemporaryDirectory() as folder, engine.applied(training=True):
        backbone = assemble.build_backbone(recipe)
        encoder = assemble.encoder_for(recipe, backbone.tokenizer, backbone.family)
        stores = [store(data, "train", recipe, backbone.tokenizer) for data in plan.data]
        acc = assemble.build_accelerator(recipe)
        run = assemble.build_run(plan, backbone, stores, encoder, acc)
        writer = MetricsWriter(Path(folder) / "metrics.jsonl")
        progress, clock = Progress(steps, tasks=run.tasks, enabled=False), clock_for(threads)
        start = clock()
        fit(run, [writer, progress])
        seconds = clock() - start
        writer.close()
        if not scored:
            return {"seconds": seconds, "engine": engine.line, "scores": {}}
        predictor = assemble.build_predictor(recipe, run.model, encoder, acc)
        asked = {i: questions_of(data, SPLIT, most=rows) for i, data in enumerate(plan.data)}
        targets = {i: train_targets(data) for i, data in enumerate(plan.data)}
        scores = evaluate(predictor, asked, targets, split=SPLIT).scores
    return {"seconds": seconds, "engine": engine.line, "scores": {item.task: item for item in scores}}


# One run of each.


def features(data: TokenStore, kind: str) -> list[Record]:
    """The rows of a store as the Trainer takes them: one sequence each, or the choices of one."""
    found = []
    for i in range(len(data)):
        parts = []
        for sequence in range(int(data.seq_offsets[i]), int(data.seq_offsets[i + 1])):
            here = slice(int(data.token_offsets[sequence]), int(data.token_offsets[sequence + 1]))
            part = {
                "input_ids": data["tokens"][here].tolist(),
                "token_type_ids": data["types"][here].tolist(),
            }
            if kind == "tag":
                part["labels"] = data["tags"][here].tolist()
            parts.append(part)
        if kind == "choose":
            found.append({"choices": parts, "labels": int(data["target"][i])})
        elif kind == "tag":
            found.append(parts[0])
        else:
            target = data["target"][i]
            number = {"regress": float, "multilabel": lambda row: row.astype(float).tolist()}.get(kind, int)
            found.append(parts[0] | {"labels": number(target)})
    return found


def network(spec: Any, place: str) -> Any:
    """Transformers' model for the kind, with peft's LoRA and its own head to train."""
    import transformers as tr
    from _parts import BERT_LINEARS, lora_config
    from peft import get_peft_model

    options: Record = {"num_labels": len(spec.labels or "x")}
    if spec.kind == "choose":
        net = tr.AutoModelForMultipleChoice.from_pretrained(place)
        settings = lora_config(BERT_LINEARS)
        settings.modules_to_save = ["classifier"]
        return get_peft_model(net, settings)
    if spec.kind == "tag":
        net = tr.AutoModelForTokenClassification.from_pretrained(place, **options)
        return get_peft_model(net, lora_config(BERT_LINEARS, "TOKEN_CLS"))
    problem = {"regress": "regression", "multilabel": "multi_label_classification"}.get(spec.kind)
    net = tr.AutoModelForSequenceClassification.from_pretrained(place, problem_type=problem, **options)
    return get_peft_model(net, lora_config(BERT_LINEARS, "SEQ_CLS"))


def collator(spec: Any, tokenizer: Any) -> Any:
    import transformers as tr

    if spec.kind == "tag":
        return tr.DataCollatorForTokenClassification(tokenizer)
    padding = tr.DataCollatorWithPadding(tokenizer)
    return Choices(padding) if spec.kind == "choose" else padding


class Choices:
    """Pads rows of several sequences; rows with fewer choices get empty ones."""

    def __init__(self, padding: Any) -> None:
        self.padding = padding

    def __call__(self, rows: list[Record]) -> Record:
        import torch

        most = max(len(row["choices"]) for row in rows)
        ids = [self.padding.tokenizer.cls_token_id, self.padding.tokenizer.sep_token_id]
        empty = {"input_ids": ids, "token_type_ids": [0, 0]}
        flat = [part for row in rows for part in [*row["choices"], *[empty] * (most - len(row["choices"]))]]
        batch = self.padding(flat)
        shaped = {name: value.view(len(rows), most, -1) for name, value in batch.items()}
        return {**shaped, "labels": torch.tensor([row["labels"] for row in rows])}


def answers(spec: Any, logits: np.ndarray, data: TokenStore, examples: list[Any]) -> list[Any]:
    """Predictions as the metrics take them."""
    if spec.kind == "regress":
        return logits[:, 0].astype(float).tolist()
    if spec.kind == "multilabel":
        return [tuple(np.flatnonzero(row > 0).tolist()) for row in logits]
    if spec.kind != "tag":
        last = data.sequences if spec.kind == "choose" else [None] * len(logits)
        return [int(row[:most].argmax()) for row, most in zip(logits, last)]
    return [
        decode(spec, example, row.argmax(-1), data, i)
        for i, (example, row) in enumerate(zip(examples, logits, strict=True))
    ]


@cache
def quiet() -> None:
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def alone(count: int, index: int, steps: int, rows: int, threads: int, scored: bool) -> dict[str, Any]:
    """CPU seconds of one task's run, and its scores."""
    import torch
    import transformers as tr

    from mtnlp.models.places import place_of

    quiet()
    torch.set_num_threads(threads)
    plan, place = plan_of(count, steps), place_of("minilm")
    data, recipe = plan.data[index], plan.recipe
    spec, tokenizer = data.spec, tr.AutoTokenizer.from_pretrained(place)
    clock, span = clock_for(threads), []

    class Clock(tr.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            span.append(clock())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            span.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        settings = tr.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=recipe.sampler.options["rates"][spec.name],
            learning_rate=recipe.train.lr,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        made = tr.Trainer(
            model=network(spec, place),
            args=settings,
            train_dataset=features(store(data, "train", recipe, tokenizer), spec.kind),
            data_collator=collator(spec, tokenizer),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        made.remove_callback(tr.PrinterCallback)
        made.train()
        found: dict[str, Any] = {"seconds": span[1] - span[0], "score": None}
        if scored:
            found["score"] = judged(made, data, recipe, tokenizer, rows)
    return found


def judged(trainer: Any, data: TaskData, recipe: config.Recipe, tokenizer: Any, rows: int) -> TaskScore:
    part = questions_of(data, SPLIT, most=rows)
    encoder = assemble.encoder_for(recipe, tokenizer, "encoder")
    tokens = TokenStore.from_columns(encoder.encode(part.spec, part.examples))
    logits = trainer.predict(features(tokens, part.spec.kind)).predictions
    return score(part, answers(part.spec, logits, tokens, list(part.examples)), train_targets(data), SPLIT)


def both(mine: TaskScore, other: TaskScore) -> str:
    return f"{mine.main}: {mine.values[mine.main]:.3f}, alone {other.values[other.main]:.3f}"


def rows_for(names: list[str], one: dict[str, Any], many: list[dict[str, Any]], options: Namespace) -> dict:
    times = options.whole / options.steps
    word = "" if times == 1 else f", projected to {options.whole} steps from {options.steps}"
    together, apart = one["seconds"] * times, sum(item["seconds"] for item in many) * times
    ratio = together / apart
    note = f"{together:,.0f} s against {apart:,.0f} s{word}"
    table = {
        f"time{word}": [Row("one run / all single runs", "single runs", *[ratio] * 3, TARGET, note=note)]
    }
    table[f"CPU seconds of a task's single run{word}"] = [
        Row(name, "-", *[item["seconds"] * times] * 3) for name, item in zip(names, many)
    ]
    if one["scores"]:
        pairs = [(one["scores"][name], item["score"]) for name, item in zip(names, many)]
        gaps = [(mine.values[mine.main] - other.values[other.main], mine, other) for mine, other in pairs]
        table["validation score, joint minus single"] = [
            Row(mine.task, "-", *[gap] * 3, note=both(mine, other)) for gap, mine, other in gaps
        ]
        mean = float(np.mean([gap for gap, _, _ in gaps]))
        table["mean of these"] = [Row("joint minus single", "-", mean, mean, mean, target=0.0, most=False)]
    return table


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=12, help="only the first so many")
    parser.add_argument(
        "--steps", type=int, help="of every run; default: the recipe's, which are then scored"
    )
    parser.add_argument("--rows", type=int, default=500, help="validation rows of each task")
    options = parser.parse_args()
    options.whole = config.load(RECIPE).train.steps
    if options.quick:
        options.tasks, options.steps = min(2, options.tasks), options.steps or 2
    options.steps = options.steps or options.whole
    scored = options.steps == options.whole
    common = (options.steps, options.rows, options.threads, scored)
    names = list(plan_of(options.tasks, options.steps).names)
    with apart() as process:
        doing("one run of all")
        one, many = process.submit(joint, options.tasks, *common).result(), []
    with apart() as process:
        for i, name in enumerate(names):
            doing(f"{name} alone")
            many.append(process.submit(alone, options.tasks, i, *common).result())
    title = f"{options.tasks} real tasks, {options.steps} steps"
    report(title, rows_for(names, one, many, options), options, engine=one["engine"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
