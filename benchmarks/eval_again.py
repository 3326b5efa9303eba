"""Evaluating again, after an edit, and with eight adapters: what is asked, what is loaded, how long it takes.

Run:     python benchmarks/eval_again.py [--json eval_again.json]
Cost:    three minutes on one core; a minute with --quick
A T5 (4 + 4 x 256, random weights) chooses among four options of one to three words below contexts of about 90
words. `mtnlp eval` runs in processes of their own: first, again, and after one document was edited; counted
are their CPU seconds with start-up and imports. Then, in one process, eight LoRA adapters in peft's format
answer a suite each, all in one pass, against one adapter that answers all of these documents.

Exit code 1 if a repeated evaluation loads torch or comes out otherwise, if an edit rescores other than one
document, or if the backbone is loaded more than once.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _kit import Row, arguments, compared, doing, report, rounds

ADAPTERS, WORDS = 8, [f"w{i}" for i in range(2000)]
WARM, OVER_ONE = 2.0, 1.1


def model(folder: Path) -> None:
    """The network and a tokenizer of whole words."""
    from _parts import END, PAD, t5
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "</s>": END, "<unk>": 2}
    known = special | {word: 3 + i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    t5(width=256).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)


def adapters(base: Path, folder: Path) -> list[Path]:
    """Adapters with random weights, as peft saves them."""
    import torch
    from _parts import T5_LINEARS, lora_config
    from peft import get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    found = []
    for i in range(ADAPTERS):
        net = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), lora_config(T5_LINEARS))
        torch.manual_seed(i)
        for name, value in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.02)
        net.save_pretrained(folder / f"a{i}")
        found.append(folder / f"a{i}")
    return found


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    return [
        {
            "context": text(min(400, max(8, int(draw.lognormvariate(4.3, 0.6))))),
            "question": text(6),
            "choices": [text(draw.randint(1, 3)) for _ in range(4)],
            "answer": draw.randrange(4),
        }
        for _ in range(count)
    ]


def suite(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "test.jsonl").write_text(lines, "utf-8")
    task = {"name": "own/choose", "kind": "choose", "source": {"test": str(folder / "test.jsonl")}}
    path = folder / "suite.yaml"
    path.write_text(json.dumps({"name": "own", "version": 1, "tasks": [task]}), "utf-8")
    return path


PROGRAM = """
import json, sys
from mtnlp.bench import samples
added, real = [], samples.Samples.add
def add(self, batch, **more):
    added.extend(batch := list(batch))
    real(self, batch, **more)
samples.Samples.add = add
from mtnlp.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as stopped:
    code = stopped.code
told = {"code": code, "asked": len(added), "torch": "torch" in sys.modules}
print(json.dumps(told), file=open(sys.argv[1], "w"))
"""


def evaluation(folder: Path, *words: str) -> dict[str, Any]:
    """`mtnlp eval` in a process: its CPU seconds, what it asked, whether it loaded torch, and the scores."""
    env = {
        **os.environ,
        "MTNLP_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    told, out = folder / "told.json", folder / "scores.json"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, str(told), "eval", *words, "--out", str(out)]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    scores = json.loads(out.read_text("utf-8"))["scores"]
    return {**json.loads(told.read_text("utf-8")), "seconds": seconds, "scores": scores}


def repeated(folder: Path, base: Path, count: int) -> tuple[list[Row], bool]:
    rows = documents(count)
    path = suite(folder, rows)
    words = (str(base), "--suite", str(path))
    doing("first, again, after an edit")
    first, again = evaluation(folder, *words), evaluation(folder, *words)
    rows[3]["context"] = "w1 w2 w3"
    suite(folder, rows)
    edited = evaluation(folder, *words)
    good = first["asked"] == count and again["asked"] == 0 and edited["asked"] == 1
    good = good and not again["torch"] and again["scores"] == first["scores"]
    note = f"{count} documents"
    return [
        Row("first, CPU s", "-", *[first["seconds"]] * 3, note=f"{note}, {first['asked']} asked"),
        Row(
            "again, CPU s",
            "-",
            *[again["seconds"]] * 3,
            WARM,
            note=f"{again['asked']} asked, torch: {again['torch']}",
        ),
        Row("one document edited, CPU s", "-", *[edited["seconds"]] * 3, note=f"{edited['asked']} asked"),
    ], good


def eight(folder: Path, base: Path, each: int, count: int) -> tuple[list[Row], bool]:
    """Eight adapters with a suite each, against one adapter with all of their documents."""
    from mtnlp.bench.ask import Asked, ask
    from mtnlp.bench.questions import Questions
    from mtnlp.bench.samples import Samples
    from mtnlp.models.backbone import Backbone
    from mtnlp.runs import plain
    from mtnlp.tasks.examples import example
    from mtnlp.tasks.spec import TaskSpec

    loads, real = [], Backbone.load.__func__
    Backbone.load = classmethod(lambda cls, *args, **more: (loads.append(args), real(cls, *args, **more))[1])
    folders = {path.name: path for path in adapters(base, folder)}
    predictor = plain.build(str(base), folders, longest=512, answer=16)
    spec = TaskSpec("own/choose", "choose", None)
    found = [example(spec, row, i) for i, row in enumerate(documents(each * ADAPTERS, seed=1))]
    turn = iter(range(1_000_000))

    def run(parts: dict[int, list]) -> None:
        asked = {f"a{i}": Asked(i, f"{i}", Questions(spec, rows)) for i, rows in parts.items()}
        ask(lambda: predictor, Samples(folder / f"{next(turn)}.jsonl"), asked)

    cases = {
        "eight adapters, a suite each": lambda: run(
            {i: found[i * each : (i + 1) * each] for i in range(ADAPTERS)}
        ),
        "one adapter, all documents": lambda: run({0: found}),
    }
    doing("eight adapters")
    times = rounds(cases, count=count)
    note = f"{each * ADAPTERS} documents, {len(loads)} load"
    first, second = cases
    return [compared(times, first, second, target=OVER_ONE, note=note), compared(times, second, second)], len(
        loads
    ) == 1


def main() -> int:
    options = arguments(__doc__).parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as place:
        folder, base = Path(place), Path(place) / "base"
        model(base)
        again, good = repeated(folder, base, 24 if options.quick else 1000)
        many, once = eight(
            folder, base, 2 if options.quick else 50, options.rounds or (1 if options.quick else 7)
        )
    report("Evaluating again", {"one task": again, "adapters": many}, options, same=good, one_load=once)
    return 0 if good and once else 1


if __name__ == "__main__":
    sys.exit(main())
