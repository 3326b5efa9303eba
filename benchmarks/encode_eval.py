"""Predictions of an encoder with heads: ours against `Trainer.predict` of transformers, in one process.

Run:     python benchmarks/encode_eval.py [--json encode_eval.json]
Cost:    five minutes on one core; under a minute with --quick
An encoder of 6 layers and width 256 with 32,128 tokens and random weights, in float32, reads 400 texts of
skewed lengths (log-normal, median 37 tokens, 6 to 500) and gives each one of 20 labels, or each of its words
one of 9 tags. Times are from texts to labels, tokenisation included. Trainer makes batches of 8, its own
default, in the order of the texts. Before timing: both sides have the same weights, and at least 99.9 % of
the tags must be the same (the others are near ties), else exit code 1; the sentence heads differ (mean of the
tokens here, a pooler there), so labels are not compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _kit import Row, arguments, compared, doing, report, rounds
from _parts import bert_shape, recipe
from options import VOCABULARY, WORDS, tokenizer, words

from mtnlp import assemble
from mtnlp.bench.predict import Predictor
from mtnlp.bench.questions import Questions
from mtnlp.models.backbone import Backbone
from mtnlp.tasks.spec import Example, TaskSpec

BATCH, TEXTS, LONGEST = 8, 400, 512
TARGET, USEFUL = 2.2, 0.87
LABELS = {"classify": tuple(f"l{i}" for i in range(20)), "tag": ("O", *(f"B-t{i}" for i in range(8)))}
Case = Callable[[], list[Any]]


def texts(count: int) -> list[list[str]]:
    """Words of each text; nearly every one is a token."""
    draw, known = np.random.default_rng(1), words()[:WORDS]
    lengths = np.clip(draw.lognormal(3.6, 0.8, count), 6, 500).astype(int)
    return [[known[i] for i in draw.integers(0, len(known), n)] for n in lengths]


def network(kind: str) -> Any:
    """The encoder with transformers' own head."""
    from transformers import BertForSequenceClassification, BertForTokenClassification

    torch.manual_seed(0)
    made = BertForSequenceClassification if kind == "classify" else BertForTokenClassification
    settings = bert_shape(256, 6, num_labels=len(LABELS[kind]))
    settings.vocab_size, settings.num_attention_heads = VOCABULARY, 4
    return made(settings)


def our_side(folder: Path, net: Any, kind: str, rows: list[list[str]]) -> tuple[Case, Predictor]:
    """Through the doors of `mtnlp eval`, with the weights of `net`."""
    net.bert.save_pretrained(folder)
    settings, _ = assemble.settle(recipe("full", precision="fp32", matmul="highest"))
    spec = TaskSpec("bench", kind, {}, labels=LABELS[kind])
    backbone = Backbone.load(str(folder))
    model = assemble.build_model(settings, [spec], backbone)
    if kind == "tag":
        model.head(0).out.load_state_dict(net.classifier.state_dict())
    encoder = assemble.encoder_for(settings, backbone.tokenizer, backbone.family)
    predictor = assemble.build_predictor(settings, model, encoder, assemble.build_accelerator(settings))
    inputs = [{"tokens": row} if kind == "tag" else {"text": " ".join(row)} for row in rows]
    examples = [Example("bench", i, own, None) for i, own in enumerate(inputs)]
    return lambda: [answer["value"] for answer in predictor({0: Questions(spec, examples)})[0]], predictor


def trainer_side(folder: Path, net: Any, kind: str, rows: list[list[str]]) -> Case:
    from transformers import (
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    speaker = AutoTokenizer.from_pretrained(folder)
    collator = (DataCollatorForTokenClassification if kind == "tag" else DataCollatorWithPadding)(speaker)
    settings = TrainingArguments(
        str(folder / "trainer"), per_device_eval_batch_size=BATCH, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(net, settings, data_collator=collator)
    sentences = [" ".join(row) for row in rows]

    def run() -> list[Any]:
        found = speaker(sentences, truncation=True, max_length=LONGEST, return_token_type_ids=False)
        ids = found["input_ids"]
        data: list[dict[str, Any]] = [{"input_ids": own} for own in ids]
        if kind == "tag":  # its collator wants labels
            data = [{**row, "labels": [0] * len(row["input_ids"])} for row in data]
        chosen = trainer.predict(data).predictions.argmax(-1).tolist()
        return [row[: len(own)] for row, own in zip(chosen, ids)] if kind == "tag" else chosen

    return run


@contextmanager
def counted(net: torch.nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Inside, (real, padded) tokens of every batch that the encoder sees."""
    seen: list[tuple[int, int]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((int(kwargs["attention_mask"].sum()), kwargs["attention_mask"].numel()))

    handle = net.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def useful(net: torch.nn.Module, run: Case) -> tuple[float, list[Any]]:
    with counted(net) as seen:
        found = run()
    real, padded = np.array(seen).sum(0)
    return float(real / padded), found


def alike(ours: list[Any], theirs: list[Any]) -> float:
    """Share of equal tags over the words that are one token, as all of these are; theirs end with </s>."""
    pairs = [(a, b[: len(a)]) for a, b in zip(ours, theirs) if len(b) == len(a) + 1]
    assert len(pairs) > len(ours) / 2, "words are not tokens"
    same = [x == y for a, b in pairs for x, y in zip(a, b)]
    return sum(same) / len(same)


def measure(kind: str, count: int, choices: Any) -> tuple[list[Row], bool]:
    rows, net = texts(count), network(kind)
    with TemporaryDirectory() as name:
        tokenizer("t5").save_pretrained(folder := Path(name))
        ours, predictor = our_side(folder, net, kind, rows)
        theirs = trainer_side(folder, net, kind, rows)
        own_share, found = useful(predictor.model.backbone.net, ours)
        share, expected = useful(net.bert, theirs)
        same = alike(found, expected) if kind == "tag" else 1.0
        against = f"Trainer.predict, batches of {BATCH}"
        times = rounds({"mtnlp": ours, against: theirs}, count=choices.rounds, threads=choices.threads)
    speeds = [count / seconds for seconds in times["mtnlp"]]
    table = [
        compared(times, against, "mtnlp", name=f"{against} / mtnlp", target=TARGET, most=False),
        Row("useful tokens", "", own_share, own_share, own_share, USEFUL, most=False),
        Row(f"useful tokens, {against}", "", share, share, share),
        Row("mtnlp, texts/s", "", sum(speeds) / len(speeds), min(speeds), max(speeds)),
    ]
    if kind == "tag":
        table.append(Row("same tags", against, same, same, same, 0.999, most=False))
    return table, same >= 0.999


def main() -> int:
    choices = arguments(__doc__).parse_args()
    choices.rounds = choices.rounds or (1 if choices.quick else 5)
    torch.set_num_threads(choices.threads)
    groups, right = {}, True
    for kind in LABELS:
        doing(kind)
        count = 24 if choices.quick else TEXTS
        groups[f"{kind}, {count} texts"], fine = measure(kind, count, choices)
        right &= fine
    report("Encoders with heads", groups, choices, same_tags=right)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
