"""A run folder as a model: which rows it reads how, and which of its tasks are scored."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from tiny_hub import stand_in

import mtnlp
from mtnlp.cli.main import main

NEWS = [
    {"title": f"army {i}" if i % 2 else f"goal {i}", "text": f"about {i}", "topic": ("sport", "war")[i % 2]}
    for i in range(24)
]
TASKS = [
    {"name": "news/joined", "kind": "classify", "fields": {"text": "{{ title }}. {{ text }}"}},
    {"name": "news/pair", "kind": "pair", "fields": {"text": "title", "text_pair": "text"}},
    {"name": "other", "kind": "classify", "fields": {"text": "title"}},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose source calls other columns `text` than the tasks do."""
    lab = tmp_path_factory.mktemp("lab")
    (lab / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NEWS))
    tasks = [
        {**task, "source": "news.jsonl", "fields": {**task["fields"], "label": "topic"}} for task in TASKS
    ]
    model = {"backbone": str(stand_in("minilm", lab / "backbone")), "strategy": "heads"}
    train = {"steps": 3, "examples_per_step": 4, "checkpoint_every": 1}
    mtnlp.finetune({"base": str(lab), "model": model, "tasks": tasks, "train": train}, out=lab / "run")
    return lab / "run"


def test_a_row_of_the_source_is_read_as_in_training_and_its_answer_not_at_all(run):
    model = mtnlp.load(run)

    for task, own in [
        ("news/joined", lambda row: {"text": f"{row['title']}. {row['text']}"}),
        ("news/pair", lambda row: {"text": row["title"], "text_pair": row["text"]}),
        ("other", lambda row: {"text": row["title"], "label": "none of them"}),
    ]:
        expected = model.predict([own(row) for row in NEWS[:4]], task=task)
        assert model.predict(NEWS[:4], task=task) == expected
        assert model.predict([{**row, "topic": "maybe"} for row in NEWS[:4]], task=task) == expected
        assert model.predict([{"title": "", **own(NEWS[0])}], task=task) != expected[:1]


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(run):
    scores, results = (run / "results.json").read_text(), run / "results.json"
    results.unlink()

    for call in (mtnlp.load, lambda run: mtnlp.evaluate(run, split="validation")):
        with pytest.raises(
            mtnlp.MtnlpError, match=r"no results\.json: its training has not finished"
        ) as told:
            call(run)
    _, *command = shlex.split(re.search(r"`(.*)`", str(told.value))[1])
    with pytest.raises(SystemExit) as stopped:
        main(command)

    assert not stopped.value.code and mtnlp.load(run).tasks
    assert json.loads(results.read_text())["scores"] == json.loads(scores)["scores"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["news/joined", "news/pair", "other"]),
        ("other, news/*", ["other", "news/joined", "news/pair"]),
        (["*pair", "news/*"], ["news/pair", "news/joined"]),
        ("other", ["other"]),
    ],
)
def test_tasks_to_score_are_names_or_patterns_each_once(run, wanted, names):
    report = mtnlp.evaluate(run, tasks=wanted, split="validation", limit=1)

    assert [(score.task, score.n) for score in report.scores] == [(name, 1) for name in names]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "newz/*"}, "No task of this run is called 'newz/*'. Known: news/joined"),
        ({"tasks": []}, "tasks: names no task"),
        ({"tasks": " , "}, "tasks: names no task"),
        ({"limit": 0}, "limit: expected at least 1 row, got 0"),
        ({"limit": -1}, "limit: expected at least 1 row, got -1"),
    ],
)
def test_what_cannot_be_scored_is_told(run, options, message):
    with pytest.raises(mtnlp.MtnlpError, match=re.escape(message)):
        mtnlp.evaluate(run, split="validation", **options)


def test_rows_to_predict_may_come_from_a_generator_and_other_types_are_refused_in_words(run):
    model = mtnlp.load(run)

    assert model.predict((row for row in NEWS), task="other") == model.predict(NEWS, task="other")
    for rows, found in [(None, "NoneType"), (3, "int")]:
        with pytest.raises(mtnlp.DataError, match=f"rows: expected a list of rows, found one {found}"):
            model.predict(rows, task="other")
    with pytest.raises(mtnlp.DataError, match=r"row 1: text: no column 'title' .* 'titel'"):
        model.predict([{1: "a", "titel": "b"}], task="other")
