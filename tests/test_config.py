"""The recipe: defaults, strictness, overrides, and all problems at once."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from mtnlp import config
from mtnlp.config import Slot
from mtnlp.errors import MtnlpError, RecipeError

SMALL = {"name": "small", "model": {"backbone": "minilm"}, "tasks": ["glue/rte"]}
FILE = """
model:
  backbone: minilm
  strategy: {name: lora, rank: 4}
tasks: [glue/rte, {name: mine, kind: classify, source: mine.csv, labels: [no, yes]}]
balancer: {name: fixed, weights: {glue/rte: 2, mine: 1}}
train: {lr: 3e-4, epochs: 2}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my recipe.yaml"
    path.write_text(FILE)
    return path


def problems(data, *overrides):
    return config.read(data, overrides)[1]


def test_a_file_is_read_with_defaults_a_name_and_the_folder_it_lies_in(file):
    recipe = config.load(file)

    assert (recipe.name, recipe.base, recipe.seed) == ("my-recipe", str(file.parent.resolve()), 13)
    assert recipe.model.strategy == Slot("lora", {"rank": 4})
    assert recipe.sampler == Slot("temperature")
    assert (recipe.train.lr, recipe.train.epochs, recipe.train.steps) == (3e-4, 2.0, None)
    assert recipe.tasks[1]["labels"] == ["no", "yes"]


def test_a_dumped_recipe_states_every_default_and_reads_back_equal_anywhere(file, tmp_path):
    recipe = config.load(file)
    copy = tmp_path / "elsewhere" / "recipe.yaml"
    copy.parent.mkdir()

    copy.write_text(recipe.dump())

    assert config.load(copy) == recipe
    assert set(recipe.data()["train"]) == set(config.TrainSection.model_fields)
    assert config.load(recipe.data()) == config.load(recipe) == recipe


def test_a_recipe_cannot_be_changed_after_it_was_checked(file):
    with pytest.raises(ValidationError, match="frozen"):
        config.load(file).seed = 1


def test_three_epochs_are_the_budget_of_a_recipe_that_names_none():
    assert config.load(SMALL).train.epochs == 3.0
    assert config.load({**SMALL, "train": {"lr": 1e-3}}).train.epochs == 3.0


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=1e-5", "train", "lr", 1e-5),
        ("eval.every=", "eval", "every", None),
        ("model.backbone=a=b", "model", "backbone", "a=b"),
        ("train.schedule=cosine", "train", "schedule", "cosine"),
    ],
)
def test_an_override_is_yaml_after_the_first_equals_sign(file, override, section, key, value):
    assert getattr(getattr(config.load(file, [override]), section), key) == value


def test_lists_and_their_items_can_be_overridden(file):
    assert config.load(file, ["tasks=[a, b]", "track=[wandb]"]).tasks == ("a", "b")
    assert config.load(file, ["tasks.1.labels.0=maybe"]).tasks[1]["labels"] == ["maybe", "yes"]
    assert problems(file, "tasks.7=x") == ["tasks.7: expected a position from 0 to 1, got '7'."]


def test_a_new_method_drops_the_options_of_the_old_one():
    fixed = {**SMALL, "balancer": {"name": "fixed", "weights": {"glue/rte": 1}}}

    assert config.load(fixed, ["balancer.name=pcgrad"]).balancer == Slot("pcgrad")
    assert config.load(fixed, ["balancer=pcgrad"]).balancer == Slot("pcgrad")
    assert config.load(fixed, ["balancer.x=2", "balancer.name=new"]).balancer == Slot("new", {"x": 2})
    assert config.load(fixed, ["balancer.y=2"]).balancer.options == {"weights": {"glue/rte": 1}, "y": 2}
    assert config.load(SMALL, ["model.strategy.rank=2"]).model.strategy == Slot("lora-per-task", {"rank": 2})
    assert config.load(SMALL, ["sampler.temperature=3"]).sampler == Slot("temperature", {"temperature": 3})


def test_an_overridden_budget_replaces_the_file_s_other_one(file):
    assert (config.load(file, ["train.steps=9"]).train.steps, config.load(file).train.steps) == (9, None)
    assert config.load(file, ["train.steps=9"]).train.epochs is None
    assert problems(file, "train.steps=9", "train.epochs=1") == [
        "train: give steps or epochs, not both (got steps 9 and epochs 1)."
    ]


def test_all_problems_come_at_once_and_the_rest_of_the_recipe_stands(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "modle: x\nlr: 3\nmodel: {strategy: {nme: lora}, max_length: '8'}\ntasks: [a, 3, b]\n"
        "train: {lr: -1, stepz: 4, precision: fp64}\neval: 7\n"
    )

    recipe, found = config.read(path, ["sampler=uniform", "nonsense", "seed=[1", "tasks.0.kind=pair"])

    assert sorted(found) == sorted([
        "'nonsense': an override is key=value, as in train.lr=1e-4.",
        "seed: expected ',' or ']', but got '<stream end>'.",
        "tasks.0.kind: tasks.0 is 'a', which has no keys of its own.",
        "modle: no such key. Did you mean 'model'? "
        "Known: balancer, base, eval, imports, model, name, safe, sampler, seed, tasks, track, train.",
        "lr: no such key here; it is train.lr.",
        "model.backbone: missing; it has no default.",
        "model.strategy: expected a name or {name: ..., option: ...}, got {'nme': 'lora'}.",
        "model.max_length: Input should be a valid integer (got '8').",
        "tasks.1: a task is a name, a path or a mapping, got 3.",
        "train.lr: Input should be greater than 0 (got -1).",
        "train.stepz: no such key. Did you mean 'steps' or 'steps_of'? Known: bank_on_cpu, cache_trunk, "
        "checkpoint_every, epochs, examples_per_step, lr, lr_of, matmul, max_norm, max_tokens, precision, "
        "schedule, ... (17 in all).",
        "train.precision: Input should be 'auto', 'fp32' or 'bf16' (got 'fp64').",
        "eval: expected keys and values (got 7).",
    ])  # fmt: skip
    assert recipe.tasks == ("a", "b")
    assert recipe.sampler == Slot("uniform")
    with pytest.raises(RecipeError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}:\n  ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tasks": []}, "tasks: name at least one"),
        ({"name": "../up"}, "name: String should match"),
        ({"seed": True}, "seed: Input should be a valid integer (got True)"),
        ({"train": {"lr": float("nan")}}, "train.lr: Input should be a finite number (got nan)"),
        ({"train": {"warmup": 1.5}}, "train: warmup is a share below 1 or a whole number of steps (got 1.5)"),
        ({"track": ["mlflow"]}, "track.0: Input should be 'tensorboard', 'trackio' or 'wandb'"),
        ({"model": None}, "model: expected keys and values (got None)"),
        ({"base": 3}, "base: Input should be a valid string (got 3)"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found(change, problem):
    found = problems({**SMALL, **change})

    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected keys and values (model: ..., tasks: ...), found nothing."),
        ("- a", "expected keys and values (model: ..., tasks: ...), found ['a']."),
        ("seed: 1\nseed: 2", "line 2: the key 'seed' is given twice."),
    ],
)
def test_a_file_that_holds_no_recipe_gives_none(tmp_path, text, problem):
    (tmp_path / "r.yaml").write_text(text)

    assert config.read(tmp_path / "r.yaml") == (None, [problem])


def test_a_missing_file_suggests_shipped_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    recipe, found = config.read("quickstrat")

    assert recipe is None
    assert found[0].startswith("no such recipe file. Did you mean 'quickstart'")


def test_a_shipped_recipe_has_a_name_and_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart").base == str(config.shipped()["quickstart"].resolve().parent)

    Path("quickstart").write_text(FILE)

    assert config.load("quickstart").base == str(tmp_path.resolve())


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_recipe_is_valid_and_is_called_like_its_file(name):
    assert config.load(name).name == name


# Slots.


class Method:
    def __init__(self, *, rank: int = 8, rates: dict[str, float] | None = None) -> None:
        if rank < 1:
            raise MtnlpError("rank must be positive.")
        self.rank, self.rates = rank, rates


class Needy:
    def __init__(self, *, weights: dict[str, float]) -> None:
        self.weights = weights


def room(**methods):
    def get(name):
        if name not in methods:
            raise MtnlpError(f"No method is called {name!r}.")
        return methods[name]

    return SimpleNamespace(get=get)


def test_a_slot_is_built_with_its_options():
    made = config.build("sampler", Slot("m", {"rates": {"a": 1}}), room(m=Method))

    assert (made.rank, made.rates) == (8, {"a": 1.0})


@pytest.mark.parametrize(
    ("slot", "expected"),
    [
        (Slot("n"), ["sampler: No method is called 'n'."]),
        (Slot("m", {"rnk": 1}), ["sampler.rnk: no such option. Did you mean 'rank'? Known: rank, rates."]),
        (Slot("m", {"rank": 0}), ["sampler: rank must be positive."]),
        (Slot("needy"), ["sampler.weights: missing; it has no default."]),
        (
            Slot("m", {"rank": [4], "rates": 3}),
            [
                "sampler.rank: Input should be a valid integer (got [4]).",
                "sampler.rates: Input should be a valid dictionary (got 3).",
            ],
        ),
    ],
)
def test_a_slot_that_cannot_be_built_lists_its_problems(slot, expected):
    with pytest.raises(RecipeError) as caught:
        config.build("sampler", slot, room(m=Method, needy=Needy))

    assert list(caught.value.problems) == expected
