"""Evaluations of small models on a suite of every kind of task, through the command line's own functions."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys

import pytest
import tiny_tasks
from tiny_hub import stand_in

import mtnlp
from mtnlp.bench import statistics
from mtnlp.bench.predict import Predictor
from mtnlp.cli.main import main
from mtnlp.data.kept import cache_dir
from mtnlp.runs import harness, judge, plain, targets

KINDS = ("classify", "pair", "ordinal", "choose", "multilabel", "regress", "tag", "span", "generate")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Half of an evaluation's time goes into intervals, which bench/test_statistics.py is about."""
    monkeypatch.setitem(harness.evaluate.__kwdefaults__, "resamples", 200)


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


def told(report):
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
    assert told(again.evaluations[0].report) == told(first.evaluations[0].report)


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
    monkeypatch.setattr(plain, "ASKED", 64)
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
    assert told(again.evaluations[0].report) == told(whole.evaluations[0].report)


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


def entry(lab, kind, **options):
    """A suite of one task with options, and a few more keys of the suite."""
    task = next(
        task for task in json.loads((lab / "small.yaml").read_text())["tasks"] if task["kind"] == kind
    )
    return {"name": "one", "version": 1, "split": "validation", "tasks": [{"task": task, **options}]}


def scored(lab, tmp_path, suite, name="t5"):
    (tmp_path / "one.yaml").write_text(json.dumps(suite))
    return judge.judge([str(lab / name)], str(tmp_path / "one.yaml")).evaluations[0]


def test_several_templates_give_a_score_each_and_their_spread(lab, tmp_path):
    suite = entry(lab, "classify", templates=["plain", "asked"])
    suite["tasks"][0]["task"]["templates"] = {
        "plain": {"prompt": "{{ text }}"}, "asked": {"prompt": "{{ text }} What is the mood?"}
    }  # fmt: skip
    suite["groups"] = {"all": {"tasks": ["own/*"], "mean": "macro"}}

    report = scored(lab, tmp_path, suite).report

    plain, asked = (score.values["accuracy"] for score in report.scores)
    (spread,) = report.spreads
    assert [score.template for score in report.scores] == ["plain", "asked"]
    assert spread["mean"] == pytest.approx((plain + asked) / 2) == report.groups[0].value
    assert (spread["worst"], spread["best"]) == (min(plain, asked), max(plain, asked))


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("how", ["sum", "token", "byte", "pmi"])
def test_options_are_compared_as_the_suite_says(lab, tmp_path, how, name):
    if not (lab / name).exists():
        stand_in("SmolLM2", lab / name)
    (judged,) = scored(lab, tmp_path, entry(lab, "choose", normalise=how), name).judged

    for example, answer in zip(judged.examples, judged.answers, strict=True):
        sums, texts = answer["logprobs"], example.inputs["choices"]
        if how == "pmi":  # of equal prompts, so the order of what the prompt adds is that of the scores
            assert answer["scores"] != sums and len(answer["scores"]) == len(sums)
            continue
        sizes = {"sum": [1] * len(sums), "token": answer["tokens"], "byte": [len(t.encode()) for t in texts]}
        expected = [total / size for total, size in zip(sums, sizes[how], strict=True)]
        assert answer["scores"] == pytest.approx(expected)
        assert answer["value"] == expected.index(max(expected))


def test_shots_are_drawn_for_each_document_by_itself_and_shown(lab, tmp_path, monkeypatch):
    asked, prompts, real = counted(monkeypatch), [], harness.Questions
    monkeypatch.setattr(
        harness, "Questions", lambda *args: prompts.append(questions := real(*args)) or questions
    )
    with_shots = scored(lab, tmp_path, entry(lab, "classify", shots=2)).report.scores[0]
    without = scored(lab, tmp_path, entry(lab, "classify")).report.scores[0]
    again = scored(lab, tmp_path, entry(lab, "classify", shots=2)).report.scores[0]

    assert (with_shots.shots, without.shots) == (2, 0) and with_shots == again
    assert {len(shots) for shots in prompts[0].drawn.values()} == {2} and len(asked) == 12
    assert len({repr(shots) for shots in prompts[0].drawn.values()}) > 1


def test_answers_are_written_as_the_suite_says(lab, tmp_path):
    def texts(**generation):
        (judged,) = scored(lab, tmp_path, entry(lab, "generate", generation=generation)).judged
        return [answer["text"] for answer in judged.answers]

    greedy, short = texts(max_new_tokens=12), texts(max_new_tokens=2)
    drawn = [texts(max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)]

    assert all(long.startswith(start) for long, start in zip(greedy, short, strict=True))
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != greedy
    letter = next(text for text in greedy if len(text) > 1)[1]
    assert all(letter not in text for text in texts(max_new_tokens=12, stop=[letter]))


def test_two_adapters_are_scored_in_one_pass_as_each_is_alone(lab, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    import torch
    import transformers as tr

    for seed in (1, 2):
        net = tr.AutoModelForSeq2SeqLM.from_pretrained(lab / "t5")
        net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["q", "v"]))
        torch.manual_seed(seed)
        for key, value in net.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value)
        net.save_pretrained(tmp_path / f"a{seed}")
    suite, names = str(lab / "small.yaml"), [str(tmp_path / "a1"), str(tmp_path / "a2")]
    loads, real = [], plain.build
    monkeypatch.setattr(plain, "build", lambda *args, **more: loads.append(args) or real(*args, **more))

    both = judge.judge([str(lab / "t5")], suite, adapters=names, tasks="own/c*", compare=True)
    assert len(loads) == 1
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "other"))
    alone = [judge.judge([str(lab / "t5")], suite, adapters=[name], tasks="own/c*") for name in names]

    found = both.evaluations[0].judged
    assert [item.score.model for item in found] == ["a1", "a2"] * 2 and len(both.comparisons) == 1
    for item in found:
        (same,) = [
            one
            for one in alone[int(item.score.model[1]) - 1].evaluations[0].judged
            if one.score.task == item.score.task
        ]
        for one, other in zip(item.answers, same.answers, strict=True):
            assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-3)


def test_the_rows_that_a_run_was_trained_on_are_found(lab, tmp_path, capsys):
    tasks = json.loads((lab / "small.yaml").read_text())["tasks"][:2]
    stand_in("minilm", tmp_path / "minilm")
    mtnlp.finetune(tiny_tasks.recipe(str(tmp_path / "minilm"), tasks), out=tmp_path / "run")
    suite = {"name": "leaked", "version": 1, "tasks": tasks, "split": "train"}
    (tmp_path / "leaked.yaml").write_text(json.dumps(suite))

    found = judge.judge([str(tmp_path / "run")], str(tmp_path / "leaked.yaml"), overlap=True)
    found.print()

    overlap = found.evaluations[0].report.as_dict()["overlap"]
    assert [task["fraction"] for task in overlap["tasks"]] == [
        1.0,
        1.0,
    ] and "100.0%" in capsys.readouterr().out
    with pytest.raises(mtnlp.MtnlpError, match="is no run folder"):
        judge.judge([str(lab / "t5")], str(lab / "small.yaml"), tasks="own/pair", overlap=True)


def corpus(folder, documents=40, queries=6):
    """A folder in the layout of BEIR of texts of random words, three of them found for each query.

    Returns how many texts and queries there are.
    """
    draw = random.Random(3)
    (folder / "qrels").mkdir(parents=True)
    for name, count in (("corpus", documents), ("queries", queries)):
        texts = (" ".join(draw.choices(tiny_tasks.WORDS, k=draw.randint(4, 40))) for _ in range(count))
        rows = [json.dumps({"_id": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    lines = ["query-id\tcorpus-id\tscore"]
    for i in range(queries):
        lines += [f"queries{i}\tcorpus{j}\t1" for j in draw.sample(range(documents), 3)]
    (folder / "qrels" / "validation.tsv").write_text("\n".join(lines) + "\n")
    return documents + queries


def test_two_processes_answer_and_embed_what_one_does_to_the_last_bit(lab, tmp_path, monkeypatch):
    texts = corpus(tmp_path / "corpus")
    suite = json.loads((lab / "small.yaml").read_text()) | {
        "retrieval": [{"name": "mine", "path": str(tmp_path / "corpus")}]
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    line = ["eval", str(lab / "t5"), "--suite", str(tmp_path / "suite.yaml"), "--out"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    env = {**os.environ, **place, "MTNLP_CACHE": str(tmp_path / "two"), "CUDA_VISIBLE_DEVICES": ""}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "mtnlp", *line, str(tmp_path / "two-out")],
            env={**env, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    monkeypatch.setitem(harness.evaluate.__kwdefaults__, "resamples", statistics.RESAMPLES)
    with pytest.raises(SystemExit) as ended:
        main([*line, str(tmp_path / "one-out")])

    assert not ended.value.code
    answers, pieces, scores = [], [], []
    for folder, out in ((tmp_path / "two", "two-out"), (cache_dir(), "one-out")):
        files = (folder / "answers").glob("*.jsonl")  # one of answers, one of vectors
        rows = [json.loads(text) for file in files for text in file.read_text().splitlines()]
        pieces.append(sum(row["left"] == 0 for row in rows))
        answers.append({row.pop("key"): {**row, "left": None} for row in rows})
        scores.append(json.loads((tmp_path / out / "results.json").read_text())["scores"])
    assert scores[0] == scores[1] and len(scores[0]) == len(KINDS) + 1
    assert answers[0] == answers[1] and len(answers[0]) == 6 * len(KINDS) + texts
    assert pieces[0] < pieces[1]  # a batch of each process is written at a time
