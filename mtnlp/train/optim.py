"""The update: clipping by owner, fused AdamW for dense parameters and for the bank's live rows, schedules.

Absent means untouched: a head, a bank row or a balancer's parameter without a gradient keeps its value, its
moments and its step count, so a task trained beside others moves exactly as it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtnlp.balancers.base import Balancer
from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.train.grads import is_sharded, local, placed
from mtnlp.train.row_adamw import FUSED_DEVICES, RowAdamW, factors, shrink

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.models.multitask import MultitaskModel

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a pure function of the step; the same numbers as transformers.get_scheduler.

    Args:
        lr: the peak.
        steps: of the whole run.
        name: linear (down to 0), cosine (half a wave, down to 0) or constant.
        warmup: linear rise from 0: a share of the steps if < 1, else a number of steps.
    """

    lr: float
    steps: int
    name: str = "linear"
    warmup: float = 0.06

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise MtnlpError(
                f"train.schedule: none is called {self.name!r}. {did_you_mean(self.name, SCHEDULES)}"
            )

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.warmup) if self.warmup < 1 else int(self.warmup)

    def lr_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` (0-based) earlier ones."""
        warm = self.warmup_steps
        if step < warm:
            return self.lr * (step / warm)
        if self.name == "constant":
            return self.lr
        length = max(1, self.steps - warm)
        if self.name == "linear":
            return self.lr * max(0.0, (self.steps - step) / length)
        return self.lr * max(0.0, 0.5 * (1 + math.cos(math.pi * ((step - warm) / length))))


class Optimizer:
    """Everything that happens to parameters in a step: norms, clipping, AdamW, learning rate.

    Nothing a step does grows with the number of tasks: it is told which are live, and looks at no other head.

    Args:
        model, balancer: their trainable parameters are updated; see `grads.place` for what must come before.
        schedule: learning rates.
        weight_decay: of matrices and bank rows; biases, norms and the balancer's parameters are not decayed.
        max_norm: the shared parameters are clipped to it by one norm, and each task's own ones (its head and
            its bank row) by a norm of their own, so one task's outlier does not shrink another's update. None
            = no clipping.
    """

    def __init__(
        self,
        model: MultitaskModel,
        balancer: Balancer,
        schedule: Schedule,
        *,
        weight_decay: float = 0.01,
        max_norm: float | None = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.schedule, self.max_norm = schedule, max_norm
        self.shared = model.shared_parameters()
        self.heads = [model.head_parameters(task) for task in range(len(model.tasks))]
        self.bank = model.strategy.bank
        self.names: dict[str, nn.Parameter] = {f"shared.{name}": p for name, p in self.shared.items()}
        for task, head in zip(model.tasks, self.heads):
            self.names |= {f"head.{task}.{name}": p for name, p in head.items()}
        self._decay = {p: weight_decay * (p.ndim > 1) for p in self.names.values()}
        self._balancer = [p for p in balancer.parameters() if p.requires_grad]
        self.names |= {f"balancer.{name}": p for name, p in balancer.named_parameters() if p.requires_grad}
        self._options = {"betas": betas, "eps": eps}
        self.set_own({})
        # Clipped here, together with the heads, hence without a norm of its own.
        self.rows = (
            RowAdamW(self.bank, lr=schedule.lr, betas=betas, eps=eps, weight_decay=weight_decay)
            if self.bank is not None
            else None
        )

    def set_own(self, schedules: Mapping[int, Schedule]) -> None:
        """Learning rates of single tasks, by index, in place of the common one; before the first step.

        The fused kernel takes plain or sharded tensors, never both in one call, and its decay and learning
        rate are numbers: hence a group for each.
        """
        self.own = dict(schedules)
        pace = {p: schedule for task, schedule in self.own.items() for p in self.heads[task].values()}
        kinds = {p: (self._decay.get(p, 0.0), is_sharded(p), pace.get(p)) for p in self.names.values()}
        groups: dict[tuple[float, bool, Schedule | None], list[nn.Parameter]] = {}
        for parameter, kind in kinds.items():
            groups.setdefault(kind, []).append(parameter)
        self._group = {parameter: list(groups).index(kind) for parameter, kind in kinds.items()}
        self._paces = [schedule for _, _, schedule in groups]
        self.dense = torch.optim.AdamW(
            [{"params": p, "weight_decay": decay} for (decay, _, _), p in groups.items()],
            lr=self.schedule.lr, fused=all(p.device.type in FUSED_DEVICES for p in kinds), **self._options,
        ) if groups else None  # fmt: skip

    def private(self, live: Sequence[int]) -> list[Tensor]:
        """What belongs to the live tasks alone: their heads' parameters and the bank's leaf."""
        heads = [parameter for task in live for parameter in self.heads[task].values()]
        return heads + ([self.bank.leaf] if self.bank is not None else [])

    def norms(self, live: Sequence[int], accelerator: Accelerator) -> Tensor:
        """(1 + U,) gradient norms: of the shared parameters, then of each live task's own."""
        owned = [_grads(self.shared, sharded=False), *(_grads(self.heads[task]) for task in live)]
        squares = _squares(owned, accelerator.device)
        if any(is_sharded(p) for p in self.shared.values()):  # the answer is the same on all ranks
            cut = _squares([_grads(self.shared, sharded=True)], accelerator.device)
            squares[:1] += accelerator.reduce(cut, "sum")
        if self.bank is not None and self.bank.leaf.grad is not None:
            squares[1:] += torch.linalg.vector_norm(self.bank.leaf.grad, dim=1).float().square()
        return squares.sqrt()

    def clip(self, live: Sequence[int], norms: Sequence[float]) -> None:
        """Scale gradients down to `max_norm`, each owner by its own norm: one of `norms`, by now on the host.
        What is within it is not touched."""
        if self.max_norm is None:
            return
        by = factors(torch.tensor(norms, dtype=torch.float32), self.max_norm)
        owned = [_grads(self.shared), *(_grads(self.heads[task]) for task in live)]
        if self.bank is not None and self.bank.leaf.grad is not None:
            owned[1:] = [[*own, row] for own, row in zip(owned[1:], self.bank.leaf.grad, strict=True)]
        pairs = [(grad, factor) for own, factor in zip(owned, by, strict=True) for grad in own]
        shrink([grad for grad, _ in pairs], [factor for _, factor in pairs])

    def step(self, step: int, live: Sequence[int] | None = None) -> float:
        """Update whatever has a gradient, with the learning rate of `step`; the common one is returned.

        Args:
            live: tasks whose heads may have one; None = all.
        """
        lr = self.schedule.lr_at(step)
        if self.dense is not None:
            # AdamW walks over all parameters of its groups, in Python: they hold those with a gradient only.
            groups = self.dense.param_groups
            for group, pace in zip(groups, self._paces, strict=True):
                group["lr"], group["params"] = pace.lr_at(step) if pace else lr, []
            for parameter in self._trained(live):
                if parameter.grad is not None:
                    groups[self._group[parameter]]["params"].append(parameter)
            self.dense.step()
        if self.rows is not None:
            self.rows.param_groups[0]["lr"] = lr
            if self.own:  # a scale is of no use where the common rate is 0
                own = {task: self.own[task].lr_at(step) for task in self.bank.live if task in self.own}
                self.rows.param_groups[0] |= {"lr": 1.0, "lr_scale": dict.fromkeys(self.bank.live, lr) | own}
            self.rows.step()
        self.zero_grad(live)
        return lr

    def zero_grad(self, live: Sequence[int] | None = None) -> None:
        """Forget gradients, of heads those of the tasks `live`; None = of all."""
        for parameter in self._trained(live):
            parameter.grad = None
        if self.rows is not None:
            self.rows.zero_grad()

    def _trained(self, live: Sequence[int] | None) -> Iterator[nn.Parameter]:
        heads = self.heads if live is None else [self.heads[task] for task in live]
        return chain(self.shared.values(), *(head.values() for head in heads), self._balancer)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name; a parameter that was never updated has none."""
        dense = self.dense.state if self.dense is not None else {}
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.names.items()
            for key, value in dense.get(parameter, {}).items()
        }
        rows = self.rows.tables if self.rows is not None else {}
        return moments | {f"bank.{key}": table for key, table in rows.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state()` gave, as full tensors.

        Raises:
            MtnlpError: it holds a parameter that this optimizer lacks, or lacks the bank.
        """
        if self.rows is not None:
            prefix = "bank."
            tables = {key[len(prefix) :]: table for key, table in state.items() if key.startswith(prefix)}
            self.rows.check(tables, "The optimizer's state")
            self.rows.load_tables(tables)
            state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        if self.dense is not None:
            self.dense.state.clear()
        for key, value in state.items():
            name, _, part = key.rpartition(".")
            if name not in self.names:
                raise MtnlpError(
                    f"The optimizer's state holds {key}, which this run does not train. "
                    "It was saved with another strategy, balancer or set of tasks."
                )
            parameter = self.names[name]
            moment = value.to(parameter.device) if part == "step" else placed(value, parameter)
            self.dense.state[parameter][part] = moment


def _grads(owned: Mapping[str, nn.Parameter], *, sharded: bool | None = None) -> list[Tensor]:
    """What this rank holds of the gradients that are there; only of sharded, or unsharded, parameters if
    asked."""
    return [local(p.grad) for p in owned.values() if p.grad is not None and sharded in (None, is_sharded(p))]


def _squares(owned: Sequence[list[Tensor]], device: torch.device) -> Tensor:
    """(owners,) squared norm of each owner's gradients together, float32."""
    grads = [grad for own in owned for grad in own]
    if not grads:
        return torch.zeros(len(owned), device=device)
    squares = torch.stack(torch._foreach_norm(grads)).float().square()
    return torch.stack([own.sum() for own in squares.split([len(own) for own in owned])])
