"""Greedy answers: ours against a plain loop over `generate` and lm-evaluation-harness, in one process.

Run:     python benchmarks/generation.py [--json generation.json]; for the rows of lm-eval in an environment
         of its own: pip install lm_eval==0.4.13 torch==2.13.0, then mtnlp (`pip install -e .`)
Cost:    five minutes on one core, ten with lm-eval; a minute with --quick
The networks, tokenizers and contexts of options.py (a T5 shape and a Llama shape, random weights, float32,
contexts of about 130 tokens) write 16 tokens for each document. Times are from texts to texts, tokenisation
included; all in batches of 16, lm-eval and the plain loop in the order in which the documents come. Before
timing: ours must write exactly what `generate` writes for each document alone, else exit code 1. lm-eval's
texts are not compared: it adds the length of the prompt to the most tokens an encoder-decoder may write, so
that it writes more (shown as decoder calls per document). A row of ours that has ended stays in its batch
until the last one has; the share of such steps is shown. Here it is 0: random weights end no text early.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _kit import Row, arguments, compared, doing, report, rounds
from options import Document, documents, network, tokenizer

from mtnlp.bench.predict import Predictor
from mtnlp.bench.questions import Questions
from mtnlp.runs import plain
from mtnlp.tasks.spec import Example, TaskSpec, Template

NEW, BATCH, DOCUMENTS = 16, 16, 64
LOOP, HARNESS = f"unsorted loop, batches of {BATCH}", f"lm-eval, batches of {BATCH}"
# shape -> how many times faster than lm-eval and than the plain loop ours is to be
TARGETS = {"t5": (7.0, 1.5), "llama": (None, None)}
Case = Callable[[], list[str]]


def our_side(folder: Path, rows: list[Document]) -> tuple[Case, Predictor]:
    predictor = plain.build(str(folder), {}, longest=512, answer=NEW)
    predictor.max_new_tokens = NEW
    spec = TaskSpec("bench", "generate", {}, templates={"plain": Template("{{ text }}")})
    examples = [Example("bench", i, {"text": row.context}, None) for i, row in enumerate(rows)]
    return lambda: [answer["text"] for answer in predictor({0: Questions(spec, examples)})[0]], predictor


def plain_side(predictor: Predictor, rows: list[Document], size: int) -> Case:
    """What one writes without a harness, on the same network."""
    backbone = predictor.model.backbone
    net, speaker, apart = backbone.net, backbone.tokenizer, backbone.family == "encoder-decoder"
    texts = [row.context for row in rows]

    def run() -> list[str]:
        speaker.padding_side, found = "right" if apart else "left", []
        for start in range(0, len(texts), size):
            inputs = speaker(texts[start : start + size], padding=True, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                tokens = net.generate(
                    **inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=speaker.pad_token_id
                )
            tokens = tokens[:, 1 if apart else inputs["input_ids"].shape[1] :]
            found += speaker.batch_decode(tokens, skip_special_tokens=True)
        return found

    return run


def lm_eval_side(folder: Path, rows: list[Document]) -> tuple[Case, torch.nn.Module]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(str(folder), device="cpu", dtype="float32", batch_size=BATCH, max_length=512)
    asked = {"until": ["\n"], "max_gen_toks": NEW, "do_sample": False}
    requests = [Instance("generate_until", {}, (row.context, asked), i) for i, row in enumerate(rows)]
    return lambda: model.generate_until(requests, disable_tqdm=True), model.model


def head_calls(net: torch.nn.Module, run: Case) -> int:
    """How often the output layer is called in one run: once for each token of a batch of answers."""
    calls: list[Any] = []
    handle = net.get_output_embeddings().register_forward_hook(lambda *_: calls.append(None))
    run()
    handle.remove()
    return len(calls)


def wasted(predictor: Predictor, run: Case) -> float:
    """The share of steps that rows of ours are taken along after their end, 0..1: a step is one row's part in
    one call of the head, and a batch goes on until its last row has ended."""
    net, ends = predictor.model.backbone.net, predictor.model.backbone.tokenizer.eos_token_id
    apart, plain, steps, idle = predictor.model.backbone.family == "encoder-decoder", net.generate, 0, 0

    def counted(**given: Any) -> torch.Tensor:
        nonlocal steps, idle
        tokens = plain(**given)
        new = tokens[:, 1 if apart else given["input_ids"].shape[1] :]
        steps += new.numel()
        idle += int(((new == ends).cumsum(1) - (new == ends).int() > 0).sum())
        return tokens

    net.generate = counted
    run()
    del net.generate
    return idle / steps


def measure(shape: str, count: int, choices: Any) -> tuple[list[Row], bool]:
    rows, (against_harness, against_loop) = documents(count, 4), TARGETS[shape]
    with TemporaryDirectory() as name:
        network(shape).save_pretrained(folder := Path(name))
        tokenizer(shape).save_pretrained(folder)
        ours, predictor = our_side(folder, rows)
        cases, nets = {"mtnlp": ours, LOOP: plain_side(predictor, rows, BATCH)}, {}
        nets = dict.fromkeys(cases, predictor.model.backbone.net)
        if importlib.util.find_spec("lm_eval"):
            cases[HARNESS], nets[HARNESS] = lm_eval_side(folder, rows)
    right = ours() == plain_side(predictor, rows, 1)()
    calls = {name: head_calls(nets[name], case) for name, case in cases.items()}
    times = rounds(cases, count=choices.rounds, threads=choices.threads)
    table = [Row("same texts as one at a time", "", right, right, right, 1.0, most=False)]
    for name, target in ((LOOP, against_loop), (HARNESS, against_harness)):
        if name in cases:
            note = f"{calls[name]} calls of the head, ours {calls['mtnlp']}"
            table.append(
                compared(times, name, "mtnlp", name=f"{name} / mtnlp", target=target, most=False, note=note)
            )
    idle = wasted(predictor, ours)
    table.append(Row("steps of rows after their end", "", idle, idle, idle))
    speed = [count / seconds for seconds in times["mtnlp"]]
    table.append(Row("mtnlp, documents/s", "", sum(speed) / len(speed), min(speed), max(speed)))
    return table, right


def main() -> int:
    choices = arguments(__doc__).parse_args()
    choices.rounds = choices.rounds or (1 if choices.quick else 5)
    torch.set_num_threads(choices.threads)
    groups, right = {}, True
    for shape in TARGETS:
        doing(shape)
        count = 4 if choices.quick else DOCUMENTS
        groups[f"{shape}, {count} documents, {NEW} new tokens"], fine = measure(shape, count, choices)
        right &= fine
    report("Greedy answers", groups, choices, same_texts=right)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
