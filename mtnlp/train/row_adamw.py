"""AdamW over the rows of a bank that are live in a step, as a torch optimizer.

Every row has its own moments, step count, learning rate, decay and clipping norm, so a task moves as under an
AdamW of its own. Rows that are not live are neither read nor written: a step costs the same for 10 and for
1,000 tasks.

Shapes: T tasks, U live tasks, P parameters of one task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.strategies._bank import Bank

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
CACHE_LINE = 64  # bytes


class RowAdamW(torch.optim.Optimizer):
    """AdamW of a bank's live rows; schedulers and state_dict work as with any optimizer of torch.

    After a backward, `bank.leaf.grad` (U, P) holds the gradients of the rows `bank.live`. It may be on
    another device than `bank.rows`, or in another precision: the update happens where, and as precisely as,
    the rows are. The one parameter of the one group is `bank.rows`: make the optimizer after
    `model.to(device)`.

    Args:
        bank: built.
        lr: learning rate. lr_scale: (T,) what it is multiplied with for each task, also as a mapping that
            holds at least the live ones; None = 1.
        weight_decay: decoupled; one number, or (T,) numbers.
        max_norm: each live row's gradient is clipped to it by the row's own norm; None = no clipping.
        fused: use torch's fused kernel; None = where the device has one.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Sequence[float] = 0.01,
        lr_scale: Sequence[float] | Mapping[int, float] | None = None,
        max_norm: float | None = None,
        fused: bool | None = None,
    ) -> None:
        for name, value in (("weight_decay", weight_decay), ("lr_scale", lr_scale)):
            if isinstance(value, (Sequence, Tensor)) and len(value) != len(bank.rows):
                raise MtnlpError(f"RowAdamW: {name} has {len(value)} numbers for {len(bank.rows)} tasks.")
        self.bank, rows = bank, bank.rows
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([rows], {**options, "lr_scale": lr_scale, "max_norm": max_norm})
        self.fused = rows.device.type in FUSED_DEVICES if fused is None else fused
        self._landing: Tensor | None = None
        # The fused kernel reads step counts where it runs, the other one on the host.
        counted = rows.device if self.fused else "cpu"
        self.state[rows] = {
            "exp_avg": _zeros(rows),
            "exp_avg_sq": _zeros(rows),
            "steps": torch.zeros(len(rows), device=counted),
        }

    @property
    def tables(self) -> dict[str, Tensor]:
        """exp_avg (T, P), exp_avg_sq (T, P) and steps (T,)."""
        return self.state[self.bank.rows]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise MtnlpError("RowAdamW updates one bank, no other tensors. Make another optimizer for them.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the live rows, if a backward reached the bank. Returns what `closure` does."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.bank.leaf is None or self.bank.leaf.grad is None:
            return result
        rows, live = self.bank.rows, self.bank.live
        (group,) = self.param_groups
        assert group["params"][0] is rows, "the bank was moved after its optimizer was made"
        grads = list(self._gradient())
        if group["max_norm"] is not None:
            shrink(grads, factors(torch.stack(torch._foreach_norm(grads)), group["max_norm"]))
        columns = [[table[task] for task in live] for table in (rows, *self.tables.values())]
        for (lr, decay), members in self._alike(group).items():
            params, exp_avg, exp_avg_sq, steps = ([column[i] for i in members] for column in columns)
            adamw(
                params, [grads[i] for i in members], exp_avg, exp_avg_sq, [], steps, fused=self.fused,
                foreach=not self.fused, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
                lr=lr, weight_decay=decay, eps=group["eps"], maximize=False,
            )  # fmt: skip
        torch.autograd.graph.increment_version(rows)  # the fused kernel does not
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        leaf = self.bank.leaf
        if leaf is None or leaf.grad is None:
            return
        if set_to_none:
            leaf.grad = None
        else:
            leaf.grad.zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave; the moments are copied into those that are there.

        Raises:
            MtnlpError: it is of another number of tasks or of rows of another width.
        """
        self.check(state_dict["state"].get(0, {}))
        own = self.tables
        super().load_state_dict(state_dict)
        loaded = self.tables
        self.state[self.bank.rows] = own
        self.load_tables(loaded)

    def check(self, tables: Mapping[str, Tensor], source: str = "The state") -> None:
        """MtnlpError if `tables` cannot be loaded."""
        for name, own in self.tables.items():
            if name not in tables:
                raise MtnlpError(f"{source} lacks bank.{name}: another strategy saved it.")
            if tables[name].shape != own.shape:
                raise MtnlpError(
                    f"{source} has bank.{name} of shape {tuple(tables[name].shape)}, expected "
                    f"{tuple(own.shape)}: it was saved with other tasks or another strategy."
                )

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Copy moments and step counts; rows that never moved stay unwritten, so they cost no memory."""
        own = self.tables
        moved = (own["steps"].cpu() > 0) | (tables["steps"].cpu() > 0)
        for task in moved.nonzero().flatten().tolist():
            for name in ("exp_avg", "exp_avg_sq"):
                own[name][task].copy_(tables[name][task])
        own["steps"].copy_(tables["steps"])

    def _gradient(self) -> Tensor:
        """(U, P) gradients on the device and in the precision of the rows."""
        grad, rows = self.bank.leaf.grad, self.bank.rows
        if grad.device == rows.device and grad.dtype == rows.dtype:
            return grad.contiguous()  # the fused kernel would misread another layout
        if self._landing is None or len(self._landing) < len(grad):
            pinned = grad.device.type == "cuda" and rows.device.type == "cpu"
            self._landing = torch.empty(grad.shape, dtype=rows.dtype, device=rows.device, pin_memory=pinned)
        return self._landing[: len(grad)].copy_(grad)

    def _alike(self, group: Mapping[str, Any]) -> dict[tuple[float, float], list[int]]:
        """Positions among the live rows by their (learning rate, decay): each is one call of the kernel."""
        lr, scale, decay = group["lr"], group["lr_scale"], group["weight_decay"]
        found: dict[tuple[float, float], list[int]] = {}
        for i, task in enumerate(self.bank.live):
            own = (
                float(lr if scale is None else lr * scale[task]),
                float(decay[task] if isinstance(decay, (Sequence, Tensor)) else decay),
            )
            found.setdefault(own, []).append(i)
        return found


def factors(norms: Tensor, max_norm: float) -> list[float]:
    """What gradients of these norms are multiplied with so that none exceeds `max_norm`; at most 1. The same
    arithmetic as torch.nn.utils.clip_grad_norm_."""
    return (max_norm / (norms + 1e-6)).clamp(max=1.0).tolist()


def shrink(tensors: Sequence[Tensor], by: Sequence[float]) -> None:
    """Multiply every tensor with its factor in place; those with factor 1 are not touched."""
    chosen = [(tensor, factor) for tensor, factor in zip(tensors, by, strict=True) if not factor >= 1]
    if chosen:
        torch._foreach_mul_([tensor for tensor, _ in chosen], [factor for _, factor in chosen])


def _zeros(rows: Tensor) -> Tensor:
    """Zeros like `rows`. On the CPU they only take memory as they are written, task by task (torch.zeros
    writes all of it), and begin at a cache line, as torch's do."""
    if rows.device.type != "cpu":
        return torch.zeros_like(rows)
    assert rows.dtype == torch.float32
    flat = np.zeros(rows.numel() + CACHE_LINE // 4, dtype=np.float32)
    first = -flat.ctypes.data % CACHE_LINE // 4
    return torch.from_numpy(flat[first : first + rows.numel()]).view(rows.shape)
