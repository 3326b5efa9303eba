"""The update: clipping by owner, fused AdamW for dense parameters and for the bank's live rows, schedules.

Absent means untouched: a head, a bank row or a balancer's parameter without a gradient keeps its value, its
moments and its step count, so a task trained beside others moves exactly as it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mtnlp.balancers.base import Balancer
from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.train.grads import is_sharded, local, placed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.strategies._bank import Bank

SCHEDULES = ("linear", "cosine", "constant")
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


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


class RowAdamW:
    """AdamW over the live rows of a bank, each with its own moments and step count; other rows are not read.

    Args:
        bank: after a backward, `bank.leaf.grad` (U, P) holds the gradients of the rows `bank.live`.
        weight_decay: decoupled, of the live rows only.
        fused: use torch's fused kernel; None = where the device has one.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool | None = None,
    ) -> None:
        self.bank, self.betas, self.eps, self.weight_decay = bank, betas, eps, weight_decay
        self.exp_avg = torch.zeros_like(bank.rows)
        self.exp_avg_sq = torch.zeros_like(bank.rows)
        self.steps = torch.zeros(len(bank.rows), device=bank.rows.device)
        self.fused = bank.rows.device.type in FUSED_DEVICES if fused is None else fused

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the live rows. Nothing happens when no backward reached the bank."""
        grad = self.bank.leaf.grad
        if grad is None:
            return
        rows, exp_avg, exp_avg_sq, steps = (
            [table[task] for task in self.bank.live]
            for table in (self.bank.rows, self.exp_avg, self.exp_avg_sq, self.steps)
        )
        adamw(
            rows, list(grad), exp_avg, exp_avg_sq, [], steps, fused=self.fused, foreach=not self.fused,
            amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=lr, weight_decay=self.weight_decay,
            eps=self.eps, maximize=False,
        )  # fmt: skip
        torch.autograd.graph.increment_version(self.bank.rows)  # the fused kernel does not

    def state(self) -> dict[str, Tensor]:
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}


class Optimizer:
    """Everything that happens to parameters in a step: norms, clipping, AdamW, learning rate.

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
        decayed = {id(p) for p in self.names.values() if p.ndim > 1}
        self.names |= {f"balancer.{name}": p for name, p in balancer.named_parameters() if p.requires_grad}
        # The fused kernel takes plain or sharded tensors, never both in one call: hence a group for each.
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.names.values():
            groups.setdefault((id(parameter) in decayed, is_sharded(parameter)), []).append(parameter)
        self.dense = torch.optim.AdamW(
            [{"params": p, "weight_decay": weight_decay * decay} for (decay, _), p in groups.items()],
            lr=schedule.lr, betas=betas, eps=eps,
            fused=all(p.device.type in FUSED_DEVICES for p in self.names.values()),
        ) if groups else None  # fmt: skip
        self.rows = (
            RowAdamW(self.bank, betas=betas, eps=eps, weight_decay=weight_decay)
            if self.bank is not None
            else None
        )

    def private(self, live: Sequence[int]) -> list[Tensor]:
        """What belongs to the live tasks alone: their heads' parameters and the bank's leaf."""
        heads = [parameter for task in live for parameter in self.heads[task].values()]
        return heads + ([self.bank.leaf] if self.bank is not None else [])

    def norms(self, live: Sequence[int], accelerator: Accelerator) -> Tensor:
        """(1 + U,) gradient norms: of the shared parameters, then of each live task's own."""
        squares = torch.zeros(1 + len(live), device=accelerator.device)
        if any(is_sharded(p) for p in self.shared.values()):  # the answer is the same on all ranks
            squares[0] = accelerator.reduce(_square(_grads(self.shared, sharded=True), squares), "sum")
        squares[0] += _square(_grads(self.shared, sharded=False), squares)
        for i, task in enumerate(live):
            squares[1 + i] = _square(_grads(self.heads[task]), squares)
        if self.bank is not None and self.bank.leaf.grad is not None:
            squares[1:] += torch.linalg.vector_norm(self.bank.leaf.grad, dim=1).square()
        return squares.sqrt()

    def clip(self, live: Sequence[int], norms: Tensor) -> None:
        """Scale gradients down to `max_norm`, each owner by its own norm."""
        if self.max_norm is None:
            return
        factors = (self.max_norm / (norms + 1e-6)).clamp(max=1.0)
        owners = [self.shared, *(self.heads[task] for task in live)]
        for factor, owned in zip(factors, owners, strict=True):
            if grads := _grads(owned):
                torch._foreach_mul_(grads, factor)
        if self.bank is not None and self.bank.leaf.grad is not None:
            self.bank.leaf.grad.mul_(factors[1:].unsqueeze(1))

    def step(self, step: int) -> float:
        """Update whatever has a gradient, with the learning rate of `step`, which is returned."""
        lr = self.schedule.lr_at(step)
        if self.dense is not None:
            for group in self.dense.param_groups:
                group["lr"] = lr
            self.dense.step()
        if self.rows is not None:
            self.rows.step(lr)
        self.zero_grad()
        return lr

    def zero_grad(self) -> None:
        for parameter in self.names.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name; a parameter that was never updated has none."""
        dense = self.dense.state if self.dense is not None else {}
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.names.items()
            for key, value in dense.get(parameter, {}).items()
        }
        rows = self.rows.state() if self.rows is not None else {}
        return moments | {f"bank.{key}": table for key, table in rows.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state()` gave, as full tensors.

        Raises:
            MtnlpError: it holds a parameter that this optimizer lacks, or lacks the bank.
        """
        rows = self.rows.state() if self.rows is not None else {}
        for key, table in rows.items():
            if f"bank.{key}" not in state:
                raise MtnlpError(f"The optimizer's state lacks bank.{key}: another strategy saved it.")
            table.copy_(state[f"bank.{key}"])
        if self.dense is not None:
            self.dense.state.clear()
        for key, value in state.items():
            name, _, part = key.rpartition(".")
            if name == "bank" and part in rows:
                continue
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


def _square(grads: list[Tensor], like: Tensor) -> Tensor:
    """() squared norm of all of them together."""
    if not grads:
        return like.new_zeros(())
    return torch.stack(torch._foreach_norm(grads)).to(like.dtype).square().sum()
