"""What device.py is made of: the device with its clock and memory, a network on it, the rows of a step.

All that is put into a network (LoRAs of ours and of peft's) is put into copies of its modules that share its
weights, so that many sides are on the device at once.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _kit import Row, clock_for, timed
from _parts import (
    BERT_LINEARS,
    END,
    LABELS,
    PAD,
    RANK,
    VOCABULARY,
    bert_shape,
    classified,
    random_tokens,
    tokenizer,
    with_peft,
)  # fmt: skip
from torch import Tensor, nn

from mtnlp import assemble
from mtnlp.config import Recipe
from mtnlp.data.encode import Columns
from mtnlp.data.mixture import StepPlan
from mtnlp.data.store import TokenStore
from mtnlp.data.task_data import TaskData
from mtnlp.models.backbone import Backbone
from mtnlp.resolve import Plan
from mtnlp.strategies._lora import block_linears
from mtnlp.tasks.spec import TaskSpec
from mtnlp.train.loop import Run

LLAMA_LINEARS = r".*layers\.\d+\..*_proj"
CUTS = (4096, 16384)  # tokens of a micro-batch of rows of many lengths
ROOM = 30 * 2**30  # bytes that a step must have beside bank and moments
Case = Callable[[], Any]


class Device:
    """Clock, memory and precision of the device, and the best rate of its bf16 products.

    Attributes:
        settings: of every run here. peak: floating-point operations per second; nan until `measure_peak`.
    """

    def __init__(self, options: Namespace, settings: Recipe) -> None:
        self.kind, self.options, self.settings, self.peak = options.device, options, settings, math.nan
        self.clock = time.perf_counter if self.kind == "cuda" else clock_for(options.threads)

    def __str__(self) -> str:
        if self.kind != "cuda":
            return "cpu"
        about = torch.cuda.get_device_properties(0)
        return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"

    def autocast(self, precision: str) -> contextlib.AbstractContextManager:
        return torch.autocast(self.kind, torch.bfloat16, enabled=precision == "bf16")

    def wait(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def stopwatch(self, case: Case) -> Callable[[], float]:
        def run() -> float:
            self.wait()
            start = self.clock()
            case()
            self.wait()
            return self.clock() - start

        return run

    def rounds(self, cases: Mapping[str, Case], count: int | None = None) -> dict[str, list[float]]:
        watched = {name: self.stopwatch(case) for name, case in cases.items()}
        return timed(watched, count or self.options.rounds, warmup=1)

    def held(self) -> int:
        """Bytes of live tensors; 0 where nobody counts them."""
        self.wait()
        return torch.cuda.memory_allocated() if self.kind == "cuda" else 0

    def added(self, case: Case) -> int:
        """Bytes that a case needs at its height beside what is there before it."""
        before = self.held()
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        case()
        self.wait()
        return torch.cuda.max_memory_allocated() - before if self.kind == "cuda" else 0

    def spare(self) -> float:
        """Bytes that are left for tensors."""
        if self.kind != "cuda":
            return math.inf
        return torch.cuda.get_device_properties(0).total_memory - self.held()

    def clean(self) -> None:
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def measure_peak(self, shapes: Sequence[tuple[int, int, int]]) -> list[Row]:
        """A row for each (tokens, inputs, outputs), in TFLOP/s."""
        found = []
        for tokens, inputs, outputs in shapes:
            sizes = [(tokens, inputs), (outputs, inputs)]
            x, weight = (torch.randn(size, device=self.kind).bfloat16() for size in sizes)
            many = max(1, int(1e13 if self.kind == "cuda" else 2e9) // (2 * tokens * inputs * outputs))
            (times,) = self.rounds({"product": partial(_products, x, weight, many)}).values()
            rate = 2 * tokens * inputs * outputs * many / median(times)
            self.peak = rate if math.isnan(self.peak) else max(self.peak, rate)
            found.append(Row(f"{tokens} x {inputs} x {outputs}", "-", *[rate / 1e12] * 3, note="TFLOP/s"))
        return found


def _products(x: Tensor, weight: Tensor, many: int) -> None:
    for _ in range(many):
        F.linear(x, weight)


class Network:
    """One network, its rows, and all that was put into copies of it; the copies share its weights.

    Args:
        net: on the device. shapes: (rows, tokens of each) of the steps; mixed: (N,) lengths of the step with
        rows of many lengths.
    """

    def __init__(
        self,
        device: Device,
        net: nn.Module,
        family: str,
        shapes: Sequence[tuple[int, int]],
        mixed: np.ndarray,
    ) -> None:
        self.device, self.net, self.family, self.shapes = device, net.requires_grad_(False), family, shapes
        self.width = net.config.hidden_size
        self.targets = BERT_LINEARS if family == "encoder" else LLAMA_LINEARS
        self.lengths = np.concatenate([*(np.full(*shape) for shape in shapes), mixed])
        self.tokens = random_tokens(self.lengths)
        self.labels = np.random.default_rng(1).integers(0, len(LABELS), len(self.lengths))
        self.store = self._store()
        self.weights = sum(p.nbytes for p in net.parameters())
        found = block_linears(Backbone(net, None, family)).values()
        self.linears = [(linear.in_features, linear.out_features) for linear in found]
        self.own = sum(RANK * (i + o) for i, o in self.linears)  # parameters of a task
        self.made: dict[Any, Any] = {}
        self.kept: dict[Any, int] = {}

    def _store(self) -> TokenStore:
        if self.family == "encoder":
            return classified(self.tokens, self.labels)
        sizes = self.lengths.astype(np.int32)
        arrays = {
            "sequences": np.ones_like(sizes), "length": sizes, "target_length": np.zeros_like(sizes),
            "token_counts": sizes, "tokens": np.concatenate(self.tokens).astype(np.uint16),
            "prompt_lengths": sizes - sizes // 8,
        }  # fmt: skip
        return TokenStore.from_columns(Columns(arrays, "generate", "decoder", 0, True, ()))

    def copy(self) -> nn.Module:
        """The same network in other modules, which can be edited."""
        shared = chain(self.net.parameters(), self.net.buffers())
        return copy.deepcopy(self.net, {id(tensor): tensor for tensor in shared})

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def forget(self) -> None:
        """Drop all that was put into copies."""
        self.made.clear()
        self.kept.clear()

    def run(self, total: int, on_cpu: bool = False) -> Run:
        """Ours with T tasks, as assemble makes it, but on weights that are there."""
        return self.once(("ours", total, on_cpu), lambda: self._run(total, on_cpu))

    def _run(self, total: int, on_cpu: bool) -> Run:
        settings = self.device.settings
        train = settings.train.model_copy(update={"bank_on_cpu": on_cpu, "max_tokens": max(CUTS)})
        settings = settings.model_copy(update={"train": train})
        kind, labels = ("classify", LABELS) if self.family == "encoder" else ("generate", None)
        specs = [TaskSpec(f"task{i}", kind, {}, labels=labels) for i in range(total)]
        backbone = Backbone(self.copy(), tokenizer(), self.family)
        plan = Plan(settings, tuple(TaskData(spec, {}) for spec in specs))
        encoder = assemble.encoder_for(settings, backbone.tokenizer, self.family)
        accelerator = assemble.build_accelerator(settings)
        run = assemble.build_run(plan, backbone, [self.store] * total, encoder, accelerator)
        run.model.train()
        return run

    def few(self, total: int) -> int:
        """As many tasks as are asked for, fewer in a quick run."""
        return min(total, 70) if self.device.options.quick else total

    def fits(self, total: int) -> bool:
        new = ("ours", total, False) not in self.made
        return not new or 12 * total * self.own + ROOM < self.device.spare()

    def peft(self, adapters: int, *, bf16: bool = False) -> nn.Module:
        def make() -> nn.Module:
            net = copy.deepcopy(self.net).bfloat16() if bf16 else self.copy()
            return with_peft(net, adapters, self.targets, autocast_adapter_dtype=False)

        return self.once(("peft", adapters, bf16), make)

    def work(self, lengths: np.ndarray) -> float:
        """Floating-point operations of forward and backward; see peak.py."""
        tokens = int(lengths.sum())
        frozen = sum(2 * tokens * i * o for i, o in self.linears)
        lora = sum(2 * tokens * RANK * (i + o) for i, o in self.linears)
        seen = 1 if self.family == "encoder" else 0.5
        attention = 4 * seen * float((lengths.astype(float) ** 2).sum()) * self.width
        first = sum(2 * tokens * i * o for i, o in self.linears[:3])  # no gradient for the embeddings
        return 2 * frozen - first + 3 * (lora + attention * self.net.config.num_hidden_layers)


class Rows:
    """The rows of a step and the task of each: `live` of `total` tasks, with equally many rows.

    shape: (rows, length), or None = those of many lengths.
    """

    def __init__(self, network: Network, shape: tuple[int, int] | None, live: int, total: int) -> None:
        sizes = [count for count, _ in network.shapes]
        at = len(sizes) if shape is None else network.shapes.index(shape)
        self.first, stop = sum(sizes[:at]), sum(sizes[: at + 1]) if at < len(sizes) else None
        self.lengths, self.total = network.lengths[self.first : stop], total
        self.tasks = np.linspace(0, total - 1, live).astype(int)
        self.of_task = np.sort(np.resize(self.tasks, len(self.lengths)))
        self.network = network

    def plan(self) -> StepPlan:
        own = [self.first + np.flatnonzero(self.of_task == task) for task in self.tasks]
        return StepPlan(0, tuple(self.tasks.tolist()), tuple(own))

    def parts(self) -> list[Tensor]:
        """The places of each task's rows, on the device."""
        kind = self.network.device.kind
        return [torch.from_numpy(np.flatnonzero(self.of_task == task)).to(kind) for task in self.tasks]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and labels, what the peers read; all rows have one length."""
        network, stop = self.network, self.first + len(self.lengths)
        ids = torch.from_numpy(np.stack(network.tokens[self.first : stop])).to(network.device.kind)
        labels = torch.from_numpy(network.labels[self.first : stop]).to(ids.device)
        return ids, torch.ones_like(ids), labels


def build(family: str, device: Device) -> Network:
    """A network with random weights, the same every time, on the device."""
    from transformers import BertModel, LlamaConfig, LlamaForCausalLM

    quick, draw = device.options.quick, np.random.default_rng(2)
    torch.manual_seed(0)
    if family == "encoder":
        shape = bert_shape(*((64, 2) if quick else (768, 12)))
        shape.num_attention_heads = shape.hidden_size // 64
        shapes, mixed = (
            [(64, 8), (16, 16), (64, 16)] if quick else [(64, 32), (16, 128), (256, 128)],
            (60, 0.9, 512),
        )
    else:
        width, layers, heads, inner = (64, 2, 4, 128) if quick else (2048, 16, 32, 8192)
        shape = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads // 4, max_position_embeddings=2048,
            pad_token_id=PAD, eos_token_id=END, bos_token_id=2, tie_word_embeddings=True,
        )  # fmt: skip
        shapes, mixed = [(16, 16)] if quick else [(16, 512)], (200, 0.6, 1024)
    middle, spread, most = mixed
    count = 32 if quick else 256 if family == "encoder" else 128
    lengths = np.exp(np.log(middle) + spread * draw.standard_normal(count))
    lengths = np.clip(lengths, 8, 64 if quick else most).astype(int)
    with torch.device(device.kind):
        net = BertModel(shape, add_pooling_layer=False) if family == "encoder" else LlamaForCausalLM(shape)
    return Network(device, net, family, shapes, lengths)
