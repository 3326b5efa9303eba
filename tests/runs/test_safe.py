"""Safe mode on tiny runs: what is chosen, what ships, what is looked at, and what an interruption costs."""

from __future__ import annotations

import io
import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import tiny_tasks
import torch
from rich.console import Console
from transformers import AutoModel
from typer.testing import CliRunner

import mtnlp
from mtnlp import strict_yaml
from mtnlp.cli.main import app
from mtnlp.compare import choice
from mtnlp.errors import MtnlpError
from mtnlp.runs import asked, publish, report, safe, train
from mtnlp.runs.folder import RunFolder
from mtnlp.train.callbacks import MetricsWriter
from mtnlp.train.checkpoint import read_table

RELATED = ("own/wet", "own/damp")
WAYS = {"own/topic": 0.0, "own/rating": 1.0, "own/likeness": 0.25, "own/pair": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTNLP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {kind: tiny_tasks.backbone(kind, folder / kind) for kind in ("minilm", "t5")}


def words(name, labels, *, flipped=False):
    """A task that tells two words apart."""
    label = dict(zip(("market", "river") if flipped else ("river", "market"), labels, strict=True))
    source = {}
    for split, n in {"train": 60, "validation": 40, "test": 40}.items():
        draw = random.Random(split)
        drawn = [draw.choice(("river", "market")) for _ in range(n)]
        source[split] = [{"text": word, "label": label[word]} for word in drawn]
    return {"name": name, "kind": "classify", "labels": list(labels), "source": source}


def recipe(backbone, tasks, *, strategy="lora", **train):
    options = {"name": strategy, "rank": 4, "alpha": 16} if strategy == "lora" else strategy
    made = tiny_tasks.recipe(
        backbone, tasks, **{"strategy": options, "steps": 3, "examples_per_step": 6, **train}
    )
    return {**made, "name": "tiny", "safe": True, "eval": {"keep": "last"}}


def small(backbone, **train):
    """Four tasks that an encoder does with a head for each."""
    kinds = {"topic": "classify", "rating": "regress", "likeness": "regress", "pair": "pair"}
    tasks = [tiny_tasks.task(f"own/{name}", kind) for name, kind in kinds.items()]
    return recipe(backbone, tasks, **{"lr": 2e-2, "steps": 4, "examples_per_step": 8, **train})


def run(data, out, **more):
    """The table, and what was said."""
    console = Console(file=io.StringIO(), width=200)
    found = safe.finetune(data, out=out, console=console, **more)
    return found, console.file.getvalue()


def kept(out):
    return json.loads((out / "safe.json").read_text("utf-8"))


def test_of_a_planted_conflict_the_hurt_task_ships_by_itself_and_no_test_row_is_looked_at(
    backbones, tmp_path, monkeypatch
):
    tasks = [words("own/left", ("no", "yes")), words("own/right", ("no", "yes"), flipped=True)]
    tasks += [words(name, ("dry", name.partition("/")[2])) for name in RELATED]
    data = recipe(backbones["t5"], tasks, steps=40, examples_per_step=16, lr=1e-2)
    data["model"]["strategy"] |= {"rank": 8, "alpha": 32}
    data["balancer"] = {"name": "fixed", "weights": {"own/right": 0.1}}
    seen: dict[bool, set[str]] = {False: set(), True: set()}  # whether all is chosen -> splits

    def spied(place, name, split_of):
        real = getattr(place, name)

        def read(*args, **more):
            seen[(tmp_path / "safe.json").exists()].add(split_of(*args))
            return real(*args, **more)

        monkeypatch.setattr(place, name, read)

    spied(train, "questions_of", lambda data, split: split)
    spied(asked, "read", lambda data, entry: entry.split)

    found, said = run(data, tmp_path)

    told = kept(tmp_path)
    ways = {one["task"]: one["ships"] for one in told["choices"]}
    final = {one["task"]: one for one in told["final"]}
    assert ways["own/right"] in ("private", "gated") and {ways[name] for name in RELATED} == {"shared"}
    assert final["own/right"]["single"] > 0.9 and final["own/right"]["joint"] < 0.6
    assert all(one["high"] >= 0 and one["split"] == "test" for one in final.values())
    assert {one["split"] for one in told["choices"]} == {"validation"} and seen == {
        False: {"validation"},
        True: {"test"},
    }
    assert [score.values["accuracy"] for score in found.scores] == [one["shipped"] for one in told["final"]]
    assert "own/right: private: the joint run is below the baseline by 0." in said
    joint = mtnlp.load(tmp_path / told["made_from"]["joint"])
    rows = [{"text": "river"}, {"text": "market paper night"}]
    for name, other in {
        "own/wet": joint,
        "own/right": mtnlp.load(tmp_path / told["made_from"]["own/right"]),
    }.items():
        assert logits(mtnlp.load(tmp_path), name, rows) == pytest.approx(logits(other, name, rows), abs=1e-6)


def logits(model, task, rows):
    """(rows x labels,) log-probabilities, which are logits but for a constant; of regress the scores."""
    found = [answer["scores"].values() if "scores" in answer else [answer["score"]] for answer in
             model.predict(rows, task=task)]  # fmt: skip
    values = np.array([list(own) for own in found])
    return (values if values.shape[1] == 1 else np.log(values)).ravel()


@pytest.fixture(scope="module")
def shipped(backbones, tmp_path_factory):
    """A run in which every way of WAYS was chosen."""
    out = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        first = choice.first
        patch.setattr(choice, "first", lambda *args: {
            task: replace(one, gate=1.0 if WAYS[task] else 0.0) for task, one in first(*args).items()
        })  # fmt: skip
        refined = choice.refined
        patch.setattr(choice, "refined", lambda one, *args: replace(refined(one, *args), gate=WAYS[one.task]))
        _, said = run(small(backbones["minilm"]), out)
    return out, said


ROWS = {
    "own/topic": [{"text": "city river light"}, {"text": "paper night water king"}],
    "own/rating": [{"text": "city river light"}, {"text": "paper"}],
    "own/likeness": [{"text": "winter market"}, {"text": "paper night water king"}],
    "own/pair": [{"text": "winter market", "text_pair": "table"}, {"text": "horse", "text_pair": "summer"}],
}


def source(out, name):
    return RunFolder(out / kept(out)["made_from"][name])


def update(out, name, task):
    """Layer -> (O, I) what a run below `out` adds to a weight for a task: alpha / R = 4."""
    table = read_table(source(out, name).adapters / task.replace("/", "--") / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in table if key.endswith(".lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): 4
        * table[f"{name}.lora_B.weight"]
        @ table[f"{name}.lora_A.weight"]
        for name in names
    }


def blend(out, task):
    """Layer -> (O, I) what WAYS asks for."""
    shared, private, gate = update(out, "joint", task), update(out, task, task), WAYS[task]
    return {name: (1 - gate) * shared[name] + gate * private[name] for name in shared}


def test_shared_and_private_tasks_of_the_shipped_model_answer_as_the_runs_that_they_come_from(shipped):
    out, _ = shipped
    joint, single, model = (mtnlp.load(path) for path in (
        source(out, "joint").path, source(out, "own/rating").path, out))  # fmt: skip

    for task, other, unlike in (("own/topic", joint, None), ("own/rating", single, joint)):
        own = logits(model, task, ROWS[task])
        assert own == pytest.approx(logits(other, task, ROWS[task]), abs=1e-6)
        assert unlike is None or abs(own - logits(unlike, task, ROWS[task])).max() > 1e-3


@pytest.mark.parametrize("task", ["own/likeness", "own/pair"])
def test_a_gated_task_answers_as_its_own_run_with_the_blend_added_to_its_weights(shipped, task):
    out, _ = shipped
    single, added = mtnlp.load(source(out, task).path), blend(out, task)
    net = single.predictor.model.backbone.net
    with torch.no_grad():
        for name, weight in added.items():
            layer = net.get_submodule(name)
            layer.base.weight += weight
            layer.up.zero_()

    found = logits(mtnlp.load(out), task, ROWS[task])

    assert found == pytest.approx(logits(single, task, ROWS[task]), abs=1e-5)


def test_the_folder_is_that_of_a_lora_per_task_run_and_says_what_it_was_made_from(shipped):
    out, said = shipped
    text = (out / "recipe.yaml").read_text("utf-8")
    told = kept(out)

    strategy = strict_yaml.load(text, "recipe.yaml")["model"]["strategy"]
    assert strategy["name"] == "lora-per-task" and (strategy["rank"], strategy["alpha"]) == (4, 16)
    assert strategy["ranks"] == {"own/likeness": 8, "own/pair": 8} and set(strategy["alphas"].values()) == {
        32
    }
    assert f"#   own/likeness: gated 0.25, of {told['made_from']['joint']} and" in text
    configs = {path.parent.name: json.loads(path.read_text())["r"] for path in out.glob("adapters/*/*.json")}
    assert configs == {"own--topic": 4, "own--rating": 4, "own--likeness": 8, "own--pair": 8}
    assert json.loads((out / "results.json").read_text())["about"]["safe"] == "1 shared, 1 private, 2 gated"
    assert all((out / name).exists() for name in ("ledger.json", "metrics.jsonl", "versions.json"))
    assert "gated 0.75" in said and "The shipped model beside the single-task runs" in said
    with pytest.raises(MtnlpError, match="a run of safe mode, and this is not the recipe"):
        run(str(out / "recipe.yaml"), out, resume=True)


def test_it_is_published_merged_and_reported_like_any_other_run(shipped, backbones, tmp_path):
    out, _ = shipped
    publish.push(str(out), str(tmp_path / "bundle"))
    bundle = mtnlp.load(tmp_path / "bundle", backbone=backbones["minilm"])
    for task in WAYS:
        own = logits(mtnlp.load(out), task, ROWS[task])
        assert logits(bundle, task, ROWS[task]) == pytest.approx(own, abs=1e-7)

    for task in ("own/topic", "own/pair"):
        publish.export(str(out), task, tmp_path / "merged" / task)
        merged = AutoModel.from_pretrained(tmp_path / "merged" / task).state_dict()
        plain = AutoModel.from_pretrained(backbones["minilm"]).state_dict()
        for name, weight in blend(out, task).items():
            torch.testing.assert_close(
                merged[f"{name}.weight"], plain[f"{name}.weight"] + weight, atol=1e-6, rtol=0
            )

    report.write(out)
    assert "lora-per-task" in RunFolder(out).report.read_text("utf-8")


def test_an_interrupted_run_goes_on_and_chooses_the_same(backbones, tmp_path, trained, monkeypatch):
    data = small(backbones["minilm"], steps=3)
    data["tasks"] = data["tasks"][:2]
    run(data, tmp_path / "whole")
    assert [name.rpartition("-")[0] or name for name in trained] == ["tiny", "own--topic", "own--rating"]
    trained.clear()
    real = MetricsWriter.__call__

    def interrupted(self, record):
        real(self, record)
        if len(trained) == 2 and record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsWriter, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "out")
    monkeypatch.setattr(MetricsWriter, "__call__", real)
    trained.clear()
    with pytest.raises(MtnlpError, match=r"already holds a run\. Continue it with --resume"):
        run(data, tmp_path / "out")
    with pytest.raises(MtnlpError, match=r"of another recipe; it differs in train\.lr"):
        run({**data, "train": {**data["train"], "lr": 1e-3}}, tmp_path / "out", resume=True)

    _, said = run(data, tmp_path / "out", resume=True)

    assert (
        trained == ["resumed own--topic-13", "own--rating-13"] and "1 to train, 1 to resume, 1 reused" in said
    )
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
    first, second = (read_table(RunFolder(tmp_path / name).weights) for name in ("whole", "out"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    trained.clear()
    run(data, tmp_path / "out", resume=True)
    assert trained == [] and kept(tmp_path / "out") == kept(tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["full", "mixlora", "mtl-lora"])
def test_a_strategy_that_cannot_ship_private_tasks_is_refused_before_training(
    backbones, tmp_path, trained, strategy
):
    with pytest.raises(MtnlpError, match=rf"safe: what {strategy} trains .* Use model.strategy=lora"):
        run(small(backbones["minilm"], strategy=strategy), tmp_path / "out")

    assert trained == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("strategy", ["lora-per-task", "adapters", "heads"])
def test_a_strategy_that_shares_nothing_is_trained_as_usual(backbones, tmp_path, strategy):
    found, said = run(small(backbones["minilm"], strategy=strategy), tmp_path / "out", dry_run=True)

    assert found is None and f"safe: {strategy} shares no trained parameter between tasks" in said
    assert "Dry run" in said and "alone" not in said


def test_what_cannot_be_chosen_or_shipped_is_told_before_training(backbones, tmp_path, trained):
    data = small(backbones["minilm"])
    data["tasks"][0]["source"]["validation"] = []
    with pytest.raises(MtnlpError, match="validation"):
        run(data, tmp_path / "out")
    data = small(backbones["minilm"])
    data["model"]["strategy"] |= {"rank": 20}
    data["tasks"] = data["tasks"][:1]
    _, said = run(data, tmp_path / "out", dry_run=True)
    assert "safe: own/topic is alone already; trained as usual." in said
    data["model"]["strategy"] |= {"rank": 40}
    data["tasks"] = small(backbones["minilm"])["tasks"]
    with pytest.raises(MtnlpError, match="safe: lora-per-task: rank=40 is larger than the layer"):
        run(data, tmp_path / "out")

    assert trained == [] and not (tmp_path / "out").exists()


def test_where_twice_the_rank_does_not_fit_no_blend_is_tried(backbones, tmp_path, monkeypatch):
    first = choice.first
    monkeypatch.setattr(choice, "first", lambda *args: {
        task: replace(one, gate=1.0) for task, one in first(*args).items()
    })  # fmt: skip
    data = small(backbones["minilm"], steps=1)
    data["model"]["strategy"] |= {"rank": 20}
    data["tasks"] = data["tasks"][:2]

    run(data, tmp_path)

    told = kept(tmp_path)
    assert told["gates"] == [] and {one["ships"] for one in told["choices"]} == {"private"}
    assert all("no blend was tried: a layer is too small" in one["reason"] for one in told["choices"])


def test_the_command_asks_for_it_by_a_key_of_the_recipe(backbones, tmp_path, monkeypatch):
    data = {**small(backbones["minilm"]), "safe": False}
    for task in data["tasks"]:
        for split, rows in task["source"].items():
            path = tmp_path / f"{task['name'].replace('/', '-')}-{split}.jsonl"
            path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
            task["source"][split] = str(path)
    (tmp_path / "recipe.yaml").write_text(strict_yaml.dump(data), "utf-8")
    monkeypatch.chdir(tmp_path)

    plain, safely = (
        CliRunner().invoke(app, ["finetune", "recipe.yaml", "--dry-run", *more])
        for more in ([], ["safe=true"])
    )

    assert plain.exit_code == safely.exit_code == 0
    assert "5 runs in runs/tiny/alone: 5 to train" in safely.output and "alone" not in plain.output
