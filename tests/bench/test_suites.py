"""Suites: the shipped ones are whole, one's own are checked to the last key, and filters leave no hole."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp import tasks as registered
from mtnlp.bench import suites
from mtnlp.bench.groups import Group
from mtnlp.errors import MtnlpError, RecipeError
from mtnlp.tasks import pystdlib

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"
NEEDS_SHARED = ("instructions", "shared-core")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
SHIPPED = [
    pytest.param(name, marks=[needs_shared] if name in NEEDS_SHARED else []) for name in suites.names()
]

OWN = """
version: 3
description: mine
split: validation
tasks:
  - glue/rte
  - choice/arc-*
  - {task: glue/mrpc, metric: [accuracy, f1], chance: 0.4, reference: 0.9, templates: [t5, question],
     shots: 2, request: options, limit: 7, normalise: token, split: test}
  - {use: glue/sst2, name: films}
groups:
  all: {tasks: "*"}
  pairs: {tasks: [glue/mrpc, 'glue/rt?'], mean: micro}
"""
ROWS = "".join(json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(4))


def loaded(name, **options):
    return suites.load(name, root=SHARED if name in NEEDS_SHARED else None, **options)


def written(folder, text, name="own.yaml"):
    (folder / name).write_text(text)
    return folder / name


def task_folder(path, **meta):
    path.mkdir(parents=True)
    about = {"name": path.name, "task_type": "classification", "label_names": ["no", "yes"], **meta}
    (path / "meta.json").write_text(json.dumps(about))
    (path / "test.jsonl").write_text(ROWS)


def problems_of(source, **options):
    with pytest.raises(RecipeError) as caught:
        suites.load(source, **options)
    return "\n".join(caught.value.problems)


def specs(suite):
    return {entry.spec.name: entry for entry in suite.entries}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_names_tasks_that_exist_and_metrics_that_fit_without_a_network(name, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)

    suite = loaded(name)

    assert suite.name == name and suite.version >= 1 and suite.description and not suite.notes
    known = specs(suite)
    assert len(known) == len(suite.entries) > 4
    for entry in suite.entries:
        assert [metrics.get(metric, entry.spec.kind) for metric in entry.spec.metrics]
        assert entry.metric == entry.spec.metrics[0]
        assert name in NEEDS_SHARED or entry.spec.name in registered.names()
    assert suite.groups and all(group.tasks and set(group.tasks) <= set(known) for group in suite.groups)
    assert set(suite.groups[0].tasks) == set(known)  # the first one is over the whole suite


def uniform(metric, kind, truth, labels, rng):
    """The mean score of guesses that take every label as often, whatever the rows say."""
    score = metrics.get(metric, kind)
    names = [str(i) for i in range(labels)]
    return np.mean([score(rng.integers(0, labels, len(truth)), truth, names) for _ in range(200)])


def truth(*counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("suite", "task", "rows"),
    [
        ("glue", "glue/mrpc", truth(129, 279)),
        ("glue", "glue/qqp", truth(632, 368)),
        ("glue", "glue/mnli", truth(1000, 900, 1100)),
        ("glue", "glue/cola", truth(300, 700)),
        ("superglue", "superglue/multirc", truth(560, 440)),
        ("superglue", "superglue/cb", truth(23, 28, 5)),
        ("box", "tweets/irony", truth(473, 311)),
        ("box", "intent/banking77", truth(*[40] * 77)),
        ("box", "sentiment/sst5", truth(279, 633, 389, 510, 399)),
    ],
)
def test_a_chance_level_is_what_guesses_score(suite, task, rows):
    entry = specs(suites.load(suite))[task]

    guessed = uniform(entry.metric, entry.spec.kind, rows, rows.max() + 1, np.random.default_rng(1))

    assert entry.chance == pytest.approx(guessed, abs=0.012)


def test_the_chance_levels_of_pystdlib_are_its_numbers_of_answers():
    found = {name.split("/")[1]: entry.chance for name, entry in specs(suites.load("pystdlib")).items()}

    assert found.pop("module") == pytest.approx(1 / pystdlib.PACKAGES, abs=1e-4)
    assert found == {"match": 1 / 2, "choose": 1 / pystdlib.CHOICES, "params": 0, "length": 0}


@needs_shared
def test_the_chance_levels_of_shared_core_are_those_of_its_rows():
    rng = np.random.default_rng(2)
    checked = 0
    for entry in loaded("shared-core").entries:
        rows = Path(entry.spec.source) / "test.jsonl"
        if entry.spec.kind in ("classify", "pair", "ordinal"):
            answers = [json.loads(line)["label"] for line in rows.open(encoding="utf-8")]
            guessed = uniform(entry.metric, entry.spec.kind, np.array(answers), len(entry.spec.labels), rng)
        elif entry.spec.kind == "choose":
            guessed = np.mean([1 / len(json.loads(line)["choices"]) for line in rows.open(encoding="utf-8")])
        else:
            continue
        assert entry.chance == pytest.approx(guessed, abs=0.015), entry.spec.name
        checked += 1
    assert checked > 20


def test_tasks_are_named_as_in_a_recipe_and_options_are_kept(tmp_path):
    suite = suites.load(written(tmp_path, OWN))

    known = specs(suite)
    assert (suite.name, suite.version, suite.description) == ("own", 3, "mine")
    assert list(known) == ["glue/rte", "choice/arc-challenge", "choice/arc-easy", "glue/mrpc", "films"]
    assert {entry.split for name, entry in known.items() if name != "glue/mrpc"} == {"validation"}
    assert known["glue/rte"] == suites.Entry(registered.get("glue/rte"), "validation", "accuracy", 0.5)
    assert known["glue/mrpc"] == suites.Entry(
        registered.get("glue/mrpc").replace(metrics=("accuracy", "f1")), "test", "accuracy", 0.4, 0.9,
        ("t5", "question"), 2, "options", 7, "token",
    )  # fmt: skip
    assert suite.groups == (
        Group("all", tuple(known), "macro"),
        Group("pairs", ("glue/rte", "glue/mrpc"), "micro"),
    )


def test_likelihoods_have_metrics_of_their_own_and_columns_are_kept(tmp_path):
    text = """
version: 1
split: validation
tasks:
  - {task: glue/cola, request: text, slices: source, cluster: author}
  - {task: glue/rte, request: likelihood, metric: [bits_per_byte, perplexity], slices: [a, b]}
"""

    first, second = suites.load(written(tmp_path, text)).entries

    assert (first.kind, first.metric, first.spec.metrics[-1]) == ("text", "perplexity", "bits_per_byte")
    assert (second.kind, second.spec.metrics) == ("text", ("bits_per_byte", "perplexity"))
    assert (first.slices, first.cluster, second.slices, second.cluster) == (
        ("source",),
        "author",
        ("a", "b"),
        "",
    )


def test_folders_and_files_are_found_from_the_root(tmp_path):
    task_folder(tmp_path / "data" / "one", floor={"chance_accuracy": 0.4})
    task_folder(tmp_path / "data" / "sub" / "two")
    (tmp_path / "data" / "three.yaml").write_text("{use: similarity/paws, name: three}")
    path = written(tmp_path, "version: 1\nroot: data\ntasks: [one, sub/*, three.yaml]\n")
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "elsewhere", path.read_text())

    own, given = (
        suites.load(path),
        suites.load(tmp_path / "elsewhere/own.yaml", root=tmp_path / "data", split="train"),
    )

    assert list(specs(own)) == ["one", "two", "three"] == list(specs(given))
    assert [entry.chance for entry in own.entries] == [0.4, 0.5, 0.5]
    assert "does not exist. Say where" in problems_of(tmp_path / "elsewhere/own.yaml")


def test_split_and_limit_go_before_what_the_file_says(tmp_path):
    path = written(tmp_path, OWN)

    suite = suites.load(path, split="validation", limit=3)

    assert {(entry.split, entry.limit) for entry in suite.entries} == {("validation", 3)}
    found = problems_of(path, split="test")
    assert "glue/rte: split: none is called 'test'. Known: train, validation." in found
    assert "mrpc" not in found and "arc" not in found
    alone = suites.load("glue", tasks="glue/mnli", split="validation_mismatched")
    assert [entry.split for entry in alone.entries] == ["validation_mismatched"]


def test_everything_that_is_wrong_is_said_at_once_with_what_was_meant(tmp_path):
    found = problems_of(
        written(
            tmp_path,
            """
versoin: 1
split: validation
tasks:
  - glue/rtee
  - {task: glue/cola, metric: rouge_l, chnace: 0.5, templates: t6}
  - {task: glue/stsb, request: options, normalise: pmi}
  - {task: summary/xsum, request: head, shots: -1, limit: many}
  - {task: glue/qnli, split: tset}
  - {use: glue/sst2, name: films, metircs: [f1]}
  - 7
  - {task: glue/wnli, request: embed}
  - {task: choice/race, request: text}
  - {task: glue/mrpc, request: text, metric: f1, templates: t5, shots: 2, slices: 3}
  - {task: choice/arc-easy, request: embed, normalise: pmi}
groups:
  one: {tasks: "*", mean: median}
  two: [glue/cola]
""",
        )
    )

    for part in (
        "version: missing",
        "versoin: no such key. Did you mean 'version'",
        "tasks.0: No task is called 'glue/rtee'. Did you mean 'glue/rte'",
        "tasks.1 (glue/cola): metric: The metric rouge_l does not score classify tasks",
        "tasks.1.chnace: no such key. Did you mean 'chance'",
        "tasks.1 (glue/cola): templates: none is called 't6'",
        "tasks.2 (glue/stsb): request: a regress task has no options",
        "tasks.2 (glue/stsb): normalise: a regress task has no options",
        "tasks.3 (summary/xsum): request: no head answers with a text",
        "tasks.3.shots: Input should be greater than or equal to 0 (got -1)",
        "tasks.3.limit: Input should be a valid integer (got 'many')",
        "glue/qnli: split: none is called 'tset'",
        "tasks.5.metircs: no such key",
        "tasks.6: expected keys and values (got 7)",
        "tasks.7 (glue/wnli): request: vectors answer regress and choose tasks, by similarity, not pair",
        "tasks.8 (choice/race): request: a choose task has no text by itself",
        "tasks.9 (glue/mrpc): metric: The metric f1 does not score text tasks",
        "tasks.9 (glue/mrpc): templates: request: text has no prompt",
        "tasks.9 (glue/mrpc): shots: request: text has no prompt",
        "tasks.9.slices: expected a list",
        "tasks.10 (choice/arc-easy): normalise: no options are compared by request: embed",
        "groups.one.mean: Input should be 'micro', 'macro', 'glue' or 'normalised' (got 'median')",
        "groups.two: expected keys and values",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{version: 1, tasks: []}", "tasks: name at least one"),
        ("{version: 1, tasks: glue/rte}", r"tasks: expected a list, as in \[a, b\]"),
        ("{version: 1, tasks: [glue/mrpc, {use: glue/mrpc}]}", "2 tasks are called glue/mrpc: tasks.0"),
        ("{version: 1, tasks: [glue/mrpc], groups: {g: {tasks: glue/mrcp}}}", "groups.g: .*Did you mean"),
        ("{version: 1, tasks: [glue/mrpc], groups: {g: {tasks: []}}}", "groups.g: tasks: name at least one"),
        (
            "{version: 1, tasks: [choice/race], groups: {g: {tasks: '*', mean: normalised}}}",
            "groups.g: choice/race: a normalised mean needs its chance level",
        ),
        (
            "{version: 1, tasks: [{task: choice/race, chance: 1}], "
            "groups: {g: {tasks: '*', mean: normalised}}}",
            "chance and reference are both 1",
        ),
        ("{model: minilm, tasks: [glue/mrpc]}", "this is a recipe"),
        ("[glue/mrpc]", "expected keys and values"),
        ("", "found nothing"),
    ],
)
def test_a_suite_that_means_nothing_is_refused(tmp_path, text, message):
    with pytest.raises(MtnlpError, match=message):
        suites.load(written(tmp_path, text))


def test_an_unknown_suite_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(MtnlpError, match=r"No suite is called 'gleu'.*Did you mean 'glue'"):
        suites.load("gleu")
    with pytest.raises(MtnlpError, match=r"a suite is a name, a \.yaml file, or a folder"):
        suites.load(written(tmp_path, "", "own.txt"))


def test_a_shipped_name_means_the_same_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task_folder(tmp_path / "glue" / "mine")

    assert "glue/rte" in specs(suites.load("glue"))
    assert list(specs(suites.load("./glue"))) == ["mine"]


def test_a_filter_keeps_whole_groups_shrinks_others_and_names_those_it_empties():
    suite = suites.load("glue", tasks="glue/mrpc, glue/q*")

    assert list(specs(suite)) == ["glue/mrpc", "glue/qqp", "glue/qnli"]
    left = {group.name: group.tasks for group in suite.groups}
    assert left["paraphrase"] == ("glue/mrpc", "glue/qqp") and left["inference"] == ("glue/qnli",)
    assert "single-sentence" not in left and all(left.values())
    assert "group single-sentence: left out, none of its tasks is asked for." in suite.notes
    assert "group paraphrase: over 2 of its 3 tasks." in suite.notes
    assert suites.load("glue", tasks=["*"]) == suites.load("glue")
    assert problems_of("glue", tasks="glue/mrcp,rte").count("no task of this suite is called") == 2
    assert "Did you mean 'glue/mrpc'" in problems_of("glue", tasks=["glue/mrcp"])
    assert "give some as a,b" in problems_of("glue", tasks=" ,")


def test_every_folder_with_a_task_is_one_and_a_kind_that_is_not_there_is_named(tmp_path):
    task_folder(tmp_path / "two")
    task_folder(tmp_path / "one", metrics=["macro_f1"], floor={"chance_accuracy": 0.5})
    task_folder(tmp_path / "trees", task_type="dependency_parsing")
    (tmp_path / "no-task").mkdir()

    suite = suites.load(tmp_path, split="train", limit=2)

    assert list(specs(suite)) == ["one", "two"] and suite.path == tmp_path and suite.groups == ()
    assert suite.entries[0] == suites.Entry(suite.entries[0].spec, "train", "macro_f1", None, limit=2)
    assert suite.entries[1].chance == 0.5 and suites.load(tmp_path).entries[0].split == "test"
    assert len(suite.notes) == 1 and "trees: dependency_parsing" in suite.notes[0]
    assert list(specs(suites.load(tmp_path / "two"))) == ["two"]
    assert "found none" in problems_of(tmp_path / "no-task")


def test_all_folders_that_cannot_be_read_are_named(tmp_path):
    task_folder(tmp_path / "one")
    task_folder(tmp_path / "again", name="one")
    task_folder(tmp_path / "odd", task_type="clasification")
    task_folder(tmp_path / "broken")
    (tmp_path / "broken" / "meta.json").write_text("{")

    found = problems_of(tmp_path)

    assert "2 tasks are called one: again, one" in found
    assert "Did you mean 'classification'" in found and "broken/meta.json: not JSON" in found


@needs_shared
def test_the_shared_collection_is_a_suite_with_all_its_kinds():
    suite = suites.load(SHARED)

    folders = [json.loads(path.read_text("utf-8")) for path in SHARED.glob("*/meta.json")]
    kinds = Counter(meta["task_type"] for meta in folders)
    assert len(suite.entries) + len(suite.notes) == len(folders) + kinds["intent_and_slots"]


def test_loading_a_suite_loads_no_torch():
    code = "import sys; from mtnlp.bench import suites; suites.load('glue'); print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
