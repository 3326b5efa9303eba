"""Baselines get what the joint run gives their task: against plans that are counted step by step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_tasks

from mtnlp import config
from mtnlp.compare import budget
from mtnlp.config import Slot
from mtnlp.data.plan import Quota
from mtnlp.errors import MtnlpError
from mtnlp.resolve import phases_of, resolve
from mtnlp.runs import lineup

NAMES = ["a/large", "a/middle", "a/small", "a/rare"]
SIZES = [5000, 700, 90, 4]
SAMPLERS = [
    "uniform",
    "proportional",
    {"name": "temperature", "temperature": 3.0},
    {"name": "weights", "rates": {"a/large": 3, "a/middle": 1.5, "a/small": 1.5, "a/rare": 0}},
    {"name": "phased", "phases": [{"until": 0.5, "tasks": ["a/large", "a/middle"]}, {"sampler": "uniform"}]},
]


def settings(sampler, **train):
    return config.load({"model": {"backbone": "minilm"}, "tasks": NAMES, "sampler": sampler, "train": train})


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_baseline_has_the_rows_and_steps_that_the_joint_run_gives_its_task(sampler):
    steps, each = 203, 24
    recipe = settings(sampler, steps=steps, examples_per_step=each)
    phases = phases_of(recipe, NAMES, SIZES)

    found = budget.budgets(phases, steps=steps, examples_per_step=each, seed=7)

    quota = Quota(phases, examples_per_step=each, seed=7)
    counts = np.array([quota.counts(step) for step in range(steps)])
    for own, column in zip(found, counts.T, strict=True):
        if not column.any():
            assert own is None
            continue
        assert (own.rows, own.live) == (column.sum(), (column > 0).sum())
        assert own.examples_per_step == max(1, round(own.rows / own.live))
        assert abs(own.steps * own.examples_per_step - own.rows) <= own.examples_per_step / 2
        if own.rows % own.live == 0:
            assert own.steps == own.live


def test_a_baseline_is_evaluated_as_often_and_keeps_all_other_settings():
    recipe = settings(
        "uniform", epochs=2.0, lr=3e-4, warmup=40.0, checkpoint_every=50, lr_of={"a/rare": 1e-4}
    )
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"every": 100, "patience": 3})})

    alone = budget.baseline(recipe, "a/rare", "a/rare", budget.Budget(500, 500, 500, 1), steps=1000)

    assert (alone.train.steps, alone.train.epochs, alone.train.examples_per_step) == (500, None, 1)
    assert (alone.train.warmup, alone.train.checkpoint_every, alone.eval.every) == (20.0, 25, 50)
    assert alone.tasks == ("a/rare",) and alone.sampler == Slot("proportional")
    assert alone.train.lr == 1e-4 and alone.train.lr_of == {}
    same = ("schedule", "weight_decay", "max_norm", "max_tokens", "precision")
    assert all(getattr(alone.train, name) == getattr(recipe.train, name) for name in same)
    assert alone.eval.patience == 3 and alone.model == recipe.model and alone.seed == recipe.seed
    assert config.load(alone) == alone


def test_a_task_of_a_pattern_or_a_list_is_the_same_task_alone(tmp_path):
    def files(name):
        made = tiny_tasks.task(name, "classify")
        for split, rows in made["source"].items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}-{split}.jsonl").write_text(lines)
        source = {split: f"{name}-{split}.jsonl" for split in made["source"]}
        return {**made, "source": source, "shots": 2, "template": "Which mood? {{ text }}", "notes": "x"}

    (tmp_path / "two.yaml").write_text(json.dumps([files("first"), files("second")]))
    (tmp_path / "third.yaml").write_text(json.dumps(files("third")))
    tasks = ["two.yaml", "thi*.yaml", tiny_tasks.task("fourth", "regress")]
    plan = resolve({"model": {"backbone": "minilm"}, "base": str(tmp_path), "tasks": tasks})

    entries = budget.entries(plan.recipe)

    assert list(entries) == list(plan.names) == ["first", "second", "third", "fourth"]
    for whole in plan.data:
        entry = entries[whole.spec.name]
        (alone,) = resolve(plan.recipe.model_copy(update={"tasks": (entry,)})).data
        assert alone.spec == whole.spec
        for split in whole.splits:
            assert alone.rows(split).fingerprint == whole.rows(split).fingerprint


def test_a_sweep_is_every_combination_and_the_recipe_s_own_method_keeps_its_options():
    recipe = settings({"name": "temperature", "temperature": 3.0})

    made = budget.variants(recipe, {"strategies": ["lora", "full"], "samplers": ["temperature", "uniform"]})

    assert list(made) == ["lora temperature", "lora uniform", "full temperature", "full uniform"]
    assert made["full temperature"].sampler == recipe.sampler
    assert made["full uniform"].sampler == Slot("uniform")
    assert made["lora uniform"].model.strategy == Slot("lora")
    assert budget.variants(recipe, {"balancers": []}) == {"joint": recipe}


def test_a_task_that_ends_early_has_a_shorter_baseline():
    recipe = settings("uniform", steps=60, examples_per_step=8, steps_of={"a/small": 20})

    large, *_, small, rare = lineup._budgets(recipe, NAMES, SIZES)

    assert (small.live, small.rows, small.steps, small.examples_per_step) == (20, 40, 20, 2)
    every = settings("uniform", steps=60, examples_per_step=8, steps_of=dict.fromkeys(NAMES, 30))
    assert [own.live for own in lineup._budgets(every, NAMES, SIZES)] == [30] * 4
    assert large.live == rare.live == 60 and abs(large.rows - (20 * 2 + 40 * 8 / 3)) < 1


def test_a_task_that_the_joint_run_never_draws_is_told():
    recipe = settings(SAMPLERS[3], steps=50)

    with pytest.raises(MtnlpError, match=r"sampler weights the joint run never draws a/rare in 50 steps"):
        lineup._budgets(recipe, NAMES, SIZES)
