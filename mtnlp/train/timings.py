"""What an engine is chosen by: small products and attention as in a training step, timed on this machine.

On a CPU times are of one thread's own work, on any device the best of several interleaved rounds: what else
a machine is doing counts little. All of it takes about a second of that at most, and the same question is
timed once in a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mtnlp.strategies._fused import LowRank, Update
from mtnlp.strategies.base import Part, Runs

ROUNDS, SECONDS = 9, 0.15  # per comparison: at most so many rounds, and after two none is begun so late
TOKENS, WIDTH = {"cpu": 512}, 768  # of the timed linear layer; accelerators need more to do
HEADS, HEAD_WIDTH, LONGEST = 4, 64, 1024  # of the timed attention
BF16 = 2**-6  # relative difference of results that were rounded to bfloat16 on the way
# Of the timed low-rank update: tokens in all, how many of them are drawn, of a task, of a sequence at most.
MANY, DRAWN, PER_TASK, SEQUENCE, RANK = 32768, 512, (64, 256, 1024, 4096), 128, 8


@lru_cache
def medium_gain() -> tuple[float, float]:
    """Of torch's "medium" matrix products on a CPU over "highest": speed, and relative error against float64.

    What "medium" stands for depends on the processor: float32 by another library, or bfloat16.
    """
    x, w, b = _normal(TOKENS["cpu"], WIDTH), _normal(WIDTH, WIDTH), torch.zeros(WIDTH)
    true = x.double() @ w.double().T

    def product(how: str) -> Tensor:
        with matmul(how):
            return F.linear(x, w, b)

    error = float((product("medium") - true).norm() / true.norm())
    seconds = race({how: lambda how=how: product(how) for how in ("highest", "medium")})
    return seconds["highest"] / seconds["medium"], error


@lru_cache
def bf16_gain(device: str, how: str) -> float:
    """Speed of a frozen linear layer, forward and backward, under bfloat16 autocast over float32.

    Args:
        how: the setting of float32 products (`matmul`).
    """
    x = _normal(TOKENS.get(device, 8192), WIDTH, device=device).requires_grad_()
    w = _normal(WIDTH, WIDTH, device=device)
    grads = {dtype: torch.ones_like(x, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}

    def step(bf16: bool) -> None:
        with torch.enable_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            y = F.linear(x, w)
        torch.autograd.grad(y, x, grads[y.dtype])

    with matmul(how):
        seconds = race({"fp32": lambda: step(False), "bf16": lambda: step(True)}, device)
    return seconds["fp32"] / seconds["bf16"]


@lru_cache
def eager_gain(bf16: bool, how: str, length: int) -> float:
    """Speed of attention written out over torch's fused one on a CPU, forward and backward.

    Over the same number of tokens in sequences of `length` (at most LONGEST), a half and a quarter of it:
    batches are cut by length, and most rows are shorter than the longest.
    """
    length, dtype = min(length, LONGEST), torch.bfloat16 if bf16 else torch.float32
    lengths = [max(8, length // part) for part in (4, 2, 1)]
    shapes = [(3, -(-TOKENS["cpu"] // n), HEADS, n, HEAD_WIDTH) for n in lengths]
    inputs = [_normal(*shape).to(dtype).requires_grad_() for shape in shapes]
    masks = [torch.zeros(x.shape[1], 1, n, n, dtype=dtype) for x, n in zip(inputs, lengths, strict=True)]

    def step(attend: Callable[..., Tensor]) -> None:
        with torch.enable_grad():
            for x, mask in zip(inputs, masks, strict=True):
                out = attend(*x, mask)
                torch.autograd.grad(out, x, torch.ones_like(out))

    with matmul(how):
        seconds = race(
            {
                "eager": lambda: step(_written_out),
                "sdpa": lambda: step(lambda *args: F.scaled_dot_product_attention(*args).transpose(1, 2)),
            }
        )
    return seconds["sdpa"] / seconds["eager"]


@lru_cache
def grouped_gains(device: str) -> dict[int, float]:
    """Tokens of a task, side by side -> speed of a low-rank update in groups over one product per sequence.

    Forward and backward in bfloat16; empty where the device cannot do it, or comes to other values.
    """
    try:
        return {tokens: _grouped_gain(device, tokens) for tokens in PER_TASK}
    except Exception:  # whatever a device or a version of torch raises
        return {}


def _grouped_gain(device: str, per_task: int) -> float:
    """Raises: ArithmeticError: the values differ by more than rounding."""
    tasks, length = MANY // per_task, min(per_task, SEQUENCE)
    taken = [task for task in range(tasks) for _ in range(per_task // length)]
    parts = [Part(0, MANY, torch.tensor(taken, device=device), None)]
    ways = {"batched": None, "grouped": Runs.of([length] * len(taken), taken, torch.device(device))}
    x = _normal(DRAWN, WIDTH, device=device).bfloat16().repeat(MANY // DRAWN, 1)
    down, up = (_normal(tasks, RANK, WIDTH, device=device).bfloat16() for _ in range(2))
    grad = x.flip(0)
    x.requires_grad_()

    def step(runs: Runs | None) -> list[Tensor]:
        sinks = [torch.zeros_like(factor, dtype=torch.float32) for factor in (down, up)]
        update = Update([None], [None], parts, None, 1 / WIDTH, sinks=lambda: sinks, runs=runs)
        with torch.enable_grad():
            (y,) = LowRank.apply(x, down, update, x, up)
        return [y.detach(), *torch.autograd.grad(y, x, grad), *sinks]

    values = zip(*(step(runs) for runs in ways.values()), strict=True)
    if not all((own - other).norm() <= BF16 * own.norm() for own, other in values):
        raise ArithmeticError(f"Grouped products on {device} differ from batched ones.")
    seconds = race({name: lambda runs=runs: step(runs) for name, runs in ways.items()}, device)
    return seconds["batched"] / seconds["grouped"]


def race(steps: Mapping[str, Callable[[], object]], device: str = "cpu") -> dict[str, float]:
    """Seconds of each function: the best of interleaved rounds, after one that does not count."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    best, threads, started = dict.fromkeys(steps, float("inf")), torch.get_num_threads(), clock()
    torch.set_num_threads(1)
    try:
        for count in range(ROUNDS + 1):
            for name, step in steps.items():
                begun = clock()
                step()
                if device != "cpu":
                    torch.accelerator.synchronize()
                best[name] = min(best[name], clock() - begun) if count else best[name]
            if count > 1 and clock() - started > SECONDS:
                break
    finally:
        torch.set_num_threads(threads)
    return best


def matmul_setting() -> str:
    """How torch computes float32 matrix products at present."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer names, which have no answer to this
        return "highest"


@contextmanager
def matmul(how: str) -> Iterator[None]:
    """Inside, torch's float32 matrix products are "highest", "high" or "medium"; see
    `torch.set_float32_matmul_precision`."""
    places = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    before, settings = matmul_setting(), [place.fp32_precision for place in places]
    torch.set_float32_matmul_precision(how)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for place, setting in zip(places, settings, strict=True):
            place.fp32_precision = setting


def _written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As transformers' eager attention: scores of all pairs, softmax in float32."""
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + mask
    return (scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value).transpose(1, 2).contiguous()


def _normal(*shape: int, device: str = "cpu") -> Tensor:
    """Numbers that leave torch's own generators as they are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
