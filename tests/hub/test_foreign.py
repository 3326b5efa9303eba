"""Adapters with heads that peft wrote, asked by `mtnlp eval --adapter`, against peft and our own runs."""

from __future__ import annotations

import json

import pytest
import tiny_tasks
import torch
import transformers as tr
from hub.test_commands import run
from tiny_hub import stand_in

import mtnlp
from mtnlp.runs import publish

WHOLE = ["pooler"]  # the stand-in has none of its own
CLASSES = {"SEQ_CLS": tr.AutoModelForSequenceClassification, "TOKEN_CLS": tr.AutoModelForTokenClassification}


@pytest.fixture
def backbone(tmp_path):
    return stand_in("minilm", tmp_path / "backbone")


def saved(backbone, folder, task_type, count, *, whole=None, names=None):
    """An adapter with a random head, as peft saves it; and the network with it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(count)
    net = CLASSES[task_type].from_pretrained(backbone, num_labels=count)
    config = peft.LoraConfig(task_type=task_type, target_modules=["query", "value"], modules_to_save=whole)
    made = peft.get_peft_model(net, config)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    if names:
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    return made.eval()


def suite(folder, *kinds, **labels):
    """A suite of a task for each kind, and the rows of these tasks."""
    entries, rows = [], {}
    for kind in kinds:
        task = tiny_tasks.task(f"own/{kind}", kind, rows=6)
        rows[kind] = task["source"]["validation"]
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
        entry = {**task, "source": {"validation": str(path)}}
        entries.append(entry | ({"labels": labels[kind]} if kind in labels else {}))
    (folder / "suite.yaml").write_text(json.dumps({"version": 1, "split": "validation", "tasks": entries}))
    return folder / "suite.yaml", rows


def answers(out, task, adapter):
    lines = (out / "samples" / f"own--{task} {adapter}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_heads_answer_as_they_do_in_peft_with_their_own_names_of_labels(hub, backbone, tmp_path, capsys):
    labels = tiny_tasks.task("x", "classify")["labels"]
    turned = saved(backbone, tmp_path / "turned", "SEQ_CLS", len(labels), whole=WHOLE, names=labels[::-1])
    saved(backbone, tmp_path / "other", "SEQ_CLS", len(labels) + 3, whole=WHOLE)
    hub.add("ann/turned", {path.name: path.read_bytes() for path in (tmp_path / "turned").iterdir()})
    path, rows = suite(tmp_path, "classify")
    words = ("eval", backbone, "--adapter", "ann/turned", "--adapter", tmp_path / "other", "--suite", path)

    assert run(*words, "--out", tmp_path / "out") == 1  # one of them has other labels

    told = " ".join(capsys.readouterr().out.split())
    assert f"own/classify: not scored: other: its head has {len(labels) + 3} outputs without names" in told
    tokenizer = tr.AutoTokenizer.from_pretrained(backbone)
    for row, answer in zip(rows["classify"], answers(tmp_path / "out", "classify", "turned"), strict=True):
        with torch.no_grad():
            logits = turned(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        torch.testing.assert_close(
            torch.tensor(answer["scores"]), logits.flip(0).softmax(0), atol=1e-6, rtol=0
        )


def test_tags_come_from_several_heads_over_one_network(backbone, tmp_path):
    labels = tiny_tasks.task("x", "tag")["labels"]
    nets = {name: saved(backbone, tmp_path / name, "TOKEN_CLS", len(labels)) for name in ("a", "b")}
    path, rows = suite(tmp_path, "tag")
    adapters = ("--adapter", tmp_path / "a", "--adapter", tmp_path / "b")
    assert run("eval", backbone, *adapters, "--suite", path, "--out", tmp_path / "out") == 0
    tokenizer = tr.AutoTokenizer.from_pretrained(backbone)
    for name, net in nets.items():
        for row, answer in zip(rows["tag"], answers(tmp_path / "out", "tag", name), strict=True):
            text = tokenizer(" ".join(row["tokens"]), return_tensors="pt", return_offsets_mapping=True)
            places = text.pop("offset_mapping")[0].tolist()
            starts = [len(" ".join(row["tokens"][:i])) + (i > 0) for i in range(len(row["tokens"]))]
            first = [next(j for j, (_, end) in enumerate(places) if end > start) for start in starts]
            with torch.no_grad():
                expected = net(**text).logits[0][first].argmax(-1).tolist()
            assert answer["value"] == expected


def test_the_adapter_of_a_bundle_scores_as_its_run(backbone, tmp_path):
    task = tiny_tasks.task("own/classify", "classify", rows=8)
    recipe = tiny_tasks.recipe(str(backbone), [task], strategy="lora-per-task", steps=3, lr=0.05)
    recipe["model"]["pooling"] = "first"
    mtnlp.finetune(recipe, out=tmp_path / "run")
    (tmp_path / "bundle").mkdir()
    publish.write(tmp_path / "run", tmp_path / "bundle")
    path, rows = suite(tmp_path, "classify")
    adapter = tmp_path / "bundle" / "tasks" / "own--classify"

    out = tmp_path / "out"
    assert run("eval", backbone, "--adapter", adapter, "--suite", path, "--out", out) == 0

    questions = [{"text": row["text"]} for row in rows["classify"]]
    expected = mtnlp.load(tmp_path / "run").predict(questions)
    for mine, its in zip(expected, answers(out, "classify", "own--classify"), strict=True):
        assert its["scores"] == pytest.approx(list(mine["scores"].values()), abs=1e-6)


def test_what_cannot_be_the_network_that_was_trained_is_refused_with_the_reason(backbone, tmp_path, capsys):
    count = len(tiny_tasks.task("x", "classify")["labels"])
    path, _ = suite(tmp_path, "classify")
    saved(backbone, tmp_path / "drawn", "SEQ_CLS", count)  # over a random pooler that nobody has kept
    saved(backbone, tmp_path / "tagger", "TOKEN_CLS", count)
    saved(backbone, tmp_path / "misnamed", "SEQ_CLS", count, whole=WHOLE, names=["one"])
    for adapters, message in [
        (
            ["drawn"],
            "its files lack 2 of the weights of BertForSequenceClassification, such as bert.pooler.dense.b",
        ),
        (["tagger"], "a classify task cannot be answered by its head (ForTokenClassification)"),
        (["drawn", "tagger"], "found drawn for ForSequenceClassification, tagger for ForTokenClassification"),
        (["misnamed"], f"id2label: expected names for 0 to {count - 1}, as the head has"),
    ]:
        words = [word for name in adapters for word in ("--adapter", tmp_path / name)]
        assert run("eval", backbone, *words, "--suite", path) in (1, 2)
        out, err = capsys.readouterr()
        assert message in " ".join((out + err).split()), adapters
