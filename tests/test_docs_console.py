"""The command lines of the documentation, typed in: page by page, in their order, in a copy of the checkout.

Nothing is left out but size: the backbone is a tiny random network, recipes keep a few rows and two steps,
the real data beside the checkout is a stand-in. A line that is neither run nor in ELSEWHERE fails its page.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny_tasks
import transformers
from few_rows import small, specs_of
from pages import PAGES, ROOT, command_lines
from tiny_hub import stand_in
from typer.main import get_command

from mtnlp import config, strict_yaml
from mtnlp.cli.main import app, main
from mtnlp.hub import bundle
from mtnlp.models import places
from mtnlp.tasks.folders import TYPES
from mtnlp.tasks.load import load

STEPS = 2
LESS = [f"train.steps={STEPS}", "train.examples_per_step=8", "eval.every=1", "eval.rows=4"]
MEASURED = (
    "adapters_batchsplit", "bootstrap", "device", "encode_eval", "end_to_end", "eval_again", "generation",
    "hostile", "loop_overhead", "optimizer", "options", "overlap", "peak", "plan", "real_tasks", "step",
    "tables",
)  # fmt: skip
ELSEWHERE = {  # how a line begins that is not run here -> what holds it
    "source .venv/bin/activate": "nothing of ours: venv writes that file, and here mtnlp is on the path",
    "$(PYTEST)": "whoever runs this suite: it is what `make test` does after set-up",
    "python -m pytest tests/proofs": "a part of this suite",
    "accelerate launch --multi_gpu": "proofs/test_processes.py launches it, `replicated`, if slow tests run",
    "mtnlp eval runs/quickstart --suite": "runs/test_harness.py, since here tasks have fewer labels",
    "mtnlp compare quickstart": "compare/test_compare.py compares smaller runs",
    "mtnlp compare benchmarks/real-tasks.yaml": "compare/test_compare.py compares smaller runs",
    "mtnlp affinity benchmarks/real-tasks.yaml": "train/test_affinity.py measures smaller runs",
    "accelerate launch --use_fsdp": "proofs/test_processes.py launches it, `sharded`",
    **{f"python benchmarks/{name}.py": "test_benchmarks.py runs it with --quick" for name in MEASURED},
}
PUNCTUATION = "|<>;&()"
MY_ROWS = ["Please call me back today.", "The invoice can wait.", "All printers are down!"]
SHARED = {  # folders beside the checkout that benchmarks/real-tasks.yaml trains on -> their task type
    "sst2": "classification", "trec6": "classification", "banking77": "classification",
    "snli": "pair_classification", "paws": "pair_classification", "scitail": "pair_classification",
    "boolq": "pair_classification", "wnut17_ner": "token_classification", "ewt_pos": "token_classification",
    "arc": "multiple_choice", "sts_semeval": "pair_regression", "goemotions": "multilabel_classification",
}  # fmt: skip


def excused(line: str) -> list[str]:
    return [start for start in ELSEWHERE if line.startswith(start)]


def stages(line: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """(words, files after `<` and `>`) of every command of a pipe; nothing else of a shell is known."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=PUNCTUATION)
    lexer.whitespace_split = True
    words, files = [], {}
    for word in lexer:
        if word in ("<", ">"):
            files[word] = next(lexer)
        elif word == "|":
            yield words, files
            words, files = [], {}
        else:
            assert set(word) - set(PUNCTUATION) and not set("$`") & set(word), f"{line}: what is {word}?"
            words.append(word)
    yield words, files


def made_of(target: str) -> list[str]:
    """The lines of a target of the Makefile; its set-up, the environment that runs this, is left out."""
    text = (ROOT / "Makefile").read_text("utf-8")
    found = re.search(rf"^{target}: \$\(READY\)\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert found, f"make {target}: no such target"
    return [line.strip().replace("$(BIN)/", "") for line in found[1].splitlines()]


class Shell:
    """As much of a shell as the documentation asks for: pipes, `<`, `>`, and a method for each program."""

    def __init__(self, backbone: Path, capsys, monkeypatch) -> None:
        self.backbone, self.capsys, self.monkeypatch = backbone, capsys, monkeypatch

    def run(self, line: str) -> None:
        if excused(line):
            return
        said = ""
        for words, files in stages(line):
            typed = Path(files["<"]).read_text("utf-8") if "<" in files else said
            program = getattr(self, f"do_{words[0]}", None)
            assert program, f"{line}: neither run nor in ELSEWHERE"
            said = program(words[1:], typed)
            if ">" in files:
                Path(files[">"]).write_text(said, "utf-8")

    def do_echo(self, words: list[str], typed: str) -> str:
        return " ".join(words) + "\n"

    def do_make(self, words: list[str], typed: str) -> str:
        for line in made_of(*words):
            self.run(line)
        return ""

    def do_mtnlp(self, words: list[str], typed: str) -> str:
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*words, *less(words)])
        said, warned = self.capsys.readouterr()
        assert not stopped.value.code, f"mtnlp {shlex.join(words)}: {warned}"
        CHECKS[words[0]](parsed(words), typed, said)
        return said

    def do_python(self, words: list[str], typed: str) -> str:
        said = process(*words)
        {"benchmarks/startup.py": startup_measures}[words[0]](said)
        return said

    def do_torchrun(self, words: list[str], typed: str) -> str:
        """On a free port and without a GPU, as docs/reference.md says that it can be."""
        options, line = words[: words.index("mtnlp")], words[words.index("mtnlp") + 1 :]
        fewer = [*less(line), f"model.backbone={self.backbone}"]
        said = process("-m", "torch.distributed.run", "--standalone", *options, "mtnlp", *line, *fewer)
        assert f"{options[options.index('--nproc_per_node') + 1]} x cpu" in said
        CHECKS[line[0]](parsed(line), typed, said)
        return said


def process(*words: str) -> str:
    """What a Python process of its own prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line gives to the command's function."""
    return get_command(app).commands[words[0]].make_context(words[0], words[1:]).params


def recipe_of(given: dict[str, Any]) -> config.Recipe:
    return config.load(given["recipe"], given["overrides"] or ())


def less(words: list[str]) -> list[str]:
    """Overrides that leave of the line's recipe what takes a second; none for commands without a recipe."""
    given = parsed(words)
    if "recipe" not in given:
        return []
    if given.get("add"):
        return LESS
    return [f"tasks={json.dumps([small(*task) for task in specs_of(recipe_of(given))])}", *LESS]


def tasks_of(run: str) -> dict[str, dict[str, Any]]:
    """The tasks of a run folder or of a bundle."""
    if bundle.is_bundle(Path(run)):
        return {task["name"]: task["spec"] for task in bundle.read(Path(run)).tasks}
    return {task["name"]: task for task in json.loads((Path(run) / "tasks.json").read_text("utf-8"))}


def check_tells(given: dict[str, Any], typed: str, said: str) -> None:
    recipe = recipe_of(given)

    assert f"with {recipe.model.strategy.name}, {STEPS} steps of 8 examples" in said
    assert all(re.search(rf"^ {spec.name} +{spec.kind} ", said, re.MULTILINE) for _, spec in specs_of(recipe))
    assert "what the model reads" in said


def finetune_writes(given: dict[str, Any], typed: str, said: str) -> None:
    """A run of this recipe's tasks, with every key as the line changed it; or one with more tasks."""
    if given["add"]:
        run = re.search(r"The run lies in (\S+)\. ", said)[1]
        added = json.loads((Path(run) / "added.json").read_text("utf-8"))["added"]
        assert list(tasks_of(run)) == [*tasks_of(given["add"]), *added] and "unchanged (SHA-256" in said
        return
    recipe = recipe_of(given)
    run = given["out"] or Path("runs", recipe.name)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    scores = json.loads((run / "results.json").read_text("utf-8"))["scores"]
    wrote = strict_yaml.read(run / "recipe.yaml")

    assert f"The run lies in {run}" in said
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, STEPS + 1))
    names = [spec.name for _, spec in specs_of(recipe)]
    assert [score["task"] for score in scores] == list(tasks_of(run)) == names
    for key, _, value in (text.partition("=") for text in given["overrides"] or ()):
        found = wrote
        for part in key.split("."):
            found = found[part]
        assert (found["name"] if isinstance(found, dict) else found) == strict_yaml.load(value, key)


def eval_scores(given: dict[str, Any], typed: str, said: str) -> None:
    scored = re.findall(rf"^ *(\S+) +\w+ +{given['split']} +\d+ ", said, re.MULTILINE)
    every = [name for run in given["targets"] for name in tasks_of(run)]

    assert scored == (given["tasks"].split(",") if given["tasks"] else every)
    assert not given["compare"] or f"{given['targets'][1]} against {given['targets'][0]}" in said


def predict_answers(given: dict[str, Any], typed: str, said: str) -> None:
    """A line per row, each with a label of the task: the pages ask tasks of the kind classify only."""
    rows = given["input"].read_text("utf-8") if given["input"] else typed
    answers = [json.loads(line) for line in said.splitlines()]

    assert len(answers) == len(rows.splitlines()) > 0
    for answer in answers:
        assert set(answer["scores"]) == set(tasks_of(given["run"])[given["task"]]["labels"])
        assert answer["score"] == answer["scores"][answer["label"]] == max(answer["scores"].values())


def affinity_proposes(given: dict[str, Any], typed: str, said: str) -> None:
    recipe = recipe_of(given)
    out = given["out"] or Path("runs", f"{recipe.name}-affinity")
    found = json.loads((out / "affinity.json").read_text("utf-8"))
    groups = [group["tasks"] for group in found["groups"]]
    names = [spec.name for _, spec in specs_of(recipe)]
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert len(groups) <= (given["groups"] or len(found["tasks"])) and found["steps"] == given["steps"]
    assert all(group["verify"] in said for group in found["groups"])


def report_is_written(given: dict[str, Any], typed: str, said: str) -> None:
    page = (given["out"] or Path(given["run"], "report.html")).read_text("utf-8")
    assert all(f">{name}<" in page for name in tasks_of(given["run"])) and "Loss of each task" in page


def push_publishes(given: dict[str, Any], typed: str, said: str) -> None:
    assert f"Pushed: {given['dest']}" in said
    assert list(tasks_of(given["dest"])) == list(tasks_of(given["run"]))


def pull_fetches(given: dict[str, Any], typed: str, said: str) -> None:
    names = list(tasks_of(str(given["out"])))
    assert names == list(tasks_of(given["source"]))
    assert [line.split()[0] for line in said.splitlines()[: len(names)]] == names


def export_merges(given: dict[str, Any], typed: str, said: str) -> None:
    auto = re.search(r"transformers\.(\w+)", said)[1]
    model = getattr(transformers, auto).from_pretrained(given["out"])
    labels = tasks_of(given["run"])[given["merge"]]["labels"]
    assert list(model.config.id2label.values()) == labels


def list_names(given: dict[str, Any], typed: str, said: str) -> None:
    if given["as_json"]:
        names = [row["name"] for row in json.loads(said)]
    else:
        names = [line.split()[0] for line in said.splitlines()]
    room = given["room"]

    assert names == (list(config.shipped()) if room == "recipes" else import_module(f"mtnlp.{room}").names())


def show_renders(given: dict[str, Any], typed: str, said: str) -> None:
    for spec in load(given["name"]):
        assert spec.name in said and f"kind:        {spec.kind}" in said
    assert all(f"  {given['split']} {row}:" in said for row in range(given["rows"]))


def startup_measures(said: str) -> None:
    """The cases and limits that the page shows, all of them kept."""
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    for case in json.loads(said.splitlines()[-1])["cases"]:
        row = rf"^\| `?{case['case']}`? \| [\d.]+ \| {case['limit'] or ''} ?\| none \|$"
        assert case["ok"] and case["heavy"] == [] and re.search(row, page, re.MULTILINE)


CHECKS = {
    "check": check_tells, "finetune": finetune_writes, "eval": eval_scores, "predict": predict_answers,
    "list": list_names, "show": show_renders, "push": push_publishes, "pull": pull_fetches,
    "export": export_merges, "affinity": affinity_proposes, "report": report_is_written,
}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return stand_in("minilm", tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def checkout(tmp_path, monkeypatch, backbone):
    """A copy of what the lines read, with rows of the reader's own in it and the data folder beside it."""
    here = tmp_path / "checkout"
    for name in ("recipes", "benchmarks"):
        shutil.copytree(ROOT / name, here / name)
    write_rows(here / "my_rows.jsonl", [{"body": text} for text in MY_ROWS])
    for name, task_type in SHARED.items():
        folder = tmp_path / "shared" / "data" / "tasks" / name
        folder.mkdir(parents=True)
        made = tiny_tasks.task(name, TYPES[task_type][0])
        meta = {"name": name, "task_type": task_type, "label_names": made.get("labels")}
        (folder / "meta.json").write_text(json.dumps(meta), "utf-8")
        for split, rows in made["source"].items():
            write_rows(folder / f"{split}.jsonl", rows)
    monkeypatch.setattr(places, "packaged", lambda: backbone)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(here)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=str)
def test_what_a_page_says_can_be_typed(page, backbone, capsys, monkeypatch):
    shell = Shell(backbone, capsys, monkeypatch)
    for line in command_lines(page):
        shell.run(line)

    for name in re.findall(r"--input (\S+) > (\S+)", " ".join(command_lines(page))):
        asked, answered = (Path(part).read_text("utf-8").splitlines() for part in name)
        assert len(asked) == len(answered) == len(MY_ROWS)


def test_every_excuse_is_needed():
    lines = [line for page in PAGES for line in command_lines(page)] + made_of("test")

    assert {start for line in lines for start in excused(line)} == set(ELSEWHERE)


@pytest.mark.parametrize("line", ["echo a && ls", "cat a | echo", "echo a >> b", "echo $HOME", "make cofee"])
def test_a_line_that_cannot_be_run_fails(line, backbone, capsys, monkeypatch):
    with pytest.raises(AssertionError, match=r"what is|neither run nor|no such target"):
        Shell(backbone, capsys, monkeypatch).run(line)
