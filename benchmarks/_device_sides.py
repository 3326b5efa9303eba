"""The sides of device.py: ours, peft's in three ways, the limit, and the optimizer's update.

Each gives one step on the rows of `Rows`, forward and backward, with gradients forgotten in the end or at the
next step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _device import Case, Network, Rows
from _parts import LABELS, pooled_loss
from torch import Tensor, nn

from mtnlp.kernels import grouped

OWN = "own"


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Args:
        make: gives its step. keeps: names what stays on the device for others, in Network.made.
        shares: whether it computes with the network's weights, not with a copy.
    """

    name: str
    make: Callable[[], Case]
    keeps: Any = None
    shares: bool = True


def ours(rows: Rows, *, precision: str = "bf16", on_cpu: bool = False, mode: Any = OWN, flat: bool = False,
         max_tokens: int | None = None) -> Case:  # fmt: skip
    """The step gives the summed losses of each micro-batch and their tasks.

    Args:
        mode: None or 0, as for `grouped.using`; OWN = as the engine says.
        flat, max_tokens: how the rows are cut, as for a mixture.
    """
    device, run, plan = rows.network.device, rows.network.run(rows.total, on_cpu), rows.plan()
    run.mixture.flat, live = flat, list(plan.tasks)
    batches = [batch.to(device.kind) for batch in run.mixture.batches(plan, max_tokens=max_tokens)]

    def step() -> list[tuple[tuple[int, ...], Tensor]]:
        found = []
        with contextlib.nullcontext() if mode == OWN else grouped.using(mode):
            run.optimizer.zero_grad(live)
            run.model.begin(live)
            for batch in batches:
                with device.autocast(precision):
                    out = run.model(batch)
                (out.sums.sum() / len(rows.of_task)).backward()
                found.append((out.tasks, out.sums.detach()))
        return found

    return step


class Peer:
    """Forward of a network of theirs and the summed loss of its rows, the same as ours."""

    def __init__(self, rows: Rows, net: nn.Module, heads: Sequence[int] = (0,)) -> None:
        self.net, self.tensors, network = net, rows.tensors(), rows.network
        torch.manual_seed(1)
        kind, self.extra, self.prompt = network.device.kind, {}, 0
        encodes = network.family == "encoder"
        self.heads = {t: nn.Linear(network.width, len(LABELS), device=kind) for t in heads} if encodes else {}
        if not encodes:
            length = self.tensors[0].shape[1]
            self.prompt = length - length // 8
            places = torch.arange(self.prompt - 1, length - 1, device=kind)
            self.extra = {"logits_to_keep": places, "use_cache": False}

    def states(self, own: Any = slice(None), **inputs: Any) -> Tensor:
        ids, mask, _ = self.tensors
        given = inputs if "inputs_embeds" in inputs else {"input_ids": ids[own], **inputs}
        out = self.net(**given, attention_mask=mask[own], **self.extra)
        return out.last_hidden_state if self.heads else out.logits

    def loss(self, states: Tensor, own: Any = slice(None), head: int = 0) -> Tensor:
        ids, mask, labels = (tensor[own] for tensor in self.tensors)
        if self.heads:
            return pooled_loss(self.heads[head], states, mask, labels)
        wanted = ids[:, self.prompt :]
        losses = F.cross_entropy(states.float().flatten(0, 1), wanted.flatten(), reduction="sum")
        return losses / wanted.shape[1]

    def trained(self, part: str = "lora_") -> list[nn.Parameter]:
        """All LoRAs and heads."""
        own = [p for name, p in self.net.named_parameters() if part in name]
        return own + [p for head in self.heads.values() for p in head.parameters()]


def forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def shared(rows: Rows, *, bf16: bool = False) -> Case:
    network = rows.network
    peer = Peer(rows, network.peft(1, bf16=bf16))
    trained = peer.trained()

    def step() -> None:
        with network.device.autocast("fp32" if bf16 else "bf16"):
            states = peer.states()
        (peer.loss(states) / len(rows.of_task)).backward()
        forget(trained)

    return step


def limit(network: Network, rows: Rows, net: nn.Module | None = None) -> Case:
    peer = Peer(rows, net or network.net)

    def step() -> None:
        inputs = peer.net.get_input_embeddings()(peer.tensors[0]).requires_grad_()
        with network.device.autocast("bf16"):
            states = peer.states(inputs_embeds=inputs)
        (peer.loss(states) / len(rows.of_task)).backward()

    return step


def set_adapter(rows: Rows, *, bf16: bool = False) -> Case:
    network, parts = rows.network, rows.parts()
    peer = Peer(rows, network.peft(len(parts), bf16=bf16), range(len(parts)))
    trained = peer.trained()

    def step() -> None:
        peer.net.train()
        for i, own in enumerate(parts):
            peer.net.set_adapter(f"a{i}")
            with network.device.autocast("fp32" if bf16 else "bf16"):
                states = peer.states(own)
            (peer.loss(states, own, i) / len(rows.of_task)).backward()
        forget(trained)

    return step


def adapter_names(rows: Rows) -> Case:
    network, parts = rows.network, rows.parts()
    peer = Peer(rows, network.peft(len(parts)), range(len(parts)))
    names = [f"a{np.searchsorted(rows.tasks, task)}" for task in rows.of_task]
    trained = peer.trained()

    def step() -> None:
        peer.net.eval()
        for parameter in trained:
            parameter.requires_grad_(True)
        with network.device.autocast("bf16"):
            states = peer.states(adapter_names=names)
        losses = [peer.loss(states[own], own, i) for i, own in enumerate(parts)]
        (torch.stack(losses).sum() / len(rows.of_task)).backward()
        forget(trained)

    return step


def update(rows: Rows, *, on_cpu: bool = False) -> Case:
    """All that the optimizer does in a step of the loop."""
    run, live = rows.network.run(rows.total, on_cpu), rows.tasks.tolist()
    run.model.begin(live)
    bank, place = run.model.strategy.bank, SimpleNamespace(device=torch.device(rows.network.device.kind))
    own = [p for task in live for p in run.model.head_parameters(task).values()]
    grads = [torch.randn_like(tensor) for tensor in (bank.leaf, *own)]

    def step() -> None:
        for tensor, grad in zip((bank.leaf, *own), grads):
            tensor.grad = grad
        norms = run.optimizer.norms(live, place)
        run.optimizer.clip(live, norms.tolist())
        run.optimizer.step(0, live)

    return step


def dense(rows: Rows) -> Case:
    """torch's fused AdamW over all rows as one tensor, its gradient made as autograd would."""
    kind, shape = rows.network.device.kind, (rows.total, rows.network.own)
    table = nn.Parameter(torch.zeros(shape, device=kind))
    optimizer, index = torch.optim.AdamW([table], fused=True), torch.from_numpy(rows.tasks).to(kind)
    grads = torch.randn(len(rows.tasks), rows.network.own, device=kind)

    def step() -> None:
        table.grad = torch.zeros_like(table).index_copy_(0, index, grads)
        optimizer.step()
        optimizer.zero_grad()

    return step
