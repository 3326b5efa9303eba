"""What a user may get wrong, by command lines: an exit code, a message that says where, nothing written, and
never a traceback. The rooms have closer tests of their own."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_hub import stand_in

import mtnlp

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(12)]
PAIRS = [{**row, "text_pair": "b"} for row in ROWS]
TAGS = [{"tokens": ["Ann", "ran"], "tags": ["B-x", "O"]}] * 4
CHOICES = [{"question": f"q {i}?", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(6)]
SCORES = [{"text": f"text {i}", "score": i} for i in range(12)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def both(rows, *, train=(), validation=()):
    """Train and validation of the same rows, each with some more."""
    return {"train.jsonl": jsonl([*rows, *train]), "validation.jsonl": jsonl([*rows, *validation])}


FOLDERS = {  # task -> its files
    "good": {**both(ROWS), "test.jsonl": jsonl(ROWS[:4])},
    "pairs": both(PAIRS),
    "tags": both(TAGS),
    "choices": both(CHOICES),
    "empty": {**both(ROWS), "validation.jsonl": ""},
    "blank": {**both(ROWS), "validation.jsonl": "\n\n"},
    "label": {
        **both(ROWS),
        "test.jsonl": jsonl([*ROWS, {"text": "t", "label": "c"}, {"text": "t", "label": 7}]),
    },
    "hidden": {**both(ROWS), "test.jsonl": jsonl([{"text": "t", "label": -1}])},
    "unlabelled": {**both(ROWS), "test.jsonl": jsonl([{"text": "t"}])},
    "tokens": both(TAGS, validation=[{"tokens": ["Ann", "ran"], "tags": ["O"]}]),
    "numbers": both(SCORES, train=[{"text": "t", "score": "high"}]),
    "huge": both(SCORES, train=[{"text": "t", "score": 1e39}]),
    "lists": both(ROWS, train=[{"text": ["t"], "label": "a"}]),
    "halves": both(ROWS, train=[{"text": "\ud800", "label": "a"}]),
    "fields": both(ROWS, train=[{"text": "t"}]),
    "json": {**both(ROWS), "validation.jsonl": jsonl(ROWS) + '{"text": "t", "label": }\n'},
    "bytes": {**both(ROWS), "validation.jsonl": jsonl(ROWS).encode() + b'{"text": "\xff"}\n'},
    "columns": {"train.csv": "text,label\na,b\nc,d,e\n"},
    "templates": both(CHOICES, validation=[{"question": "q", "choices": ["a"], "answer": 0}]),
    "nothing": {},
}
KINDS = {"pairs": "pair", "tags": "tag", "tokens": "tag", "numbers": "regress", "huge": "regress"}
KINDS |= {"choices": "choose", "templates": "choose"}
SETTINGS = {"train": {"steps": 3, "examples_per_step": 4}, "eval": {"every": 2}}
FILES = {
    "broken.yaml": "model: {backbone: [\n",
    "tabs.yaml": "model:\n\tbackbone: minilm\n",
    "twice.yaml": "model: {backbone: minilm}\ntasks: [glue/rte]\nmodel: {backbone: minilm}\n",
    "list.yaml": "- model\n- tasks\n",
    "empty.yaml": "",
    "nulls.yaml": "model: null\ntasks: null\n",
    "latin.yaml": b"name: caf\xe9\n",
    "task.yaml": "name: x\nkind: clasify\nsorce: good\n",
    "twins.yaml": """
        model: {backbone: BACKBONE}
        tasks:
        - {name: shown, kind: classify, source: good}
        - glue/rte
        - shown.yml
        - glue/rt*
    """,
    "mine.py": "import mtnlp\nx = undefined\n",
    "many.yaml": """
        model: {backbone: BACKBONE, strategy: lora-per-tsk, max_lenght: 3}
        tasks:
        - glue/sst3
        - {name: x, kind: classify, source: good, fields: {text: txt, label: lable}}
        - {name: y, kind: classfy, source: good, sorce: no}
        - {name: z, kind: classify, source: nowhere.jsonl}
        - {name: w, kind: classify, source: label}
        - {use: glue/rte, template: t6}
        - task.yaml
        sampler: unifrom
        balancer: {name: equal, alpha: 3}
        train: {lr: fast, stepps: 3}
        evall: {}
    """,
    "shown.yml": "{name: shown, kind: classify, source: good}",
    "rows.txt": "a text\n",
    "rows.json": '{"text": "a"}\n{"text": }\n',
}


def recipe(backbone, *folders):
    tasks = [{"name": name, "kind": KINDS.get(name, "classify"), "source": name} for name in folders]
    return json.dumps({"model": {"backbone": backbone, "max_length": 32}, "tasks": tasks, **SETTINGS})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a space in its name: data in every state, a recipe for each (x.yaml for x), a run."""
    lab = tmp_path_factory.mktemp("a lab")
    backbone = str(stand_in("minilm", lab / "backbone"))
    stand_in("t5", lab / "seq2seq")
    for name, files in FOLDERS.items():
        (lab / name).mkdir()
        for file, content in files.items():
            (lab / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        (lab / f"{name}.yaml").write_text(recipe(backbone, name))
    (lab / "several.yaml").write_text(recipe(backbone, "tokens", "label", "json", "fields", "columns"))
    (lab / "run.yaml").write_text(recipe(backbone, "good", "pairs", "tags", "choices"))
    for name, content in FILES.items():
        text = content.replace("BACKBONE", backbone) if isinstance(content, str) else content
        (lab / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (lab / "a folder.yaml").mkdir()
    before = Path.cwd()
    os.chdir(lab)
    mtnlp.finetune("run.yaml", out="run")
    mtnlp.finetune("run.yaml", "train.steps=2", out="other")
    (lab / "other" / "model.safetensors").unlink()
    os.chdir(before)
    return lab


# command line -> exit code, and what the message says
CASES = {
    # Names, keys, options and columns: everything at once.
    "finetune many.yaml train.x=1 novalue": (
        2,
        "many.yaml:",
        "'novalue': an override is key=value",
        "train.x: no such key",
        "model.max_lenght: no such key. Did you mean 'max_length'",
        "train.lr: Input should be a valid number",
        "train.stepps: no such key. Did you mean 'steps'",
        "evall: no such key. Did you mean 'eval'",
        "model.strategy: No strategy is called 'lora-per-tsk'. Did you mean 'lora-per-task'",
        "sampler: No sampler is called 'unifrom'. Did you mean 'uniform'",
        "balancer.alpha: no such option",
        "tasks.0: No task is called 'glue/sst3'. Did you mean 'glue/sst2'",
        "x: good/train.jsonl: fields.text: no column 'txt' in the data. Did you mean 'text'",
        "x: good/train.jsonl: fields.label: no column 'lable' in the data. Did you mean 'label'",
        "tasks.2.y: no kind of task is called 'classfy'. Did you mean 'classify'",
        "tasks.2.sorce: no such key. Did you mean 'source'",
        "z: nowhere.jsonl: no such file",
        "w: label/test.jsonl:13: label 'c' (str) is not a label of this task. Known: a, b. In all 2 rows",
        "tasks.5.template: 't6' is neither a template's name nor a text",
        "task.yaml: sorce: no such key",
    ),
    "check many.yaml": (2, "balancer.alpha", "fields.text", "w: label/test.jsonl:13"),
    "finetune several.yaml": (
        2,
        "tokens: tokens/validation.jsonl:5: tags: 1 tags for 2 tokens",
        "label: label/test.jsonl:13: label 'c'",
        "json: json/validation.jsonl:13: not valid JSON in or after the field 'label'",
        "fields: fields/train.jsonl:13: label: no column 'label' in the row",
        "columns: columns/train.csv:3: 3 fields, but the header names 2; 'e' comes after",
    ),
    "check several.yaml": (2, "tokens/validation.jsonl:5", "label/test.jsonl:13", "json/validation.jsonl:13"),
    # Splits and rows: file, line and field.
    "finetune empty.yaml": (2, "found nothing"),
    "finetune good.yaml tasks.0.source=empty": (
        2,
        "good: empty/validation.jsonl: the validation split has no rows",
    ),
    "finetune blank.yaml": (2, "blank: blank/validation.jsonl: the validation split has no rows"),
    "finetune hidden.yaml": (2, "hidden/test.jsonl:1: label -1: the row has no answer", "under `splits`"),
    "finetune unlabelled.yaml": (2, "unlabelled/test.jsonl: fields.label: no column", "under `splits`"),
    "finetune hidden.yaml tasks.0.splits.train=train --dry-run": (0,),
    "finetune numbers.yaml": (2, "numbers/train.jsonl:13: score: expected a number, found 'high' (str)"),
    "finetune huge.yaml": (2, "huge/train.jsonl:13: score: expected a number, found 1e+39"),
    "finetune lists.yaml": (2, "lists/train.jsonl:13: text: expected text, found ['t'] (list)"),
    "finetune halves.yaml": (2, "halves/train.jsonl:13: text: found half of a surrogate pair"),
    "finetune bytes.yaml": (2, "bytes/validation.jsonl:13: byte 0xff after", "is not UTF-8"),
    "finetune nothing.yaml": (2, "nothing: nothing: no data files here"),
    "finetune templates.yaml model.backbone=seq2seq \"tasks.0.template='{{ choices[2] }}'\"": (
        2,
        "templates/validation.jsonl:7: templates: template 'default', prompt: `choices[2]` is undefined",
    ),
    "finetune good.yaml tasks.0.source=goood.jsonl": (2, "goood.jsonl: no such file. Did you mean"),
    "finetune good.yaml tasks.0.shots=99": (
        2,
        "good: shots is 99, and there are 0 demonstrations and 12 rows",
    ),
    "finetune good.yaml tasks.0.splits.test=tset": (2, "good: splits.test: the source has no split 'tset'"),
    # What does not go together.
    "finetune good.yaml eval.split=tset": (2, "eval.split: no task has a split 'tset'. Did you mean 'test'"),
    "finetune good.yaml 'sampler={name: weights, rates: {x: 1}}'": (2, "no value for good and unknown x"),
    "finetune good.yaml balancer=pcgrad": (
        2,
        "balancer: pcgrad merges gradients",
        "lora-per-task shares none",
    ),
    "finetune good.yaml 'model.strategy={name: lora, targets: qkv}'": (
        2,
        "no linear layer of backbone matches targets='qkv'",
        "encoder.layer.*.attention.self.query",
    ),
    "finetune good.yaml model.backbone=seq2seq model.strategy=heads": (
        2,
        "heads works with encoder backbones",
    ),
    "finetune good.yaml model.max_length=9999": (2, "model.max_length: backbone reads at most 512 tokens"),
    "finetune good.yaml tasks.0.kind=generate tasks.0.fields.target=label": (
        2,
        "must be written out, and backbone is",
    ),
    "finetune good.yaml model.backbone=./none": (2, "model.backbone='./none': no such folder"),
    "finetune good.yaml model.backbone=no/such": (
        2,
        "neither a folder here nor found on the model hub",
        "pip install",
    ),
    "finetune good.yaml model.backbone=minlm": (
        2,
        "neither a folder here nor found",
        "Did you mean 'minilm'",
    ),
    "finetune good.yaml model.backbone=good": (2, "model.backbone='good': transformers cannot read it"),
    "finetune good.yaml imports=[mine.py,no.py]": (2, "mine.py, line 2: NameError", "imports: no.py"),
    "finetune good.yaml tasks.0.metrics=acuracy": (2, "good: metrics: No metric is called 'acuracy'"),
    "finetune good.yaml train.steps=1 train.epochs=1": (2, "give steps or epochs, not both"),
    "check good.yaml 'model.strategy={name: lora-per-task, targets: qkv}'": (
        2,
        "lora-per-task: no linear layer of backbone matches targets='qkv'",
    ),
    "finetune good.yaml 'model.strategy={name: lora-per-task, rank: 33}'": (
        2,
        "lora-per-task: rank=33 is larger than the layer encoder.layer.0.attention.self.query (32 inputs,",
        "and than 11 other layers. Lower model.strategy.rank to 32 or less.",
    ),
    "check good.yaml 'model.strategy={name: mixlora, rank: 64}'": (2, "mixlora: rank=64 is larger than the"),
    "finetune twins.yaml": (
        2,
        "tasks: 2 tasks are called shown: tasks.0, tasks.2 (shown.yml). Leave out all but one, or give",
        "tasks: 2 tasks are called glue/rte: tasks.1 (glue/rte), tasks.3 (glue/rt*).",
        "{use: TASK, name: OTHER}",
    ),
    "check good.yaml balancer=pcgrad": (2, "balancer: pcgrad merges gradients"),
    # Recipes that cannot be read.
    "finetune broken.yaml": (2, "broken.yaml:", "line 2"),
    "finetune tabs.yaml": (2, "line 2: found character '\\t'"),
    "finetune twice.yaml": (2, "line 3: the key 'model' is given twice"),
    "finetune list.yaml": (2, "expected keys and values"),
    "finetune nulls.yaml": (2, "model: expected keys and values", "tasks: expected a list"),
    "finetune latin.yaml": (2, "not a UTF-8 text file"),
    "finetune 'a folder.yaml'": (2, "Is a directory"),
    "finetune quickstrt": (2, "no such recipe file. Did you mean 'quickstart'"),
    # Run folders.
    "finetune run.yaml --out run": (2, "run already holds a run.", "--resume", "--force", "--out"),
    "finetune run.yaml --out run --resume --force": (2, "give one of the two"),
    "finetune run.yaml train.lr=1 --out run --resume": (2, "run of another recipe; it differs in train.lr"),
    "finetune run.yaml --out none --resume": (2, "there is no run in none"),
    "finetune run.yaml --out good --force": (
        2,
        "good holds files but no run, and --force replaces runs only",
    ),
    "finetune run.yaml --out good": (2, "good holds files but no run"),
    "finetune run.yaml --out rows.txt/run": (2, "rows.txt/run cannot be made: rows.txt is no folder"),
    "finetune run.yaml --out /proc/run": (2, "/proc/run cannot be"),
    # predict and eval.
    "predict none --task x": (2, "none is not a run folder", "mtnlp finetune"),
    "predict rows.txt": (2, "rows.txt is not a run folder"),
    "predict other --task good": (2, "its training has not finished", "--resume"),
    "predict run": (2, "This run has 4 tasks; say which. Known: good, pairs, tags, choices"),
    "predict run --task god": (2, "No task of this run is called 'god'. Did you mean 'good'"),
    "predict run --task good --input good": (2, "good: Is a directory"),
    "predict run --task good --input none.txt": (2, "none.txt: No such file"),
    "predict run --task good --input rows.json": (2, "rows.json:2: not JSON"),
    "predict run --task choices --input rows.txt": (2, "rows.txt:1: choices (choose) needs more than a text"),
    "eval run": (2, "pairs: there is no 'test' split", "tags: there is no 'test' split"),
    "eval run --tasks tags": (2, "Choose with --split validation"),
    "eval run --split valid": (2, "there is no 'valid' split. Did you mean 'validation'"),
    "eval run --tasks good,pears": (2, "No task of this run is called 'pears'. Did you mean 'pairs'"),
    "eval run --tasks 'pears/*'": (2, "No task of this run is called 'pears/*'"),
    "eval run --tasks ,": (2, "tasks: names no task"),
    "eval run --limit 0": (2, "greater than or equal to 1"),
    "eval run --split validation --out good": (2, "--out good holds other files; name a new folder"),
    "eval run --suite gluee": (2, "No suite is called 'gluee'", "Did you mean 'glue'"),
    "eval run --suite pystdlib --tasks glue/*": (2, "glue/*"),
    "eval good --suite pystdlib": (2, "good is neither a run folder", "nor a model"),
    "eval no/model --suite pystdlib": (2, "no/model", "neither a folder here nor found on the model hub"),
    "eval run --suite pystdlib --compare": (2, "--compare: name two targets or more"),
    "eval run --suite pystdlib --adapter good": (2, "--adapter goes with a plain model"),
    "eval none": (2, "none is not a run folder"),
    # list, show and bare commands.
    "list taks": (2, "There is no list of 'taks'. Did you mean 'tasks'"),
    "show tsk glue/rte": (2, "Did you mean 'task'"),
    "show task glue/rtte": (2, "No task is called 'glue/rtte'. Did you mean 'glue/rte'"),
    "show task good.yaml": (2, "this is a recipe, not a task"),
    "show task shown.yml --split tset": (2, "there is no 'tset' split. Did you mean 'test'"),
    "": (2, "Usage: mtnlp", "finetune"),
    "finetune": (2, "Missing argument 'RECIPE'"),
    "finetune good.yaml --resme": (2, "No such option", "--resume"),
}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("command", CASES)
def test_a_mistake_is_told_and_nothing_is_written(command, lab, run, monkeypatch):
    code, *fragments = CASES[command]
    monkeypatch.chdir(lab)
    before = files(lab)

    result = run(*shlex.split(command))

    told = (result.err + result.out).replace(f"{lab}/", "")
    assert [part for part in fragments if part not in told] == [], told
    assert result.code == code, told
    assert files(lab) == before
    assert list(Path(os.environ["MTNLP_CACHE"]).rglob("*.part-*")) == []


# stdin of `predict run --task ...` -> exit code, and a part of the message or the answers
PREDICTED = [
    ("good", "", 0, ""),
    ("good", "\n \n", 0, ""),
    ("good", '{"text": "a", "more": 1}\n', 0, '"label"'),
    ("tags", "Ann ran\n", 0, '"tokens": ["Ann", "ran"]'),
    ("good", 'hello\n{"text": "a"}\n', 0, '"label"'),
    ("good", '{"text": "a"}\nhello\n', 2, "standard input:2: not JSON"),
    ("good", '{"text": "a"}\n[1]\n', 2, "standard input:2: expected an object"),
    (
        "good",
        '\n{"txt": "a"}\n',
        2,
        "standard input:2: text: no column 'text' in the row. Did you mean 'txt'",
    ),
    ("good", '{"text": "a"}\n{"text": null}\n', 2, "standard input:2: text: expected text, found None"),
    ("good", '{"text": "\\ud800"}\n', 2, "standard input:1: text: found half of a surrogate pair"),
    ("pairs", "one text\n", 2, "standard input:1: pairs needs two texts separated by one tab, found 1"),
    ("choices", '{"question": "a", "choices": []}\n', 2, "standard input:1: choices: the list is empty"),
    ("tags", '{"tokens": "Ann ran"}\n', 2, "standard input:1: tokens: expected a list"),
]


@pytest.mark.parametrize(("task", "text", "code", "fragment"), PREDICTED)
def test_rows_to_predict_are_answered_or_named(task, text, code, fragment, lab, run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))

    result = run("predict", lab / "run", "--task", task)

    assert result.code == code and fragment in result.out + result.err
    assert code or result.err == ""


def test_a_cache_that_cannot_be_written_is_named(lab, run, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.setenv("MTNLP_CACHE", str(lab / "rows.txt"))

    assert "rows.txt: tokens cannot be kept there" in run("finetune", "good.yaml").err


@pytest.mark.parametrize("what", ["rate", "loss"])
def test_a_loss_that_is_not_finite_stops_before_the_update(what, lab, run, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    overrides = ["train.lr=1e9", "train.steps=9"]
    if what == "loss":
        (tmp_path / "plant.py").write_text(PLANTED)
        overrides = [f"imports=['{tmp_path / 'plant.py'}']"]

    result = run("finetune", "run.yaml", *overrides, "--out", tmp_path / "run")

    assert result.code == 1
    assert "mtnlp: Step " in result.err and "Nothing was updated in this step. Lower train.lr" in result.err
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert f"Step {len([line for line in steps if line['kind'] == 'step']) + 1}: " in result.err
    if what == "loss":
        assert "Step 2: the loss of pairs is inf; its rows: " in result.err
        assert f"{lab}/pairs/train.jsonl:" in result.err


PLANTED = """
from mtnlp.heads.classify import Classify

was, calls = Classify.loss, []

def loss(self, hidden, mask, part):
    calls.append(part.task)
    found = was(self, hidden, mask, part)
    return found + float("inf") if part.task == 1 and calls.count(1) == 2 else found

Classify.loss = loss
"""


def start(lab, *args, **variables):
    """A command line in a process of its own, in the lab; it hears Ctrl-C, wherever the tests were started.

    What a shell starts in the background ignores SIGINT, and so would its children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # becomes the child's default
    try:
        return _process(lab, args, variables)
    finally:
        signal.signal(signal.SIGINT, before)


def _process(lab, args, variables):
    return subprocess.Popen(
        [sys.executable, "-m", "mtnlp", *map(str, args)],
        cwd=lab,
        env={**os.environ, "PYTHONPATH": str(Path(mtnlp.__file__).parents[1]), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.01)


STOPPER = """
import os, signal
from pathlib import Path
from mtnlp import balancers
from mtnlp.balancers.equal import Equal

@balancers.register("stopping")
class Stopping(Equal):
    steps = 0

    def observe(self, losses):
        Stopping.steps += 1
        if Stopping.steps == 3 and Path(__file__).with_name("stop").exists():
            os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_saves_the_step_and_resume_goes_on_bit_for_bit(lab, run, tmp_path, monkeypatch):
    from mtnlp.train.checkpoint import read_table

    monkeypatch.chdir(lab)
    (tmp_path / "stopper.py").write_text(STOPPER)
    command = [
        "finetune",
        "run.yaml",
        f"imports=['{tmp_path / 'stopper.py'}']",
        "balancer=stopping",
        "train.steps=6",
    ]
    assert run(*command, "--out", tmp_path / "whole").code == 0
    (tmp_path / "stop").touch()

    stopped = run(*command, "--out", tmp_path / "halves")
    (tmp_path / "stop").unlink()
    resumed = run(*command, "--out", tmp_path / "halves", "--resume")

    assert stopped.code == 130 and "Stopped after step 3 of 6; everything is saved." in stopped.out
    hint = stopped.err.split("To go on from the last checkpoint: ")[1].strip()
    assert shlex.split(hint)[1:] == [*map(str, command), "--out", str(tmp_path / "halves"), "--resume"]
    assert resumed.code == 0 and "Resumed after step 3 of 6." in resumed.out
    whole, halves = (read_table(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all((whole[name] == halves[name]).all() for name in whole)


def test_ctrl_c_twice_stops_at_once_and_while_tokenising_leaves_nothing(lab, tmp_path):
    cache = {"MTNLP_CACHE": str(tmp_path / "cache")}
    (tmp_path / "big").mkdir()
    for name in ("train", "validation"):
        (tmp_path / "big" / f"{name}.jsonl").write_text(jsonl(ROWS) * 1500)
    (tmp_path / "big.yaml").write_text(recipe(str(lab / "backbone"), "big"))

    process = start(lab, "finetune", tmp_path / "big.yaml", "--out", tmp_path / "run", **cache)
    wait_for(lambda: list(tmp_path.glob("cache/tokens/*.part-*")), process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130 and "Nothing was written yet; start again with: mtnlp finetune" in told
    assert list(tmp_path.glob("cache/tokens/*")) == [] and not (tmp_path / "run").exists()

    process = start(
        lab,
        "finetune",
        "good.yaml",
        "train.steps=99999",
        "eval.every=null",
        "--out",
        tmp_path / "run",
        **cache,
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130 and "--resume" in told and "Traceback" not in told


def test_a_reader_that_goes_away_ends_predict_quietly(lab):
    (lab / "long.txt").write_text("a text\n" * 3000)
    process = start(lab, "predict", "run", "--task", "good", "--input", "long.txt")
    first = process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read()
    process.wait(timeout=60)
    (lab / "long.txt").unlink()

    assert '"label"' in first and told == ""


def test_paths_with_spaces_and_letters_of_all_sorts_work(lab, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lab / "good", tmp_path / "meine dätá")
    text = recipe(str(lab / "backbone"), "good").replace('"source": "good"', '"source": "meine dätá"')
    (tmp_path / "mein rezept é.yaml").write_text(text, "utf-8")

    result = run("finetune", "mein rezept é.yaml", "--out", "läufe/der erste")

    assert result.code == 0
    hint = next(line for line in result.out.splitlines() if "| mtnlp predict" in line)
    words = shlex.split(hint)
    assert words == ["echo", "text 0", "|", "mtnlp", "predict", "läufe/der erste", "--task", "good"]
    monkeypatch.setattr("sys.stdin", io.StringIO(words[1] + "\n"))
    assert json.loads(run(*words[4:]).out)["label"] in ("a", "b")
