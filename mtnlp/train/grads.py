"""Gradients across ranks and across tasks: the only file that knows ranks and shards.

Two ways to use several processes, chosen by how the run was launched:

    replicated   every rank holds all weights; after backward, gradients are added up over ranks, in a few
                 flat buffers
    sharded      after `accelerate launch --use_fsdp --fsdp_version 2`: torch's fully_shard cuts the
                 backbone's weights, gradients and moments over ranks, and adds its gradients up. Heads and
                 bank stay replicated.

Gradients are SUMS over ranks, never means: the loss already divides by the global number of examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mtnlp.data.batch import Batch
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.models.multitask import MultitaskModel

BUCKET = 2**25  # elements per all-reduce: 128 MiB of float32


def place(model: MultitaskModel, balancer: nn.Module, accelerator: Accelerator) -> None:
    """Put model and balancer on the accelerator's device, sharded if the run was launched with FSDP. Call it
    before the optimizer is made."""
    if accelerator.num_processes > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _shard(model, accelerator)
    model.to(accelerator.device)
    balancer.to(accelerator.device)


def _shard(model: MultitaskModel, accelerator: Accelerator) -> None:
    """Cut every transformer block, and what stands around the blocks, over all ranks."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard, register_fsdp_forward_method

    from mtnlp.strategies._lora import Replacement

    plugin = FullyShardedDataParallelPlugin()  # reads what `accelerate launch` was told
    if plugin.fsdp_version != 2:
        raise MtnlpError("Sharding needs FSDP2; this run was launched with FSDP1. Add --fsdp_version 2.")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise MtnlpError("Sharded weights stay on the device here. Drop --fsdp_offload_params.")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for _, block in model.backbone.blocks():
        fully_shard(block, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    # Ranks see different tasks, so heads must not take part in the root's collectives. What stands around the
    # blocks stays in one piece until its backward: the FSDP of torch 2.11 finds no tensors in Output.
    heads = {p for task in range(len(model.tasks)) for p in model.head_parameters(task).values()}
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=heads)
    for method in ("predict", "option_scores", "generate"):
        register_fsdp_forward_method(model, method)  # they need whole weights too
    for module in model.modules():
        if isinstance(module, Replacement):
            module.keeps_cast = False
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a sum; gloo has no other reduction


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; when it is sharded, all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor on the device, and cut in the way, of `like`."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)


def in_step(
    groups: Sequence[list[Batch]], spare: Batch, accelerator: Accelerator
) -> Iterator[tuple[int, Batch, float]]:
    """Micro-batches such that all ranks run equally many of every group, padded with repeats of weight 0:
    sharded ranks meet in every forward and backward.

    Args:
        groups: this rank's micro-batches, in groups that all ranks have in the same order.
        spare: one to repeat where a group is empty here.

    Yields:
        (index of the group, micro-batch, weight 1 or 0).
    """
    counts = torch.tensor([[len(group) for group in groups]], device=accelerator.device)
    for i, (group, most) in enumerate(zip(groups, accelerator.gather(counts).amax(0).tolist(), strict=True)):
        yield from ((i, batch, 1.0) for batch in group)
        yield from ((i, group[-1] if group else spare, 0.0) for _ in range(most - len(group)))


def sum_over_ranks(tensors: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Add every tensor's `.grad` up over ranks.

    A rank without it counts as zeros; where no rank has it, it stays None, so the optimizer neither moves nor
    decays that parameter. Sharded tensors are skipped: FSDP has added them up.
    """
    if accelerator.num_processes == 1:
        return
    tensors = [tensor for tensor in tensors if not is_sharded(tensor)]
    if not tensors:
        return
    here = torch.tensor([float(tensor.grad is not None) for tensor in tensors], device=accelerator.device)
    ranks = accelerator.reduce(here, "sum").tolist()
    for bucket in _buckets([tensor for tensor, n in zip(tensors, ranks) if n]):
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in bucket]
        flat = accelerator.reduce(torch.cat([grad.float().flatten() for grad in grads]), "sum")
        for tensor, grad in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.grad = grad.view_as(tensor).to(tensor.dtype)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


class TaskGrads:
    """Keeps the shared parameters' gradients apart by task, then merges them by a function of their dot
    products.

    Args:
        params: the shared parameters. Memory: one gradient of all of them per live task.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self.params = list(params)
        self.rows: dict[int, list[Tensor | None]] = {}

    def clear(self) -> None:
        self.rows = {}

    def stash(self, task: int) -> None:
        """Move the gradients that the last backward left into the row of `task`, adding to what is there."""
        row = self.rows.setdefault(task, [None] * len(self.params))
        for i, param in enumerate(self.params):
            if param.grad is not None:
                row[i] = param.grad if row[i] is None else row[i] + param.grad
                param.grad = None

    def merge(
        self, weights: Callable[[Tensor], Tensor], tasks: Sequence[int], accelerator: Accelerator
    ) -> None:
        """Leave sum_t w_t g_t in every parameter's `.grad`, with w = weights(Gram matrix of the tasks'
        gradients).

        Args:
            weights: (U, U) float64 on the CPU -> (U,); see Balancer.weights.
            tasks: (U,) live tasks, the same on all ranks, also where a rank had no row of one.
        """
        rows = [self._summed(task, accelerator) for task in tasks]
        factors = weights(self.gram(rows, accelerator)).tolist()
        for param, grads in zip(self.params, zip(*rows)):
            there = [(factor, grad) for factor, grad in zip(factors, grads) if grad is not None]
            param.grad = sum(factor * grad for factor, grad in there) if there else None
        self.clear()

    def _summed(self, task: int, accelerator: Accelerator) -> list[Tensor | None]:
        for param, grad in zip(self.params, self.rows.get(task, [None] * len(self.params))):
            param.grad = grad
        sum_over_ranks(self.params, accelerator)
        return [param.grad for param in self.params]

    def gram(self, rows: list[list[Tensor | None]], accelerator: Accelerator) -> Tensor:
        """(U, U) float64 dot products, on the CPU; rows: per task its gradient of each parameter."""
        gram = torch.zeros(2, len(rows), len(rows), dtype=torch.float64, device=accelerator.device)
        for param, grads in zip(self.params, zip(*rows)):
            live = [i for i, grad in enumerate(grads) if grad is not None]
            if live:
                stacked = torch.stack([local(grads[i]).flatten().double() for i in live])
                at = torch.tensor(live, device=gram.device)
                gram[int(is_sharded(param))][at.unsqueeze(1), at] += stacked @ stacked.T
        replicated, shards = gram
        if any(is_sharded(param) for param in self.params):
            shards = accelerator.reduce(shards, "sum")
        return (replicated + shards).cpu()
