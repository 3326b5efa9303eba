"""Each command: what it passes on, prints and answers."""

import io
import json
from pathlib import Path

import pytest

from mtnlp import balancers, samplers, strategies
from mtnlp.cli.predict import CHUNK
from mtnlp.config import shipped

# finetune


def test_finetune_passes_recipe_overrides_and_flags_on(run, house):
    result = run("finetune", "r.yaml", "train.lr=1e-4", "--out", "there", "seed=3", "--dry-run", "--force")

    assert result.code == 0
    flags = {"resume": False, "force": True, "dry_run": True, "trust_remote_code": False}
    expected = ("finetune", ("r.yaml", ["train.lr=1e-4", "seed=3"]), {"out": Path("there"), **flags})
    assert house.calls == [expected]


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_run_says_how_to_go_on(run, house, tmp_path, monkeypatch, written):
    def interrupted(*args, **kwargs):
        if written:
            (tmp_path / "runs/my-run").mkdir(parents=True)
            for name in ("recipe.yaml", "tasks.json"):
                (tmp_path / "runs/my-run" / name).write_text("")
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my run.yaml").write_text("model: {backbone: minilm}\ntasks: [a]\n")
    house.finetune = interrupted

    result = run("finetune", "my run.yaml", "train.steps=3", "--force")

    assert result.code == 130
    again = "mtnlp finetune 'my run.yaml' train.steps=3"
    if written:
        assert result.err == f"mtnlp: interrupted. To go on from the last checkpoint: {again} --resume\n"
    else:
        assert result.err == f"mtnlp: interrupted. Nothing was written yet; start again with: {again}\n"


def test_any_other_command_that_is_interrupted_says_so_too(run, house):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    house.check = interrupted

    result = run("check", "r.yaml")

    assert result.code == 130
    assert result.err == ("mtnlp: interrupted. What was finished is kept; run the same command again.\n")


# check and eval


def test_check_prints_its_report(run, house):
    assert run("check", "r.yaml", "seed=3").out == "the report\n"
    assert house.calls == [("check", ("r.yaml", ["seed=3"]), {"trust_remote_code": False})]


def test_eval_passes_its_choices_on_and_saves_the_report(run, house, tmp_path):
    chosen = ("--tasks", "mood, same", "--split", "validation", "--limit", 5)

    result = run("eval", "runs/x", *chosen, "--out", tmp_path / "scores.json")

    assert (result.code, result.out) == (0, "the report\n")
    ((name, given, options),) = house.calls
    chosen = {"tasks": "mood, same", "split": "validation", "limit": 5, "trust_remote_code": False}
    assert (name, given) == ("judge", (["runs/x"], None)) and chosen.items() <= options.items()
    assert (tmp_path / "scores.json").read_text() == "{}"


# predict


@pytest.fixture
def answers(run, house, monkeypatch):
    """answers(text, "--task", "mood") -> the rows that the model saw, and the result."""

    def answers(text, *args):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        result = run("predict", "runs/x", *args)
        return [json.loads(line)["value"] for line in result.out.splitlines()], result

    return answers


def test_lines_of_text_become_the_rows_of_the_kind(answers):
    assert answers("fine\r\n\nso so \n", "--task", "mood")[0] == [{"text": "fine"}, {"text": "so so "}]
    assert answers("a b\tc\n", "--task", "same")[0] == [{"text": "a b", "text_pair": "c"}]
    assert answers("Ada  met Bob\n", "--task", "names")[0] == [{"tokens": ["Ada", "met", "Bob"]}]


def test_json_lines_are_passed_on_as_they_are(answers):
    rows = [{"question": "Où?", "choices": ["ici", "là"]}, {"question": "?", "choices": []}]

    assert answers("\n".join(map(json.dumps, rows)), "--task", "exam")[0] == rows


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ('{"text": "a"}\nb\n', "mood", "standard input:2: not JSON"),
        ('{"text": "a"}\n[1]\n', "mood", 'standard input:2: expected an object like {"text": ...}, found'),
        ("a\tb\nc\n", "same", "standard input:2: same needs two texts separated by one tab, found 1."),
        ("hm\n", "exam", 'give JSONL like {"question": ..., "choices": ...}'),
        ("\nfine\nbad\n", "mood", "standard input:3: no good."),
    ],
)
def test_rows_that_do_not_fit_name_the_line(answers, text, task, message):
    _, result = answers(text, "--task", task)

    assert result.code == 2
    assert message in result.err


def test_a_byte_order_mark_is_no_text(answers):
    assert answers('\ufeff{"text": "a"}\n', "--task", "mood")[0] == [{"text": "a"}]


def test_a_long_input_streams_in_chunks_from_a_file(run, house, tmp_path):
    (tmp_path / "rows.txt").write_text("x\n" * (CHUNK + 1))

    result = run("predict", "runs/x", "--task", "mood", "--input", tmp_path / "rows.txt")

    assert len(result.out.splitlines()) == CHUNK + 1
    assert house.model.calls == [("mood", CHUNK), ("mood", 1)]


def test_an_input_file_that_cannot_be_read_is_named(run, house, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")

    assert (
        "latin.txt: not UTF-8" in run("predict", "x", "--task", "mood", "--input", tmp_path / "latin.txt").err
    )
    assert "none.txt: No such" in run("predict", "x", "--task", "mood", "--input", tmp_path / "none.txt").err


# list and show


@pytest.mark.parametrize("room", [strategies, samplers, balancers], ids=lambda room: room.__name__)
def test_methods_are_listed_with_their_first_sentence(run, room):
    name = room.__name__.split(".")[1]

    rows = json.loads(run("list", name, "--json").out)

    assert [row["name"] for row in rows] == room.names()
    assert all(row["about"] for row in rows)
    assert run("list", name).out.splitlines()[0].split()[0] == room.names()[0]


def test_recipes_and_metrics_are_listed_with_what_they_are(run):
    recipes = json.loads(run("list", "recipes", "--json").out)
    metrics = {row["name"]: row for row in json.loads(run("list", "metrics", "--json").out)}

    assert [row["name"] for row in recipes] == list(shipped())
    assert all(row["about"] for row in recipes)
    assert metrics["mse"]["greater_is_better"] is False
    assert "classify" in metrics["accuracy"]["kinds"]


def test_tasks_are_listed_with_kind_and_source(run):
    tasks = {row["name"]: row for row in json.loads(run("list", "tasks", "--json").out)}

    assert tasks["glue/sst2"]["kind"] == "classify"
    assert tasks["glue/sst2"]["source"].startswith("hub:")


def test_an_unknown_room_or_thing_is_suggested(run):
    assert "Did you mean 'samplers'?" in run("list", "sampler").err
    assert "Did you mean 'task'?" in run("show", "tasks", "glue/rte").err


def test_show_prints_a_definition_and_rendered_rows(run, tmp_path, monkeypatch):
    (tmp_path / "mood.csv").write_text("body,label\nwhat a day,good\nrain again,bad\n")
    (tmp_path / "mood.yaml").write_text(
        "name: mood\nkind: classify\nsource: mood.csv\nfields: {text: body}\n"
    )
    monkeypatch.chdir(tmp_path)

    result = run("show", "task", "mood.yaml")

    assert result.code == 0
    assert "kind:        classify" in result.out
    assert "=> " in result.out


def test_show_of_a_source_out_of_reach_still_shows_the_definition(run):
    result = run("show", "task", "glue/sst2")

    assert result.code == 0
    assert "kind:        classify" in result.out
    assert "No rows to show: " in result.out
