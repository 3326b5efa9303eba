"""Evaluations of small models on a suite of every kind of task, through the command line's own functions."""

from __future__ import annotations

import json

import pytest
import tiny_tasks
from tiny_hub import stand_in

import mtnlp
from mtnlp import assemble
from mtnlp.bench.predict import Predictor
from mtnlp.cli.main import main
from mtnlp.runs import harness, judge, targets

KINDS = ("classify", "pair", "ordinal", "choose", "multilabel", "regress", "tag", "span", "generate")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a text model, and a suite of a task of every kind whose rows are in files."""
    folder = tmp_path_factory.mktemp("lab")
    stand_in("t5", folder / "t5")
    names = []
    for kind in KINDS:
        task = tiny_tasks.task(f"own/{kind}", kind, rows=6)
        for split, rows in task["source"].items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{kind}-{split}.jsonl").write_text(lines)
        source = {split: str(folder / f"{kind}-{split}.jsonl") for split in task["source"]}
        names.append({**task, "source": source})
    suite = {
        "name": "small", "version": 3, "split": "validation", "tasks": names,
        "groups": {"all": {"tasks": ["own/*"], "mean": "macro"}},
    }  # fmt: skip
    (folder / "small.yaml").write_text(json.dumps(suite))
    return folder


def plain(report):
    found = report.as_dict()
    return {key: found[key] for key in found if key != "about"}


def counted(monkeypatch):
    """Examples that predictors are asked from now on."""
    seen, real = [], Predictor.batches

    def batches(self, questions, **more):
        seen.extend(example for part in questions.values() for example in part.examples)
        return real(self, questions, **more)

    monkeypatch.setattr(Predictor, "batches", batches)
    return seen


def test_a_text_model_is_scored_on_every_kind_and_asked_nothing_twice(lab, monkeypatch):
    asked = counted(monkeypatch)
    first = judge.judge([str(lab / "t5")], str(lab / "small.yaml"))
    scores = first.evaluations[0].report.scores

    assert first.whole and [score.kind for score in scores] == list(KINDS)
    assert all(score.n == 6 and score.hashes.keys() == {"task", "template", "data"} for score in scores)
    for score in scores:
        assert score.intervals.keys() == score.values.keys() and score.baseline
        for name, found in score.intervals.items():
            assert found["low"] <= score.values[name] <= found["high"]
    (group,) = first.evaluations[0].report.groups
    assert len(group.of) == len(KINDS) and group.stderr > 0

    assert len(asked) == 6 * len(KINDS)
    monkeypatch.setattr(targets.ModelTarget, "_load", lambda self: pytest.fail("the model was loaded"))
    again = judge.judge([str(lab / "t5")], str(lab / "small.yaml"))
    assert plain(again.evaluations[0].report) == plain(first.evaluations[0].report)


def test_an_edited_row_is_asked_again_and_no_other(lab, tmp_path, monkeypatch):
    judge.judge([str(lab / "t5")], str(lab / "small.yaml"))
    lines = (lab / "classify-validation.jsonl").read_text().splitlines()
    row = {**json.loads(lines[2]), "text": "something else"}
    (tmp_path / "edited.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]) + "\n")
    suite = json.loads((lab / "small.yaml").read_text())
    suite["tasks"][0]["source"]["validation"] = str(tmp_path / "edited.jsonl")
    (tmp_path / "edited.yaml").write_text(json.dumps(suite))
    asked = counted(monkeypatch)

    judge.judge([str(lab / "t5")], str(tmp_path / "edited.yaml"))

    assert [example.inputs["text"] for example in asked] == ["something else"]


def test_a_kill_loses_one_batch_and_changes_no_bit(lab, monkeypatch):
    monkeypatch.setattr(assemble, "ASKED", 64)
    whole = judge.judge([str(lab / "t5")], str(lab / "small.yaml"))
    kept = harness.cache_dir() / "answers"
    (file,) = kept.glob("*.jsonl")
    answers = sorted(file.read_text().splitlines())
    file.unlink()
    real, done = Predictor.batches, []

    def killed(self, questions, **more):
        for batch in real(self, questions, **more):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(batch)
            yield batch

    monkeypatch.setattr(Predictor, "batches", killed)
    for stop in (1, 4, 9, 1000):
        if stop < 1000:
            with pytest.raises(KeyboardInterrupt):
                judge.judge([str(lab / "t5")], str(lab / "small.yaml"))
        else:
            again = judge.judge([str(lab / "t5")], str(lab / "small.yaml"))

    assert sum(map(len, done)) == 6 * len(KINDS)
    assert sorted(file.read_text().splitlines()) == answers
    assert plain(again.evaluations[0].report) == plain(whole.evaluations[0].report)


def test_bad_rows_and_tasks_are_told_and_the_others_scored(lab, tmp_path, capsys):
    suite = json.loads((lab / "small.yaml").read_text())
    lines = (lab / "choose-validation.jsonl").read_text().splitlines()
    bad = json.loads(lines[0]) | {"choices": ["a", ""]}
    (tmp_path / "bad.jsonl").write_text("\n".join([json.dumps(bad), "{", *lines[2:]]) + "\n")
    suite["tasks"][3]["source"]["validation"] = str(tmp_path / "bad.jsonl")
    suite["tasks"][0]["source"]["validation"] = str(tmp_path / "none.jsonl")
    (tmp_path / "bad.yaml").write_text(json.dumps(suite))

    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(lab / "t5"), "--suite", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out")])

    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stopped.value.code == 1
    assert [item["task"] for item in report["skipped"]] == ["own/classify"] and "none.jsonl" in out
    (choose,) = [score for score in report["scores"] if score["task"] == "own/choose"]
    assert choose["n"] == 4 and "2 of 6 rows left out" in choose["faults"][0] and "bad.jsonl:1" in out
    assert len(report["scores"]) == len(KINDS) - 1


def test_several_targets_are_compared_on_the_same_rows(lab, tmp_path, capsys):
    stand_in("SmolLM2", tmp_path / "llama")
    names = [str(lab / "t5"), str(tmp_path / "llama")]
    with pytest.raises(SystemExit) as stopped:
        main(
            ["eval", *names, "--compare", "--suite", str(lab / "small.yaml"), "--out", str(tmp_path / "out")]
        )

    out = capsys.readouterr().out
    (comparison,) = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    assert stopped.value.code == 0 and f"{names[1]} against {names[0]}" in out
    assert [task["task"] for task in comparison["tasks"]] == [f"own/{kind}" for kind in KINDS]
    assert {task["verdict"] for task in comparison["tasks"]} <= {"better", "worse", "unclear"}
    assert sorted(path.name for path in (tmp_path / "out").glob("*/report.html")) == ["report.html"] * 2


def test_a_run_is_scored_on_a_suite_by_its_own_heads_and_others_are_skipped(lab, tmp_path):
    tasks = json.loads((lab / "small.yaml").read_text())["tasks"][:2]
    stand_in("minilm", tmp_path / "minilm")
    mtnlp.finetune(tiny_tasks.recipe(str(tmp_path / "minilm"), tasks), out=tmp_path / "run")

    own = mtnlp.evaluate(tmp_path / "run", split="validation")
    on_suite = judge.judge([str(tmp_path / "run")], str(lab / "small.yaml")).evaluations[0].report

    assert [score.task for score in on_suite.scores] == ["own/classify", "own/pair"]
    assert on_suite.scores[0].values == own.scores[0].values
    assert len(on_suite.skipped) == len(KINDS) - 2
    assert "has learned no task of this name" in on_suite.skipped[0]["reason"]
