"""Plan -> the live parts of a run. The only file that knows every room.

settle(recipe)                         -> Recipe, Engine  what was left open chosen by measurement
build_model(recipe, specs, backbone)   -> MultitaskModel  backbone + strategy + heads
encoder_for(recipe, tokenizer, family) -> Encoder         how rows become tokens
build_run(plan, backbone, ...)         -> Run             + mixture, balancer, optimizer
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mtnlp import balancers, config, strategies
from mtnlp.config import Recipe
from mtnlp.errors import MtnlpError, RecipeError
from mtnlp.resolve import Plan, phases_of, total_steps
from mtnlp.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from mtnlp.balancers.base import Balancer
    from mtnlp.bench.predict import Predictor
    from mtnlp.data.encode import Encoder
    from mtnlp.data.store import TokenStore
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.models.trunk import TrunkCache
    from mtnlp.train.engine import Engine
    from mtnlp.train.loop import Run


# What it computes with.


def settle(recipe: Recipe) -> tuple[Recipe, Engine]:
    """The recipe with all that it leaves open of its engine chosen for this machine, and that engine.

    Chosen on the first rank for all of them. A settled recipe comes back as it is, and nothing is measured
    but how products are grouped on a GPU, which follows the machine as threads do.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from mtnlp.train.engine import Wanted, choose, usable_threads

    train, state = recipe.train, PartialState(cpu=on_cpu())
    wanted = Wanted(recipe.model.attention, train.precision, train.matmul)
    found = [None]
    if state.is_main_process:
        grouped = recipe.model.strategy.name == "lora-per-task"
        found = [choose(wanted, device=state.device.type, length=recipe.model.max_length, grouped=grouped)]
    (chosen,) = broadcast_object_list(found)
    engine = replace(chosen, threads=train.threads or usable_threads())
    names = {name: getattr(engine, name) for name in ("attention", "precision", "matmul")}
    return closed(recipe, **names), engine


def closed(recipe: Recipe, *, attention: str, precision: str, matmul: str) -> Recipe:
    """The recipe with these in the place of what it leaves open."""

    def close(section: Any, **values: str) -> Any:
        return section.model_copy(
            update={name: value for name, value in values.items() if getattr(section, name) == "auto"}
        )

    model = close(recipe.model, attention=attention)
    train = close(recipe.train, precision=precision, matmul=matmul)
    return recipe.model_copy(update={"model": model, "train": train})


def keep_trunk(run: Run, stores: Sequence[TokenStore], path: Path) -> TrunkCache:
    """Keep what the frozen lower blocks of a run's network compute, in a file; see `models.trunk`.

    Raises:
        MtnlpError: no block is frozen from the bottom on.
    """
    import torch

    from mtnlp.models.trunk import TrunkCache

    dtype = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    tokens = sum(int(store["token_counts"].sum()) for store in stores)
    run.model.trunk = TrunkCache(run.model.backbone, path, tokens=tokens, dtype=dtype)
    return run.model.trunk


def build_accelerator(recipe: Recipe, **options: Any) -> Accelerator:
    """Device, precision and collectives of this process.

    Without an accelerator the processes of a launch meet on their CPUs, which Accelerate does only when told.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    precision = {"fp32": "no", "bf16": "bf16"}[settle(recipe)[0].train.precision]
    return Accelerator(mixed_precision=precision, cpu=on_cpu(), **options)


def on_cpu() -> bool:
    import torch

    return not torch.accelerator.is_available()


# Models.


def build_backbone(recipe: Recipe, *, trust_remote_code: bool = False) -> Backbone:
    """The pretrained network of a recipe, as it comes.

    Raises:
        MtnlpError: it cannot be loaded, or the rest of `model` does not fit it.
    """
    from mtnlp.models.backbone import Backbone

    model = recipe.model
    backbone = Backbone.load(
        model.backbone,
        revision=model.revision,
        family=model.family,
        attention=model.attention,
        trust_remote_code=trust_remote_code,
    )
    check_backbone(recipe, backbone.family, backbone.max_length)
    return backbone


def check_backbone(recipe: Recipe, family: str, longest: int) -> None:
    """RecipeError with all that does not go with a backbone of this family, which reads so many tokens."""
    from mtnlp.data.encode import too_short

    model, problems = recipe.model, []
    if model.max_length > longest:
        problems.append(
            f"model.max_length: {model.backbone} reads at most {longest} tokens (got {model.max_length})."
        )
    elif problem := too_short(family, model.max_length, model.max_target_length):
        problems.append(problem)
    allowed = strategies.get(model.strategy.name).families
    if family not in allowed:
        problems.append(
            f"model.strategy: {model.strategy.name} works with {' and '.join(allowed)} backbones; "
            f"the {family} {model.backbone} answers in text. Use lora, lora-per-task or full."
        )
    if problems:
        raise RecipeError(f"the recipe {recipe.name}", problems)


def check_tasks(recipe: Recipe, family: str, specs: Sequence[TaskSpec]) -> None:
    """MtnlpError if a task cannot be done with this family of backbone."""
    writers = [spec.name for spec in specs if spec.kind == "generate"]
    if family == "encoder" and writers:
        raise MtnlpError(
            f"tasks: {', '.join(writers)} must be written out, and {recipe.model.backbone} is an encoder. "
            "Use a backbone that writes text, such as model.backbone=minilm-seq2seq, or leave the task out."
        )


def build_model(recipe: Recipe, specs: Sequence[TaskSpec], backbone: Backbone) -> MultitaskModel:
    """Backbone + strategy + one head per task (encoders only). Fresh weights depend on (seed, task name).

    Raises:
        MtnlpError: a task that this backbone cannot do, or a trunk to keep where none is frozen.
    """
    import torch

    from mtnlp import heads
    from mtnlp.data.shuffle import key_of
    from mtnlp.kernels.dropout import speed_up
    from mtnlp.models import trunk
    from mtnlp.models.multitask import MultitaskModel

    names = [spec.name for spec in specs]
    check_tasks(recipe, backbone.family, specs)
    torch.manual_seed(recipe.seed)
    strategy = config.build("model.strategy", recipe.model.strategy, strategies)
    strategy.attach(backbone, names, recipe.seed)
    if strategy.bank is not None:
        strategy.bank.on_cpu = recipe.train.bank_on_cpu
    made = {}
    if backbone.family == "encoder":
        for spec in specs:
            torch.manual_seed(key_of("head", recipe.seed, spec.name) >> 1)
            made[spec.name] = heads.for_kind(spec.kind)(
                backbone.width, spec, pooling=recipe.model.pooling, dropout=recipe.model.head_dropout
            )
    if recipe.train.cache_trunk:
        trunk.require(backbone)
    model = MultitaskModel(backbone, strategy, made, names)
    speed_up(model)
    return model


def build_balancer(recipe: Recipe, model: MultitaskModel) -> Balancer:
    """The balancer of a recipe for the tasks of a model.

    Raises:
        MtnlpError: it needs gradients of shared parameters, and the strategy shares none.
    """
    balancer: Balancer = config.build("balancer", recipe.balancer, balancers)
    balancer.setup(model.tasks)
    if balancer.needs_gram and not model.shared_parameters():
        name, strategy = recipe.balancer.name, recipe.model.strategy.name
        raise MtnlpError(
            f"balancer: {name} merges gradients of parameters that tasks share, and {strategy} shares none. "
            "Use a balancer that only weighs losses (equal, fixed, uncertainty), or a strategy that shares "
            "parameters (full, lora)."
        )
    return balancer


def encoder_for(recipe: Recipe, tokenizer: Any, family: str) -> Encoder:
    """How rows become tokens in this run."""
    from mtnlp.data.encode import Encoder

    return Encoder(tokenizer, family, recipe.model.max_length, recipe.model.max_target_length)


def build_predictor(
    recipe: Recipe, model: MultitaskModel, encoder: Encoder, accelerator: Accelerator
) -> Predictor:
    """What asks the model."""
    from mtnlp.bench.predict import Predictor

    device, (_, engine) = accelerator.device, settle(recipe)
    return Predictor(
        model,
        encoder,
        device=device,
        max_tokens=2 * recipe.train.max_tokens,
        max_new_tokens=recipe.model.max_target_length,
        autocast=partial(computing, engine, device.type, bf16=accelerator.mixed_precision == "bf16"),
    )


@contextmanager
def computing(engine: Engine, device: str, *, bf16: bool) -> Iterator[None]:
    """Inside, torch computes as the engine says; the process may have had another one since it was made.

    So it is not accelerator.autocast either, which asks for the precision of the latest accelerator.
    """
    import torch

    with engine.applied(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        yield


# Runs.


def build_run(
    plan: Plan,
    backbone: Backbone,
    stores: Sequence[TokenStore],
    encoder: Encoder,
    accelerator: Accelerator,
    *,
    model: MultitaskModel | None = None,
) -> Run:
    """Everything a training run needs, on the accelerator's device.

    Args:
        model: what `build_model` made of the backbone, where it has been made already.

    Raises:
        MtnlpError: parts that do not go together; the message says which.
    """
    from mtnlp.data.mixture import Mixture
    from mtnlp.train.grads import place
    from mtnlp.train.loop import Run
    from mtnlp.train.optim import Optimizer, Schedule

    recipe, settings = plan.recipe, plan.recipe.train
    sizes = [len(store) for store in stores]
    steps = total_steps(recipe, sizes)
    mixture = Mixture(
        plan.names,
        stores,
        phases_of(recipe, plan.names, sizes),
        seed=recipe.seed,
        examples_per_step=settings.examples_per_step,
        max_tokens=settings.max_tokens,
        pad_id=encoder.pad_id,
        form=encoder.form,
        flat=backbone.runs_flat and accelerator.device.type == "cpu",  # measured faster there
    )
    model = build_model(recipe, plan.specs, backbone) if model is None else model
    balancer = build_balancer(recipe, model)
    place(model, balancer, accelerator)
    optimizer = Optimizer(
        model,
        balancer,
        Schedule(settings.lr, steps, settings.schedule, settings.warmup),
        weight_decay=settings.weight_decay,
        max_norm=settings.max_norm,
    )
    return Run(
        tasks=plan.names,
        model=model,
        mixture=mixture,
        balancer=balancer,
        optimizer=optimizer,
        accelerator=accelerator,
        steps=steps,
        seed=recipe.seed,
        row_name=lambda task, row: plan.data[task].rows("train").where(row),
    )


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    network: of the backbone with all that was put into it. shared: of these, trained and shared by the tasks.
    own: those that belong to single tasks (heads, rows of the bank).
    """

    network: int
    shared: int
    own: int


def parameter_counts(model: MultitaskModel) -> Counts:
    """How large a model is."""
    bank = model.strategy.bank
    heads = sum(p.numel() for task in range(len(model.tasks)) for p in model.head_parameters(task).values())
    return Counts(
        network=sum(p.numel() for p in model.backbone.net.parameters()),
        shared=sum(p.numel() for p in model.shared_parameters().values()),
        own=heads + (bank.rows.numel() if bank is not None else 0),
    )


def summary(plan: Plan, run: Run) -> str:
    """Two lines on what is about to happen."""
    recipe, counts, acc = plan.recipe, parameter_counts(run.model), run.accelerator
    model, precision = recipe.model, "fp32" if acc.mixed_precision == "no" else acc.mixed_precision
    return (
        f"{recipe.name}: {len(run.tasks)} tasks on {model.backbone} ({run.model.backbone.family}, "
        f"{counts.network / 1e6:.1f} M parameters) with {model.strategy.name}; "
        f"trained: {counts.shared:,} shared, {counts.own:,} of single tasks.\n"
        f"{run.steps:,} steps of {recipe.train.examples_per_step} examples, "
        f"{acc.num_processes} x {acc.device.type}, precision {precision}."
    )
