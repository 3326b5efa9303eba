"""The maths of affinities against independent ways to the same numbers; whole measurements of tiny runs."""

from __future__ import annotations

import io
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest
import tiny_tasks
from rich.console import Console
from safetensors.numpy import load_file
from typer.main import get_command

from mtnlp import config
from mtnlp.cli.main import app
from mtnlp.compare import affinity as maths
from mtnlp.compare.affinity import Grouping, Matrix
from mtnlp.compare.affinity_found import Affinities
from mtnlp.compare.affinity_page import page
from mtnlp.errors import MtnlpError
from mtnlp.runs import affinity, publish, train, vectors
from mtnlp.runs.folder import RunFolder
from mtnlp.train.loop import steps

UNKNOWN = float("nan")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


# The maths.


def test_affinity_of_two_parabolas_is_what_a_pencil_gives():
    # L_1 = theta^2 and L_2 = (theta - 2)^2 at theta = 1, lr = 1/4: gradients 2 and -2, so theta goes to 1/2
    # for task 1 and to 3/2 for task 2.
    before, after = np.array([1.0, 1.0]), np.array([[0.25, 2.25], [2.25, 0.25]])

    np.testing.assert_array_equal(maths.lookahead(before, after), [[0.75, -1.25], [-1.25, 0.75]])
    assert np.isnan(maths.lookahead(np.array([0.0, 1.0]), after)[:, 0]).all()


def test_cosines_of_dot_products_and_none_of_a_zero_gradient():
    rows = np.array([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0]])

    found = maths.cosines(rows @ rows.T)

    np.testing.assert_allclose(found[:3, :3], [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-15)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()


def test_averages_are_over_what_was_measured():
    stack = np.random.default_rng(1).normal(size=(6, 3, 3))
    stack[:5, 0, 1], stack[:, 2, 0] = UNKNOWN, UNKNOWN

    found = maths.averaged(list(stack))

    for i, j in product(range(3), repeat=2):
        own = [value for value in stack[:, i, j] if value == value]
        mean = np.mean(own) if own else UNKNOWN
        error = np.std(own, ddof=1) / len(own) ** 0.5 if len(own) > 1 else UNKNOWN
        np.testing.assert_allclose([found.mean[i, j], found.error[i, j]], [mean, error])


def adapter(draw, layers, rank):
    return {f"layer{i}": (draw.normal(size=(rank, 7)), draw.normal(size=(rank, 5))) for i in layers}


def test_task_vectors_are_compared_as_if_they_had_been_multiplied_out():
    draw = np.random.default_rng(2)
    made = [adapter(draw, (0, 1), 2), adapter(draw, (1, 2), 3)]
    turn = draw.normal(size=(2, 2))  # B G and G^-1 A are other factors of the same update
    made.append({
        name: (-3 * np.linalg.inv(turn) @ down, turn.T @ up) for name, (down, up) in made[0].items()
    })  # fmt: skip
    made.append({"layer0": (draw.normal(size=(2, 7)), np.zeros((2, 5)))})
    none = {f"layer{i}": np.zeros((5, 7)) for i in range(3)}
    wide = [{**none, **{name: up.T @ down for name, (down, up) in one.items()}} for one in made]
    flat = np.array([np.concatenate([one[name].ravel() for name in none]) for one in wide])
    norms = np.linalg.norm(flat[:3], axis=1)

    found = maths.similarity(made)

    np.testing.assert_allclose(found[:3, :3], flat[:3] @ flat[:3].T / np.outer(norms, norms), atol=1e-12)
    assert found[0, 2] == pytest.approx(-1) and np.isnan(found[3]).all()


def worth(table, labels):
    """Of an assignment of tasks to groups: the mean over tasks of what the others of its group do to it."""
    found = []
    for j, own in enumerate(labels):
        mates = [table[i][j] for i, other in enumerate(labels) if other == own and i != j]
        found.append(sum(mates) / len(mates) if mates else 0.0)
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_the_best_of_all_assignments_with_tasks_that_nobody_helps_apart(seed):
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(5, 5)).round(1)
    lonely = {j for j in range(5) if all(table[i, j] <= 0 for i in range(5) if i != j)}

    for most in (1, 2, 3, None):
        apart = lonely if most is None or len(lonely) + (len(lonely) < 5) <= most else set()
        allowed = [
            labels
            for labels in product(range(most or 5), repeat=5)
            if all(labels.count(labels[j]) == 1 for j in apart)
        ]
        found = maths.grouped(table, most)

        assert sorted(task for group in found.groups for task in group) == list(range(5))
        assert len(found.groups) <= (most or 5) and set(found.alone) == apart and found.exact
        labels = [next(k for k, group in enumerate(found.groups) if j in group) for j in range(5)]
        best = max(worth(table, one) for one in allowed)
        assert found.score == pytest.approx(worth(table, labels)) == pytest.approx(best)
        fewest = min(len(set(one)) for one in allowed if worth(table, one) > best - 1e-9)
        assert len(found.groups) == fewest


def test_planted_groups_of_many_tasks_are_found_and_joining_never_beats_looking_at_all(monkeypatch):
    planted = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    draw = np.random.default_rng(3)
    table = np.where(planted[:, None] == planted, 1.0, -0.2) + draw.normal(size=(12, 12)) * 0.1

    found = maths.grouped(table, 3)

    assert found.groups == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)) and not found.exact
    tables = draw.normal(size=(20, 7, 7))
    best = np.array([maths.grouped(table, 3).score for table in tables])
    monkeypatch.setattr(maths, "EXACT", 0)
    joined = np.array([maths.grouped(table, 3).score for table in tables])
    assert (joined <= best + 1e-12).all() and (joined > 0.9 * best).mean() > 0.8


# The page.


class Reader(HTMLParser):
    """What is open, and every tag with its attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_needs_nothing_else_and_shows_every_pair():
    mean = np.array([[1.0, -0.5, UNKNOWN], [-0.5, 1.0, 0.25], [UNKNOWN, 0.25, 1.0]])
    small = Matrix(mean * 1e-4, np.abs(mean) * 1e-5)
    found = Affinities(
        "mine", ("a<b>", "b & c", "c"), "lora", 50, 10, 16, Matrix(mean, small.error), small,
        Grouping(((0,), (1, 2)), 1e-5, (0,), True), ("mtnlp finetune x", "mtnlp compare y 'tasks=[\"<\"]'"),
        vectors=(("b & c", "c"), np.array([[1.0, 0.5], [0.5, 1.0]])), notes=("a note",),
    )  # fmt: skip
    text, reader = page(found), Reader()

    reader.feed(text)

    assert reader.open == [] and "<script" not in text and not re.search(r"https?:|src=|url\(", text)
    kinds = [attrs["class"].split()[1] for tag, attrs in reader.tags if tag == "rect"]
    assert [kinds.count(kind) for kind in ("helps", "hurts", "none")] == [2 + 2 + 2, 2 + 2, 5 + 5 + 2]
    shown = "".join(reader.text)
    assert "a<b>, b & c: -0.50 ± 0.00" in shown and "in units of 1e-04" in shown and "a note" in shown
    assert "nobody helps a<b>" in shown and "mtnlp compare y 'tasks=[\"<\"]'" in shown
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["cosine"]["mean"][0][2] is None


# Whole measurements.


def planted(name, *, flipped):
    """Two of these, one of them flipped, have the same texts and opposite labels."""
    labels = ("b", "a") if flipped else ("a", "b")
    rows = [{"text": word, "label": label} for word, label in zip(("market", "river"), labels)] * 8
    return {"name": name, "kind": "classify", "labels": ["a", "b"], "source": {"train": rows}}


LEFT, RIGHT = planted("own/left", flipped=False), planted("own/right", flipped=True)
RELATED = planted("own/related", flipped=False)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A text model that has learned to answer a or b, and not when which."""
    folder = tiny_tasks.backbone("t5", tmp_path_factory.mktemp("t5"))
    made = {"strategy": "full", "steps": 100, "examples_per_step": 16, "lr": 1e-2}
    run = tiny_tasks.build(tiny_tasks.recipe(folder, [LEFT, RIGHT], **made))
    for _ in steps(run):
        pass
    run.model.backbone.net.save_pretrained(folder)
    return folder


def measured(data, out, **more):
    console = Console(file=io.StringIO(), width=200)
    found = affinity.affinity(data, out=out, console=console, **more)
    found.print(console)
    return found, console.file.getvalue()


def test_a_planted_conflict_has_a_negative_cosine_and_the_groups_separate_it(answers, tmp_path):
    tasks, slot = [LEFT, RIGHT, RELATED], {"name": "lora-per-task", "rank": 4}
    made = {"lr": 3e-3, "schedule": "constant", "steps": 300, "examples_per_step": 24}
    data = {**tiny_tasks.recipe(answers, tasks, strategy=slot, **made), "name": "planted"}
    (tmp_path / "planted.json").write_text(json.dumps(data))

    found, said = measured(tmp_path / "planted.json", tmp_path / "out", steps=20)

    cosine, lookahead = found.cosine.mean, found.affinity.mean
    assert cosine[0, 1] < -0.5 and cosine[1, 2] < -0.5 and cosine[0, 2] > 0.9
    assert lookahead[0, 1] < 0 and lookahead[1, 0] < 0 and lookahead[0, 2] > 0
    assert found.groups == [["own/left", "own/related"], ["own/right"]] and found.measured == 10
    assert found.strategy == "lora" and "lora-per-task shares nothing between tasks" in said
    assert "nobody helps own/right" in said
    told = json.loads((tmp_path / "out" / "affinity.json").read_text("utf-8"))
    assert told["cosine"]["mean"][0][1] == cosine[0, 1] and len(told["groups"]) == 2
    assert (tmp_path / "out" / "affinity.html").read_text("utf-8").count("<svg") == 2

    for command, (tasks, words) in zip(
        ("compare", "finetune"), zip(found.groups, map(shlex.split, found.commands))
    ):
        assert words[:2] == ["mtnlp", command] and words[2] in said
        recipe = config.load(words[2])
        assert [task["name"] for task in recipe.tasks] == tasks and recipe.model.strategy.name == "lora"
        assert recipe.model.strategy.options == {"rank": 4} and recipe.train.steps == 300


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("minilm"))


def entry(folder, name):
    """A task whose rows lie in a file, so that its entry is short."""
    made = tiny_tasks.task(name, "classify")
    path = folder / f"{name.replace('/', '-')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made["source"]["train"]))
    return {**made, "source": {"train": path.name}}


def test_command_lines_name_recipe_overrides_tasks_and_the_strategy_that_was_measured(encoder, tmp_path):
    tasks = [entry(tmp_path, f"own/{name}") for name in ("mood", "topic", "tone")]
    data = tiny_tasks.recipe(encoder, tasks, strategy={"name": "adapters", "reduction": 8})
    path = tmp_path / "three.json"
    path.write_text(json.dumps(data))

    given = ["train.lr=2e-3", f"tasks={json.dumps(tasks[:2])}"]
    found, _ = measured(path, tmp_path / "out", overrides=given, steps=3, groups=1)

    (line,) = found.commands
    assert found.groups == [["own/mood", "own/topic"]] and len(list((tmp_path / "out").iterdir())) == 2
    command, *rest = shlex.split(line)[1:]
    params = get_command(app).commands[command].make_context(command, rest).params
    recipe = config.load(params["recipe"], params["overrides"])
    assert [task["name"] for task in recipe.tasks] == ["own/mood", "own/topic"]
    assert recipe.model.strategy == config.Slot("lora") and recipe.train.lr == 2e-3
    assert str(params["out"]) == "runs/three-group-1"


def test_one_measurement_has_no_errors_and_less_than_one_is_refused(encoder, tmp_path):
    tasks = [
        tiny_tasks.task(f"own/{name}", kind) for name, kind in (("mood", "classify"), ("stars", "regress"))
    ]
    data = tiny_tasks.recipe(encoder, tasks, strategy="full")

    found, said = measured(data, tmp_path / "out", steps=2)

    assert (
        found.measured == 1 and np.isnan(found.affinity.error).all() and "standard errors up to" not in said
    )
    with pytest.raises(MtnlpError, match="--steps: expected at least 2, got 1"):
        measured(data, tmp_path / "out", steps=1)


def trained(folder, backbone, *tasks, strategy="lora", **options):
    slot = {"name": strategy, **options} if options else strategy
    data = tiny_tasks.recipe(backbone, tasks, strategy=slot, steps=3, lr=1e-2)
    train.finetune({**data, "eval": {"keep": "last"}}, out=folder, console=Console(file=io.StringIO()))
    return folder


def product_of(folder, task):
    """Every layer's whole update, out of the adapter in peft's format."""
    tensors = load_file(RunFolder(folder).adapters / task.replace("/", "--") / "adapter_model.safetensors")
    names = sorted(name for name in tensors if "lora_A" in name)
    return np.concatenate([(tensors[n.replace("lora_A", "lora_B")] @ tensors[n]).ravel() for n in names])


def test_task_vectors_of_runs_and_bundles_are_those_of_their_adapters(encoder, tmp_path):
    mood, topic = (tiny_tasks.task(name, "classify") for name in ("own/mood", "own/topic"))
    alone = trained(tmp_path / "alone", encoder, mood, rank=2)
    both = trained(tmp_path / "both", encoder, mood, topic, strategy="lora-per-task")
    publish.push(alone, str(tmp_path / "bundle"))
    flat = np.array(
        [product_of(alone, "own/mood"), product_of(both, "own/mood"), product_of(both, "own/topic")]
    )
    flat = flat.astype(np.float64)
    norms = np.linalg.norm(flat, axis=1)

    names, found = vectors.similarities([str(alone), str(both)])
    _, published = vectors.similarities([str(tmp_path / "bundle"), str(both)], backbone=encoder)

    assert names == (f"own/mood ({alone})", f"own/mood ({both})", "own/topic")
    np.testing.assert_array_equal(published, found)
    np.testing.assert_allclose(found, flat @ flat.T / np.outer(norms, norms), atol=1e-6)
    assert abs(found[1, 2]) > 1e-3


def test_runs_that_have_no_vector_of_a_single_task_are_refused(encoder, answers, tmp_path):
    mood, topic = (tiny_tasks.task(name, "classify") for name in ("own/mood", "own/topic"))
    one = str(trained(tmp_path / "one", encoder, mood))
    refused = {
        "trained one lora for 2 tasks together": trained(tmp_path / "both", encoder, mood, topic),
        "was trained with full, which leaves no LoRA": trained(
            tmp_path / "full", encoder, topic, strategy="full"
        ),
        "on another backbone": trained(tmp_path / "t5", answers, topic),
        "holds no run|no recipe.yaml|neither|not a run": tmp_path / "nothing",
    }

    for message, folder in refused.items():
        with pytest.raises(MtnlpError, match=message):
            vectors.similarities([one, str(folder)])
    with pytest.raises(MtnlpError, match="adapters of at least two tasks, found 1"):
        vectors.similarities([one, one])
