"""The recipe: one strict YAML file is one experiment.

    recipe, problems = read("quickstart.yaml", ["train.lr=1e-4"])   # keeps going, collects everything wrong
    recipe = load("quickstart.yaml", ["train.lr=1e-4"])             # raises RecipeError with all of it

Order: defaults < file < overrides. No includes, no inheritance, no environment. `Recipe.dump()` writes every
default out and reads back as an equal recipe. Whether the names in a recipe exist, `mtnlp.assemble` says.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    create_model,
    model_validator,
)

from mtnlp import overrides as overrides_room
from mtnlp import strict_yaml
from mtnlp.errors import MtnlpError, RecipeError, did_you_mean, shown

ALIASES = ("minilm", "minilm-seq2seq")  # names of backbones, whatever folders there are
SLOTS = {("model", "strategy"): "lora-per-task", ("sampler",): "temperature", ("balancer",): "equal"}
_STAND_INS = {("model",): {"backbone": "minilm"}, ("model", "backbone"): "minilm"}  # to look on regardless


@dataclass(frozen=True)
class Slot:
    """A method by name, with the options its `__init__` takes. YAML: `name` or `{name: ..., option: ...}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _slot(value: Any) -> Slot:
    if isinstance(value, Slot):
        return value
    if isinstance(value, str):
        return Slot(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"expected a name or {{name: ..., option: ...}}, got {shown(value)}.")
    return Slot(value["name"], {str(key): option for key, option in value.items() if key != "name"})


def _plain_slot(slot: Slot) -> Any:
    return {"name": slot.name, **slot.options} if slot.options else slot.name


def _task_entry(value: Any) -> Any:
    source = value.get("source") if isinstance(value, Mapping) else None
    for split, rows in source.items() if isinstance(source, Mapping) else ():
        if isinstance(rows, Iterator):
            found = type(rows).__name__
            raise ValueError(f"source.{split}: expected a list of rows, found a {found}; make it a list().")
    if isinstance(value, Mapping) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"a task is a name, a path or a mapping, got {shown(value)}.")


SlotField = Annotated[Slot, BeforeValidator(_slot), PlainSerializer(_plain_slot)]
TaskEntry = Annotated[Any, BeforeValidator(_task_entry)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """Strict (no text where a number belongs), closed (unknown keys fail) and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The network.

    backbone: alias (`minilm`, `minilm-seq2seq`), hub id or folder; revision: of the hub id.
    family: encoder (a head per task), encoder-decoder or decoder (text to text); auto = as its config says.
    attention: an implementation of transformers, default = its own choice, auto = the faster one here.
    strategy: how tasks share the backbone. max_length, max_target_length: tokens. pooling: of encoder states.
    head_dropout: before every head.
    """

    backbone: str = Field(min_length=1)
    revision: str | None = None
    family: Literal["auto", "encoder", "encoder-decoder", "decoder"] = "auto"
    attention: str = Field("auto", min_length=1)
    strategy: SlotField = Slot(SLOTS["model", "strategy"])
    max_length: int = Field(128, ge=8)
    max_target_length: int = Field(64, ge=1)
    pooling: Literal["mean", "first", "last"] = "mean"
    head_dropout: float = Field(0.1, ge=0, lt=1)


class TrainSection(Section):
    """The budget and the optimizer.

    steps or epochs: one of them; neither = 3 epochs over all rows of all tasks. examples_per_step: over all
    tasks and ranks. max_tokens: padded tokens of one micro-batch. warmup: a share of the steps (< 1) or a
    number of steps. lr_of, steps_of: task -> a learning rate, and a number of steps after which it is drawn
    no more, of its own; only where tasks share no trained parameter. max_norm: clipping norm. precision: auto
    = bf16 where it is faster. matmul: of float32 products, as torch calls it, auto = the faster one that is
    as exact. threads: of torch in each process, None = its share of the cores. cache_trunk: keep what the
    frozen lower blocks compute for a row, on disk in the run folder, so that later epochs skip them; their
    dropout is off then. bank_on_cpu: rows of single tasks and their moments stay in main memory, only the
    live rows are on the device. checkpoint_every: steps, None = only at the end.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    examples_per_step: int = Field(32, ge=1)
    max_tokens: int = Field(4096, ge=1)
    lr: float = Field(5e-4, gt=0)
    lr_of: dict[str, Annotated[float, Field(gt=0)]] = {}
    steps_of: dict[str, Annotated[int, Field(ge=1)]] = {}
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.06, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    matmul: Literal["auto", "highest", "high", "medium"] = "auto"
    threads: int | None = Field(None, ge=1)
    cache_trunk: bool = False
    bank_on_cpu: bool = False
    checkpoint_every: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _budget(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("steps") is None and data.get("epochs") is None:
            return {**data, "epochs": 3.0}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.steps is not None and self.epochs is not None:
            got = f"got steps {self.steps} and epochs {self.epochs:g}"
            raise ValueError(f"give steps or epochs, not both ({got}).")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup is a share below 1 or a whole number of steps (got {self.warmup:g}).")
        return self


class EvalSection(Section):
    """Scores during and after training.

    every: steps between evaluations, None = only at the end. rows: at most so many per task while training.
    split: which one. keep: the weights with the best aggregate, or the last. patience: evaluations without a
    better aggregate before training stops, None = never. Where tasks share no trained parameter, both go by
    each task's own score: each keeps its best weights and ends by itself. final_split: scored at the end, on
    all rows, None = the same as `split`.
    """

    every: int | None = Field(None, ge=1)
    rows: int = Field(500, ge=1)
    split: str = Field("validation", min_length=1)
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(None, ge=1)
    final_split: Literal["test", "validation"] | None = "test"


class Recipe(Section):
    """One experiment, checked and frozen.

    name: of the run, and of its folder; default: the file's. base: the folder that relative paths in `tasks`,
    `imports` and `model.backbone` start from; default: the recipe's own. seed: of everything drawn. tasks:
    names, globs, paths or tasks written out. safe: train every task alone too and ship each in the way that
    held-out rows are for, see docs/safe-mode.md. track: experiment trackers. imports: modules or .py files
    loaded first, so that they can register methods of their own.
    """

    name: str = Field("run", pattern=r"^[\w][\w.+-]*$", max_length=100)
    base: str = "."
    seed: int = Field(13, ge=0, lt=2**32)
    model: ModelSection
    tasks: Annotated[tuple[TaskEntry, ...], Field(strict=False)] = ()
    sampler: SlotField = Slot(SLOTS["sampler",])
    balancer: SlotField = Slot(SLOTS["balancer",])
    train: TrainSection = Field(default_factory=lambda: TrainSection(epochs=3.0))
    eval: EvalSection = Field(default_factory=EvalSection)
    safe: bool = False
    track: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], Field(strict=False)] = ()
    imports: Texts = ()

    def data(self) -> dict[str, Any]:
        """Plain data, every default written out, in the order of the sections."""
        return _unfrozen(self.model_dump())

    def dump(self) -> str:
        """YAML of `data()`: what a run folder keeps."""
        return strict_yaml.dump(self.data())


Source = str | Path | Mapping[str, Any] | Recipe


def load(source: Source, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a file (or the name of a shipped one, plain data, another recipe), with overrides.

    Raises:
        RecipeError: all problems of keys and values at once.
    """
    recipe, problems = read(source, overrides)
    if problems:
        raise RecipeError(label(source), problems)
    return recipe


def read(source: Source, overrides: Iterable[str] = ()) -> tuple[Recipe | None, list[str]]:
    """Like `load`, but keeps going: (recipe without the offending keys, every problem found).

    The recipe is None only if there is nothing to look at: no such file, not YAML, not a mapping.
    """
    try:
        data = _raw(source)
    except MtnlpError as error:
        return None, [str(error).removeprefix(f"{label(source)}: ")]
    places, problems = overrides_room.apply(data, overrides, SLOTS)
    for mine, other in (("steps", "epochs"), ("epochs", "steps")):  # an override replaces the file's budget
        if ("train", mine) in places and ("train", other) not in places and isinstance(data["train"], dict):
            data["train"].pop(other, None)
    recipe = _validate(data, problems)
    if recipe and not recipe.tasks and not any(problem.startswith("tasks") for problem in problems):
        problems.append("tasks: name at least one, as in [glue/sst2]; `mtnlp list tasks` shows them.")
    return recipe, problems


def label(source: Source) -> str:
    """What messages call a recipe."""
    return str(find(source)) if isinstance(source, (str, Path)) else "the recipe"


def build(key: str, slot: Slot, room: Any) -> Any:
    """An object of the room's class `slot.name`, made with its options.

    Args:
        key: where the slot stands in the recipe ("model.strategy"), for messages.
        room: a package of methods with `get`, such as mtnlp.samplers.

    Raises:
        RecipeError: unknown name; unknown, missing or ill-typed options, all at once; what the class refused.
    """
    try:
        made = room.get(slot.name)
        schema = _schema(made)
        options = schema.model_validate(dict(slot.options))
        return made(**{name: getattr(options, name) for name in slot.options})
    except ValidationError as error:
        known = schema.model_fields
        raise RecipeError(key, [_sentence(item, known, prefix=(key,)) for item in error.errors()]) from None
    except MtnlpError as error:
        text = str(error)
        raise RecipeError(key, [text if text.startswith(key) else f"{key}: {text}"]) from None


def shipped() -> dict[str, Path]:
    """Recipes that come with mtnlp: name -> file. In a wheel they lie inside the package, else beside it."""
    here = Path(__file__).parent
    folder = here / "_recipes" if (here / "_recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The recipe file `source`, or the shipped recipe of that name if there is no such file."""
    path = Path(source)
    return path if path.exists() else shipped().get(str(source), path)


def _raw(source: Source) -> dict[str, Any]:
    """A fresh dict to edit, with `name` and an absolute `base` filled in."""
    if isinstance(source, Recipe):
        return source.data()
    if isinstance(source, Mapping):
        data, home = _unfrozen(source), Path.cwd()
    elif not isinstance(source, (str, Path)):
        raise MtnlpError(f"expected a file, a name, keys and values, or a Recipe, found {shown(source)}.")
    else:
        path = find(source)
        if not path.exists():
            raise MtnlpError(f"no such recipe file. {did_you_mean(str(source), shipped())}")
        data, home = strict_yaml.read(path), path.resolve().parent
        if not isinstance(data, dict):
            found = "nothing" if data is None else shown(data)
            raise MtnlpError(f"expected keys and values (model: ..., tasks: ...), found {found}.")
        data.setdefault("name", re.sub(r"[^\w.+-]", "-", path.stem))
    if isinstance(data.get("base", "."), str):
        data["base"] = str((home / data.get("base", ".")).resolve())
    return data


# Checking.


def _validate(data: dict[str, Any], problems: list[str]) -> Recipe | None:
    """The recipe of `data`; what is wrong goes to `problems` and out of `data`, until the rest stands."""
    while True:
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            found = error.errors()
        problems += [_sentence(item, _known(item["loc"][:-1])) for item in found]
        places = sorted((item["loc"] for item in found), key=_order, reverse=True)
        if not any([_drop(data, place) for place in places]):
            return None


def _order(loc: tuple[Any, ...]) -> list[tuple[int, str]]:
    """Sorts places so that, taken from the back, removing one does not move the next."""
    return [(part, "") if isinstance(part, int) else (0, part) for part in loc]


def _drop(data: Any, loc: tuple[Any, ...]) -> bool:
    """Take the value at `loc` out (or put a harmless one in its place); False if there is none."""
    for part in loc[:-1]:
        data = data[part]
    if tuple(loc) in _STAND_INS:
        data[loc[-1]] = copy.deepcopy(_STAND_INS[tuple(loc)])
        return True
    try:
        del data[loc[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _known(section: tuple[Any, ...]) -> Mapping[str, Any]:
    """The fields of the section at that place."""
    model: Any = Recipe
    for part in section:
        fields = getattr(model, "model_fields", {})
        model = fields[part].annotation if part in fields else None
    return getattr(model, "model_fields", {})


def _sentence(error: Mapping[str, Any], known: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """One pydantic error as a sentence that starts with the key."""
    key, name = ".".join(map(str, (*prefix, *error["loc"]))), str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        homes = [f"{part}.{name}" for part in ("model", "train", "eval") if name in _known((part,))]
        if homes and not prefix:
            return f"{key}: no such key here; it is {' or '.join(homes)}."
        return f"{key}: no such {'option' if prefix else 'key'}. {did_you_mean(name, known)}"
    if error["type"] == "missing":
        return f"{key}: missing; it has no default."
    if error["type"] == "value_error":  # our own sentences, which say what they found
        return f"{key}: {error['ctx']['error']}"
    if error["type"] == "tuple_type":
        return f"{key}: expected a list, as in [a, b] (got {shown(error['input'])})."
    if error["type"] == "model_type":
        return f"{key}: expected keys and values (got {shown(error['input'])})."
    return f"{key}: {error['msg']} (got {shown(error['input'])})."


def _schema(made: Any) -> type[BaseModel]:
    """The options of a method, read off its `__init__`: keyword-only, typed, with defaults."""
    try:
        hints = get_type_hints(made.__init__)
    except NameError:  # a plug-in whose hints exist for type checkers only
        hints = {}
    parameters = list(inspect.signature(made).parameters.values())
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    fields = {
        parameter.name: (hints.get(parameter.name, Any), _default(parameter))
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    extra = "allow" if open_ended else "forbid"
    config = ConfigDict(extra=extra, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{made.__name__}Options", __config__=config, **fields)


def _default(parameter: inspect.Parameter) -> Any:
    return ... if parameter.default is parameter.empty else parameter.default


def _unfrozen(value: Any) -> Any:
    """Tuples as lists, mappings as dicts: plain data that YAML and JSON write."""
    if isinstance(value, Mapping):
        return {key: _unfrozen(item) for key, item in value.items()}
    return [_unfrozen(item) for item in value] if isinstance(value, (list, tuple)) else value
