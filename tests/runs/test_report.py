"""The page of a run: whole, inert, equal to what the run wrote, and what it says where something is not."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny_tasks
from rich.console import Console

from mtnlp.bench import charts
from mtnlp.cli.main import main
from mtnlp.compare import affinity_found
from mtnlp.compare.affinity import Grouping, Matrix
from mtnlp.compare.outcome import Costs, Outcome, Variant
from mtnlp.compare.verdicts import TaskVerdict, Verdicts
from mtnlp.runs import report, sections, targets, train, trained
from mtnlp.train.callbacks import Progress

EVIL = "</td></svg><script>alert(1)</script><img src=http://evil.example/x>\"'&"
KINDS = {"topic": "classify", "pick": "choose", "names": "tag", "rating": "regress"}
STEPS = 24


class Page(HTMLParser):
    """The tags of a page, its tables by heading, and the words of its charts; asserts that all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.links, self.tables, self.charts = [], [], [], [], {}, {}
        self.where, self.cells, self.said = "", None, {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        self.open += [] if tag == "meta" else [tag]
        if tag == "tr":
            self.tables.setdefault(self.where, []).append([])
        if tag in ("td", "th", "title", "desc", "h1", "h2", "h3", "summary", "p", "li"):
            self.cells = []

    def handle_data(self, data):
        if self.cells is not None:
            self.cells.append(data)
        self.said.setdefault(self.where, []).append(data)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        text = "".join(self.cells or ())
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
            self.where = text if tag == "h2" else self.where
        if tag in ("td", "th"):
            self.tables[self.where][-1].append(text)
        if tag in ("title", "desc"):
            self.charts.setdefault(self.where, []).append(text)

    def text(self, where):
        return " ".join(self.said.get(where, ()))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("trunk"))


def recipe(trunk, folder, **settings):
    """Tasks with rows in files; the first validation row of `topic` is hostile, and stands in train too."""
    tasks = []
    for name, kind in KINDS.items():
        task = tiny_tasks.task(name, kind, rows=20)
        rows = task["source"]
        if name == "topic":
            rows["validation"][0] = {**rows["validation"][0], "text": EVIL}
            rows["train"][3] = {**rows["train"][3], "text": EVIL}
        task["source"] = {}
        for split in ("train", "validation"):
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows[split]), "utf-8")
            task["source"][split] = str(path)
        tasks.append(task)
    made = tiny_tasks.recipe(trunk, tasks, examples_per_step=8, **{"steps": STEPS, **settings})
    return {**made, "name": "mine", "eval": {"every": 8}}


@pytest.fixture(scope="module")
def mine(trunk, tmp_path_factory):
    """A finished run whose rows are in files."""
    folder = tmp_path_factory.mktemp("mine")
    train.finetune(recipe(trunk, folder), out=folder / "run", console=Console(quiet=True))
    return folder / "run"


@pytest.fixture
def run(mine, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(mine, tmp_path / "run")
    return tmp_path / "run"


def written(run, **options):
    return report.write(run, **options).read_text("utf-8")


def lines(run, kind):
    found = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in found if line["kind"] == kind]


def test_the_page_is_whole_needs_nothing_else_and_lets_no_text_out_of_its_place(run):
    text = written(run)
    page = Page(text)

    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(page.links) == sorted(f"#{name}" for name in names) and len(set(names)) == len(names)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "link", "form"}
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http://evil", "")
    assert page.text("Wrong answers").count(EVIL) + page.text("Rows that stand in train").count(EVIL) >= 1
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    svgs = [tag for tag, _ in page.tags if tag == "svg"]
    assert len(svgs) == sum(map(len, page.charts.values())) // 2 >= len(KINDS) + 6
    assert [a for tag, a in page.tags if tag == "html"] == [{"lang": "en"}]
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_its_numbers_are_those_that_the_run_wrote(run):
    page = Page(written(run))

    scores = json.loads((run / "results.json").read_text("utf-8"))["scores"]
    rows = [row for row in page.tables["Scores"][1:]]
    expected = [
        (metric, f"{value:.3f}", f"{score['baseline'][metric]:.3f}")
        for score in scores
        for metric, value in score["values"].items()
    ]
    assert [(row[1], row[2], row[4]) for row in rows] == expected
    for row in rows:
        low, high = row[3].split(" to ")
        assert float(low) <= float(row[2]) <= float(high)

    entries = json.loads((run / "ledger.json").read_text("utf-8"))["tasks"]
    given = page.tables["What each task was given"]
    assert [dict(zip(given[0], row, strict=True))["tokens"] for row in given[1:]] == [
        f"{entry['tokens']:,}" for entry in entries
    ]
    assert all(f"{one['achieved']:.1%} of {one['asked']:.1%}" in page.text("What each task was given")
               for one in entries)  # fmt: skip

    steps = lines(run, "step")
    window = charts.window_of(STEPS)
    told = page.charts["Loss of each task"]
    for name in KINDS:
        known = [(line["step"], line["losses"][name]) for line in steps if name in line["losses"]]
        last = known[-1][0]
        end = np.mean([loss for step, loss in known if abs(step - last) <= window // 2])
        said = told[told.index(f"{name} over steps") + 1]
        assert f"{charts.number(end)} at step {last}" in said
    tokens, seconds = (sum(line[key] for line in steps) for key in ("tokens", "seconds"))
    assert (
        f"{tokens:,} tokens in {seconds:,.1f} s of steps: {tokens / seconds:,.0f} per second."
        in page.text("Learning rate, gradient and speed")
    )
    last = lines(run, "eval")[-1]
    assert (
        f"{charts.number(last['aggregate'])} at step {last['step']}"
        in page.charts["Scores during training"][1]
    )
    assert (run / "recipe.yaml").read_text("utf-8").strip() in page.text("Settings and versions")


def test_wrong_answers_are_three_and_in_words_and_leaks_name_their_task(run):
    page = Page(written(run))

    found = page.tables["Wrong answers"]
    starts = [i for i, row in enumerate(found) if row[0] == "row"]
    assert len(starts) == len(KINDS) and max(np.diff([*starts, len(found)])) <= 4
    topic = found[1 : starts[1]]
    assert topic and all({row[2], row[3]} <= set(tiny_tasks.LABELS) and row[2] != row[3] for row in topic)
    (leak, *_), *_ = (
        [row for row in page.tables["Rows that stand in train"] if row[0] == "topic validation"],
        0,
    )
    assert leak[2] == "1" and leak[5] == "topic 1"


def test_the_same_run_gives_the_same_page_and_no_model_is_loaded_twice(run, monkeypatch):
    first = written(run)
    monkeypatch.setattr(targets.RunTarget, "_load", lambda self: pytest.fail("the model was loaded"))

    assert written(run, out=run.parent / "deep" / "again.html") == first


def test_a_resumed_run_has_the_page_of_one_that_was_never_interrupted(trunk, mine, tmp_path, monkeypatch):
    data = recipe(trunk, mine.parent)
    with monkeypatch.context() as patch:
        call = Progress.__call__

        def press(self, record):
            call(self, record)
            if record.step == 7:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(Progress, "__call__", press)
        with pytest.raises(KeyboardInterrupt):
            train.finetune(data, out=tmp_path / "run", console=Console(quiet=True))
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run")])
    train.finetune(data, out=tmp_path / "run", resume=True, console=Console(quiet=True))

    again, whole = (Page(written(place, out=tmp_path / "page.html")) for place in (tmp_path / "run", mine))

    for part in ("Scores", "Loss of each task", "Scores during training", "What each task was given"):
        assert again.tables.get(part) == whole.tables.get(part) and again.text(part) == whole.text(part)


def test_a_run_without_validation_says_that_nothing_was_scored(trunk, tmp_path):
    data = recipe(trunk, tmp_path)
    for task in data["tasks"]:  # nothing but copies of a row, so none are held out
        row, *_ = (tmp_path / f"{task['name']}-train.jsonl").read_text("utf-8").splitlines()
        task["source"] = {"train": [json.loads(row)] * 9}
    train.finetune(data, out=tmp_path / "run", console=Console(quiet=True))

    page = Page(written(tmp_path / "run"))

    assert "nothing was scored" in page.text("Scores") and "Scores during training" not in page.said
    assert len(page.charts["Loss of each task"]) == 2 * len(KINDS) and "Wrong answers" not in page.said
    assert "were given in memory" in page.text("How to make this run again")


def test_rows_that_are_gone_or_have_changed_cost_the_intervals_and_nothing_else(run, mine, tmp_path):
    tasks = json.loads((run / "tasks.json").read_text("utf-8"))
    tasks[1]["source"] = None
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join((mine.parent / "names-validation.jsonl").read_text().splitlines(True)[:4]))
    tasks[2]["source"]["validation"] = str(changed)
    (run / "tasks.json").write_text(json.dumps(tasks))
    whole = Page(written(mine, out=tmp_path / "whole.html"))

    page = Page(written(run))

    told = page.text("What to know")
    assert re.search("wrong answers of pick: its rows are not in the folder", told)
    assert re.search("wrong answers of names: its validation rows have changed since the run began", told)
    task = ""
    for row, other in zip(page.tables["Scores"], whole.tables["Scores"], strict=True):
        task = row[0] or task
        assert row == ([*other[:3], "", *other[4:]] if task in ("pick", "names") else other)


def test_forty_tasks_keep_the_page_small_and_most_charts_behind_a_click(run):
    found = report.gather(trained.finished(run))
    names = [f"a-task-with-a-long-name-{i}/{'x' * 40}" for i in range(40)]
    losses = [
        {**found.steps[0], "step": step, "losses": {name: 1 / step for name in names}}
        for step in range(1, 2001)
    ]
    many = replace(
        found,
        run=replace(found.run, specs=tuple(found.run.specs[0].replace(name=name) for name in names)),
        scores=tuple(replace(found.scores[0], task=name) for name in names),
        drawn=[replace(found.drawn[0], task=name, epochs=i) for i, name in enumerate(names)],
        steps=losses,
        evals=(),
    )

    text = sections.page(many)

    page = Page(text)
    assert len(text) < 400_000 and len(page.charts["Loss of each task"]) == 80
    assert "28 more" in page.text("Loss of each task")
    before = text.index('id="loss-of-each-task"')
    assert text[before : text.index("<details>", before)].count("<svg") == sections.FIGURES
    assert f"{names[11]} (11.0), " in page.text("What to know") and f"{names[10]} (" not in text


def verdict(task):
    return TaskVerdict(
        task=task, kind="classify", metric="accuracy", split="validation", n=6, baseline=0.5, joint=0.25,
        baseline_sd=None, joint_sd=None, difference=-0.25, low=-0.5, high=0.125, p=0.01, adjusted=0.02,
        least=0.1, verdict="hurt", note="", relative=-0.5,
    )  # fmt: skip


def outcome(*names):
    costs = Costs(10, 1.0, 100)
    found = Verdicts(tuple(map(verdict, names)), -0.5, None, 0.5, 0.25)
    return Outcome("mine", (1, 2), (Variant("joint", found, costs, costs),), ()).as_dict()


def affinities(*names):
    size = len(names)
    matrix = Matrix(np.full((size, size), -0.25), np.full((size, size), np.nan))
    grouping = Grouping(tuple((i,) for i in range(size)), 0.0, (), True)
    commands = tuple(f"mtnlp compare mine tasks={name}" for name in names)
    return affinity_found.Affinities(
        "mine", names, "lora", 50, 10, 16, matrix, matrix, grouping, commands
    ).as_dict()


def test_what_compare_and_affinity_found_is_shown_from_the_run_or_from_where_it_lies(run, tmp_path):
    (run / "compare.json").write_text(json.dumps(outcome("topic", "pick")))
    (tmp_path / "affinity.json").write_text(json.dumps(affinities("topic", EVIL)))

    page = Page(written(run, affinity=tmp_path))

    (row,) = [row for row in page.tables["Joint against single-task training"] if row[0] == "topic"]
    assert row[1] == "hurt" and row[7:9] == ["-0.250", "-0.500 to +0.125"]
    assert "mtnlp compare mine tasks=topic" in page.text("Which tasks go together")
    assert page.text("Which tasks go together").count("-0.25") >= 4
    assert Page(written(run)).said.keys() == page.said.keys() - {"Which tasks go together"}


def broken(run, name, text):
    (run / name).write_text(text)
    return [str(run)]


def named(*words):
    return lambda run: [str(run), *(word.format(run=run) for word in words)]


WRONG = {
    "no run": (lambda run: [str(run.parent)], "is not a run folder"),
    "unfinished": (lambda run: (run / "results.json").unlink() or [str(run)], "training has not finished"),
    "a folder": (named("--out", "{run}"), "is a folder; name a file, such as"),
    "no place": (named("--out", "{run}/recipe.yaml/x.html"), "cannot be written there"),
    "no split": (named("--split", "dev"), "Known: train, validation."),
    "no comparison": (named("--compare", "{run}"), "there is no compare.json. Name a folder"),
    "other tasks": (lambda run: broken(run, "compare.json", json.dumps(outcome("x"))), "none of the run's"),
    "no outcome": (lambda run: broken(run, "affinity.json", "{}"), "not what this version of `mtnlp affin"),
    "metrics": (lambda run: broken(run, "metrics.jsonl", "{}\n"), "metrics.jsonl:1: not a line of metrics"),
    "ledger": (lambda run: broken(run, "ledger.json", "[]"), "ledger.json: damaged"),
    "results": (lambda run: broken(run, "results.json", "{"), "results.json: damaged"),
    "no results": (lambda run: broken(run, "results.json", "{}"), "results.json: damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_shown_is_told_in_a_sentence(run, case, capsys):
    spoil, told = WRONG[case]

    with pytest.raises(SystemExit) as stopped:
        main(["report", *spoil(run)])

    assert stopped.value.code == 2 and told in " ".join(capsys.readouterr().err.split())
    assert not (run / "report.html").exists()


def test_without_metrics_and_ledger_the_rest_is_shown_and_another_split_can_be_scored(run):
    (run / "metrics.jsonl").unlink()
    (run / "ledger.json").unlink()

    page = Page(written(run, split="train"))

    assert "nothing is known over steps" in page.text("What to know") and "Loss of each task" not in page.said
    assert "kept no ledger" in page.text("What each task was given")
    assert "On the train rows." in page.text("Scores") and page.tables["Scores"][1][5] == "20"
