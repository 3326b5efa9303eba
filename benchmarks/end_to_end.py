"""Real tokens per second of whole training runs on rows of many lengths, against the Trainer with peft.

Run:     python benchmarks/end_to_end.py [--form encoder] [--examples 16 64] [--threads 2] [--json FILE]
Cost:    an hour and a half on one core, 12 GB of memory; two minutes with --quick
Rows of 16 tasks with random tokens. Encoder: lengths lognormal, median 60, sigma 0.9, 8..512, four labels.
Encoder-decoder: tasks with median sources of 28..350 and median targets of 3..60 tokens, sigma 0.5. The
network has random weights (BERT, 6 x 384; T5, 4 + 4 x 384, or --text bert2bert), LoRA of rank 8 on all
linear layers of its blocks, no dropout. All cases learn 16 (or 64) examples per optimizer step.

    mtnlp               the run that assemble makes and loop.fit trains: mixture, Accelerate, optimizer,
                        metrics.jsonl; the house defaults; `lora` (shared) and `lora-per-task`
    mtnlp, no padding   the same with `lora` and as many real tokens in rows of one length: the limit
    Trainer, defaults   Trainer / Seq2SeqTrainer + peft, one shared LoRA, as the library comes: fp32, SDPA,
                        random batches; DataCollatorWithPadding / DataCollatorForSeq2Seq
    Trainer, tuned      bf16, eager attention or SDPA, matmul precision "medium", micro-batches of at most 16
                        rows (or 4) and gradient accumulation; random, group_by_length or batch_rebalance
                        sampling. The targets hold for the faster attention; micro-batches of 4 are only
                        reported

Each case lives in a process of its own, which sets nothing but what its case says, builds the model once
and trains when it is called; rounds are interleaved as everywhere. Counted is the CPU time (one thread;
else wall clock) of that process from on_train_begin to on_train_end, or of loop.fit, so neither imports nor
building. Times are divided by the real tokens of the rows trained on: tokens of the source, and of the
target where there is one. Random sampling runs a third of the epoch, since any part of it is like the
whole.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from _kit import Row, Times, apart, arguments, clock_for, compared, doing, report, timed

TASKS, CONSTANT = 16, 64
OVER_DEFAULTS = {"encoder": 10.0, "encoder-decoder": 6.0}
OVER_RANDOM, OVER_GROUPED, PADDED, OVER_LIMIT = 4.0, 1.7, 1.05, 1.3


@dataclass(frozen=True)
class Case:
    """One way to train. `strategy` is ours; without one it is the Trainer."""

    name: str
    strategy: str | None = None
    constant: bool = False
    tuned: bool = True
    attention: str = "eager"
    sampling: str = "random"
    micro: int = 16
    form: str = "encoder"
    text: str = "t5"
    examples: int = 16
    epoch: int = 640  # rows
    threads: int = 1

    @property
    def steps(self) -> int:
        share = 3 if self.strategy is None and self.sampling == "random" else 1
        return max(2, self.epoch // self.examples // share)


OURS = [Case("mtnlp lora", "lora"), Case("mtnlp lora-per-task", "lora-per-task")]
LIMIT = Case("mtnlp lora, no padding", "lora", constant=True)
DEFAULTS = Case("Trainer, defaults", tuned=False, attention="sdpa", micro=1 << 20)
RANDOM = [Case(f"Trainer, tuned, {kind}, random", attention=kind) for kind in ("eager", "sdpa")]
GROUPED = [
    Case(f"Trainer, tuned, {kind}, group_by_length", attention=kind, sampling="group_by_length")
    for kind in ("eager", "sdpa")
]
BY_4 = [
    Case(f"Trainer, tuned, eager, {sampling}, by 4", sampling=sampling, micro=4)
    for sampling in ("random", "batch_rebalance")
]
CASES = [*OURS, LIMIT, DEFAULTS, *RANDOM, *GROUPED, *BY_4]


# Rows.


def sizes_of(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) task, source tokens and target tokens of every row.

    N is the epoch, or for rows of one length as many as have the same number of tokens.
    """
    draw = np.random.default_rng(0)
    task = draw.permutation(np.arange(case.epoch) % TASKS)
    if case.form == "encoder":
        source = np.exp(np.log(60) + 0.9 * draw.standard_normal(case.epoch))
        target = np.zeros(case.epoch, int)
    else:
        medians = np.geomspace(28, 350, TASKS), draw.permutation(np.geomspace(3, 60, TASKS))
        source, target = (m[task] * np.exp(0.5 * draw.standard_normal(case.epoch)) for m in medians)
        target = np.clip(target, 2, 128).astype(int)
    source = np.clip(source, 8, 512).astype(int)
    if not case.constant:
        return task, source, target
    targets = max(1, round(target.mean())) if case.form != "encoder" else 0
    rows = int(source.sum() + target.sum()) // (CONSTANT + targets)
    return np.arange(rows) % TASKS, np.full(rows, CONSTANT), np.full(rows, targets)


@cache
def rows_of(case: Case) -> list[dict[str, Any]]:
    """As the Trainer takes them."""
    draw, (task, source, target) = np.random.default_rng(1), sizes_of(case)
    rows = []
    for own, length, answer in zip(task.tolist(), source.tolist(), target.tolist()):
        ids = draw.integers(5, 8192, length).tolist()
        wanted = draw.integers(5, 8192, answer).tolist() if answer else int(draw.integers(4))
        rows.append({"task": own, "input_ids": ids, "labels": wanted})
    return rows


def tokens_of(row: dict[str, Any]) -> int:
    return len(row["input_ids"]) + (len(row["labels"]) if isinstance(row["labels"], list) else 0)


# Our side.


@cache
def our_stores(case: Case) -> list:
    from _parts import classified, written

    stores = []
    for task in range(TASKS):
        mine = [row for row in rows_of(case) if row["task"] == task]
        tokens = [np.array(row["input_ids"]) for row in mine]
        if case.form == "encoder":
            stores.append(classified(tokens, np.array([row["labels"] for row in mine])))
        else:
            stores.append(written(tokens, [np.array(row["labels"]) for row in mine]))
    return stores


@cache
def measured(case: Case) -> Any:
    """Recipe and engine: what is left open is measured once."""
    from _parts import settled

    return settled(case.strategy, threads=case.threads)


def ours(case: Case, seed: int, steps: int) -> dict[str, float]:
    from _parts import bert, our_run

    from mtnlp.train.callbacks import MetricsWriter, Progress
    from mtnlp.train.loop import fit

    examples = case.examples
    if case.constant:  # as many real tokens per step as there are in the mixed rows
        examples = round(examples * len(rows_of(case)) / case.epoch)
    settings, engine = measured(case)
    train = settings.train.model_copy(update={"steps": steps, "examples_per_step": examples})
    settings, records = settings.model_copy(update={"train": train}), []
    with tempfile.TemporaryDirectory() as folder, engine.applied(training=True):
        net = bert() if case.form == "encoder" else text_net(case)
        run = our_run(net, our_stores(case), settings)
        writer = MetricsWriter(Path(folder) / "metrics.jsonl")
        progress, clock = Progress(steps, tasks=run.tasks, enabled=False), clock_for(case.threads)
        start = clock()
        fit(run, [writer, progress, records.append])
        seconds = clock() - start
        writer.close()
    real = 0
    for step in range(steps):
        plan = run.mixture.plan(step)
        for task, rows in zip(plan.tasks, plan.rows):
            store = run.mixture.stores[task]
            real += int(store.length[rows].sum() + store.target_length[rows].sum())
    counted = sum(record.tokens for record in records)
    padded = sum(record.tokens / record.useful_share for record in records)
    return {"seconds": seconds, "real": real, "padded": padded / counted}


def text_net(case: Case) -> Any:
    import _parts

    return {"t5": _parts.t5, "bert2bert": _parts.bert2bert}[case.text](attention=case.attention)


# The Trainer's side.


class Counting:
    """A collator that notes the size of every batch it makes."""

    def __init__(self, collator: Any) -> None:
        self.collator, self.seen = collator, []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
        padded = batch["input_ids"].numel()
        padded += batch["labels"].numel() if batch["labels"].ndim > 1 else 0
        self.seen.append((sum(tokens_of(row) for row in rows), padded))
        return batch


@cache
def peft_net(case: Case) -> Any:
    from _parts import BERT_LINEARS, LABELS, T5_LINEARS, bert, lora_config
    from peft import get_peft_model

    if case.form == "encoder":
        net = bert(attention=case.attention, labels=len(LABELS))
        return get_peft_model(net, lora_config(BERT_LINEARS, "SEQ_CLS"))
    targets = T5_LINEARS if case.text == "t5" else BERT_LINEARS
    return get_peft_model(text_net(case), lora_config(targets, "SEQ_2_SEQ_LM"))


def trainer(case: Case, seed: int, steps: int) -> dict[str, float]:
    import transformers as tr
    from _parts import tokenizer

    micro = min(case.micro, case.examples)
    pads, clock, span = tokenizer(), clock_for(case.threads), []
    if case.form == "encoder":
        kind, arguments_of = tr.Trainer, tr.TrainingArguments
        collator = Counting(tr.DataCollatorWithPadding(pads))
    else:
        kind, arguments_of = tr.Seq2SeqTrainer, tr.Seq2SeqTrainingArguments
        collator = Counting(tr.DataCollatorForSeq2Seq(pads, peft_net(case)))

    class Clock(tr.TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            span.append(clock())

        def on_train_end(self, *_, **__) -> None:
            span.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        settings = arguments_of(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=micro,
            gradient_accumulation_steps=case.examples // micro, train_sampling_strategy=case.sampling,
            bf16=case.tuned, seed=seed, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        made = kind(
            model=peft_net(case), args=settings, train_dataset=rows_of(case), data_collator=collator,
            processing_class=pads, callbacks=[Clock()],
        )  # fmt: skip
        made.remove_callback(tr.PrinterCallback)
        made.train()
    trained = collator.seen[: steps * (case.examples // micro)]  # one more batch is prepared than is used
    real, padded = (sum(sizes) for sizes in zip(*trained))
    return {"seconds": span[1] - span[0], "real": real, "padded": padded / real}


# All cases, each in its own process.


def train(case: Case, seed: int, steps: int | None = None) -> dict[str, float]:
    """One training run in the process of its case."""
    import warnings

    import torch
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(case.threads)
    if case.strategy is None and case.tuned:
        torch.set_float32_matmul_precision("medium")
    try:
        return (ours if case.strategy else trainer)(case, seed, steps or case.steps)
    finally:
        give_back_memory()


def give_back_memory() -> None:
    """Leave the other processes room while this one waits for its next turn."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Workers:
    """A process per case; `found` keeps all that they answered."""

    def __init__(self, cases: list[Case]) -> None:
        self.pools = {case: apart() for case in cases}
        self.found: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
        for case, pool in self.pools.items():  # one after the other: together they would need much memory
            pool.submit(train, case, 0, 2).result()

    def run(self, case: Case) -> float:
        """Seconds per real token of one more training run."""
        seen = self.found[case.name]
        seen.append(self.pools[case].submit(train, case, len(seen)).result())
        return seen[-1]["seconds"] / seen[-1]["real"]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self.pools.values():
            pool.shutdown()


def rows_for(form: str, times: Times, found: dict[str, list[dict[str, float]]]) -> Iterator[Row]:
    """How many times longer than ours the others take per real token, padding, and distance to the limit."""

    def note(name: str) -> str:
        runs = found[name]
        rate = fmean(run["real"] / run["seconds"] for run in runs)
        return f"{rate:,.0f} real tokens/s, padded/real {fmean(run['padded'] for run in runs):.2f}"

    goals = {DEFAULTS.name: OVER_DEFAULTS[form]}
    for cases, goal in ((RANDOM, OVER_RANDOM), (GROUPED, OVER_GROUPED)):
        known = [case.name for case in cases if case.name in times]
        goals |= {min(known, key=lambda name: fmean(times[name])): goal} if known else {}
    for mine in (case.name for case in OURS if case.name in times):
        for case in CASES:
            if case.strategy is None and case.name in times:
                more = {
                    "name": f"{case.name} / {mine}",
                    "target": goals.get(case.name),
                    "note": note(case.name),
                }
                yield compared(times, case.name, mine, most=False, **more)
        more = {"name": f"{mine} / no padding", "target": OVER_LIMIT, "note": note(mine)}
        yield compared(times, mine, LIMIT.name, **more)
        padded = fmean(run["padded"] for run in found[mine])
        yield Row(f"{mine}: padded/real tokens", "-", padded, padded, padded, target=PADDED)
    yield compared(times, LIMIT.name, LIMIT.name, note=note(LIMIT.name))


def measure(options: argparse.Namespace, form: str, examples: int) -> list[Row]:
    epoch = 32 if options.quick else max(640, 20 * examples)
    chosen = [OURS[1], LIMIT, DEFAULTS, BY_4[1]] if options.quick else CASES
    more = {"form": form, "text": options.text, "threads": options.threads}
    cases = [replace(case, examples=examples, epoch=epoch, **more) for case in chosen]
    with Workers(cases) as workers:
        runs = {case.name: (lambda case=case: workers.run(case)) for case in cases}
        times = timed(runs, options.rounds)
        return list(rows_for(form, times, workers.found))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--form", choices=("encoder", "encoder-decoder"), help="only this one")
    parser.add_argument("--examples", type=int, nargs="*", default=[16, 64], help="per optimizer step")
    parser.add_argument("--text", choices=("t5", "bert2bert"), default="t5", help="the encoder-decoder")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    groups, start = {}, time.perf_counter()
    for form in [options.form] if options.form else list(OVER_DEFAULTS):
        for examples in [8] if options.quick else options.examples:
            title = f"{form}, {examples} examples per step"
            doing(title)
            groups[title] = measure(options, form, examples)
    report("Whole training runs", groups, options, text=options.text, took=time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
