"""`mtnlp push`, `pull`, `predict` and `eval` against a hub over HTTP, as a user types them."""

from __future__ import annotations

import json
import logging

import pytest
import tiny_tasks
import torch
from hub.conftest import TOKEN
from tiny_hub import stand_in

import mtnlp
from mtnlp.cli.main import main


def run(*words):
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code or 0


@pytest.fixture
def trained(tmp_path):
    """trained(name, tasks, steps) -> a run folder on a tiny encoder, whose folder is `trained.backbone`."""
    backbone = str(stand_in("minilm", tmp_path / "backbone"))

    def trained(name, tasks=("own/classify",), steps=2):
        made = []
        for task in tasks:
            one = tiny_tasks.task(task, "classify", rows=6)
            for split, rows in one["source"].items():
                path = tmp_path / f"{task.replace('/', '-')}-{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                one["source"][split] = str(path)
            made.append(one)
        recipe = tiny_tasks.recipe(backbone, made, steps=steps, lr=0.05)
        recipe["train"]["examples_per_step"] = 2 * len(made)
        mtnlp.finetune(recipe, out=tmp_path / name)
        return tmp_path / name

    trained.backbone = backbone
    return trained


def state(place, **more):
    return mtnlp.load(place, **more).predictor.model.trainable_state()


def test_a_pushed_run_answers_from_its_address_and_a_commit_stays_what_it_was(hub, trained, tmp_path, capsys):
    first, second = trained("first"), trained("second", steps=3)
    assert run("push", first, "ann/it", "--private") == 0
    commit = hub.repositories["ann/it"].head
    assert run("push", second, "ann/it") == 0
    assert "mtnlp pull ann/it" in capsys.readouterr().out

    pinned = state("ann/it", revision=commit, backbone=trained.backbone)
    assert all(torch.equal(value, pinned[name]) for name, value in state(first).items())
    newest = state("ann/it", backbone=trained.backbone)
    assert all(torch.equal(value, newest[name]) for name, value in state(second).items())

    (tmp_path / "rows.txt").write_text("river answer\nlight stone\n")
    words = ("--task", "own/classify", "--input", tmp_path / "rows.txt")
    capsys.readouterr()
    assert run("predict", second, *words) == 0
    ours = capsys.readouterr().out
    assert run("predict", "ann/it", *words, "--backbone", trained.backbone) == 0
    assert capsys.readouterr().out == ours != ""

    suite = tmp_path / "suite.yaml"
    task = json.loads((second / "tasks.json").read_text())[0]
    source = {"validation": task["source"]["validation"]}
    entry = {"name": "own/classify", "kind": "classify", "labels": task["labels"], "source": source}
    suite.write_text(json.dumps({"version": 1, "split": "validation", "tasks": [entry]}))
    for target, more in ((second, ()), ("ann/it", ("--backbone", trained.backbone))):
        out = tmp_path / f"{len(more)}.json"
        assert run("eval", target, "--suite", suite, "--out", out, *more) == 0
    assert (
        json.loads((tmp_path / "0.json").read_text())["scores"]
        == json.loads((tmp_path / "2.json").read_text())["scores"]
    )


def test_pull_fetches_what_it_then_says_how_to_use(hub, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("push", trained("runs/mine"), "ann/it") == 0
    capsys.readouterr()

    assert run("pull", "ann/it") == 0

    said = capsys.readouterr().out
    assert "own/classify  classify  accuracy" in said
    assert "1 tasks on backbone, in run" in said or "1 task on backbone, in run" in said
    assert "mtnlp predict run --task own/classify --backbone FOLDER" in said
    assert run("pull", "ann/it") == 0  # the same again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    assert run("pull", "ann/it", "--out", "other") == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "other" / "mine.txt").read_text() == "precious"


@pytest.mark.slow
def test_sixty_four_adapters_are_one_commit(hub, trained):
    names = [f"own/task{i:02}" for i in range(64)]
    assert run("push", trained("many", names, steps=1), "ann/many") == 0

    repository = hub.repositories["ann/many"]
    assert repository.messages == ["initial commit", "mtnlp push: run"]
    assert sum(name.endswith("adapter_model.safetensors") for name in repository.files) == 64


def test_the_token_is_in_no_file_and_no_line(hub, trained, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    folder = trained("first")
    assert run("push", folder, "ann/it") == 0
    assert run("pull", "ann/it", "--out", "pulled") == 0
    hub.users = {}  # from now on the token is a bad one
    assert run("push", folder, "ann/new") == 2
    assert run("pull", "ann/nothing") == 2

    out, err = capsys.readouterr()
    assert "401" in err and "ann/new" not in hub.repositories
    assert TOKEN not in out + err + caplog.text
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_what_cannot_be_is_one_line_and_changes_nothing(hub, trained, tmp_path, capsys, impatient):
    folder = trained("first")
    assert run("push", folder, "ann/it") == 0
    before = dict(hub.repositories["ann/it"].files)
    capsys.readouterr()

    other = trained("second", steps=3)
    hub.break_on("POST", "/commit/", 0, times=9)
    assert run("push", other, "ann/it") == 2
    assert run("pull", "ann/none") == 2
    assert run("push", tmp_path / "nowhere", "ann/it") == 2
    assert run("predict", "ann/none", "--task", "x") == 2

    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mtnlp: ")]
    assert len(told) == 4 and "ann/it" in told[0] and "ann/none" in told[1]
    assert hub.repositories["ann/it"].files == before


def test_adapters_are_fetched_from_the_hub_by_their_ids(hub, tmp_path, capsys):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    backbone = stand_in("t5", tmp_path / "t5")
    torch.manual_seed(0)
    net = transformers.AutoModelForSeq2SeqLM.from_pretrained(backbone)
    made = peft.get_peft_model(net, peft.LoraConfig(target_modules=["q", "v"], init_lora_weights=False))
    made.save_pretrained(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    hub.add("ann/adapter", files)
    task = tiny_tasks.task("own/classify", "classify", rows=6)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in task["source"]["validation"])
    )
    entry = {**task, "source": {"validation": str(tmp_path / "rows.jsonl")}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"version": 1, "split": "validation", "tasks": [entry]}))

    answers = {}
    for adapter in ("ann/adapter", tmp_path / "adapter"):
        out = tmp_path / f"out-{len(answers)}"
        assert run("eval", backbone, "--adapter", adapter, "--suite", suite, "--out", out) == 0
        answers[adapter] = (out / "samples" / "own--classify adapter.jsonl").read_text()
    assert len(set(answers.values())) == 1
    assert run("eval", backbone, "--adapter", "ann/none", "--suite", suite) == 2
    assert "ann/none" in capsys.readouterr().err


def test_a_bundle_names_the_commit_that_its_backbone_was_loaded_from(hub, trained, tmp_path):
    folder = stand_in("minilm", tmp_path / "base")
    hub.add("ann/base", {path.name: path.read_bytes() for path in folder.iterdir()})
    task = tiny_tasks.task("own/classify", "classify", rows=6)
    mtnlp.finetune(tiny_tasks.recipe("ann/base", [task], steps=1), out=tmp_path / "run")

    assert run("push", tmp_path / "run", "ann/it") == 0

    told = json.loads(hub.repositories["ann/it"].files["mtnlp_bundle.json"])["backbone"]
    assert told["name"] == "ann/base" and told["revision"] == hub.repositories["ann/base"].head
    assert state("ann/it").keys() == state(tmp_path / "run").keys()  # no --backbone needed
