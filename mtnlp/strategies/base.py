"""The face of a strategy, and how the layers it puts into a backbone learn whose row they see.

Shapes: T tasks of the run, U live tasks (those in the current step), S sequences of a batch, L their padded
length, Lt the padded length of text targets, P parameters of one task's row in the bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mtnlp.data.stream import Block
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.strategies._bank import Bank


class Part(NamedTuple):
    """Tokens start..stop-1 of a layer's input: n stretches of one length, each with its row."""

    start: int
    stop: int
    rows: Tensor  # (n,) int64, position among the live tasks
    taken: list[int] | None  # the same on the host; None where rows are on another device

    @classmethod
    def of(cls, start: int, stop: int, rows: Tensor) -> Part:
        """Of sequences with the given rows. Neighbours with one row are one stretch if all rows have equally
        many: fewer and larger products then."""
        if rows.device.type != "cpu":
            return cls(start, stop, rows, None)
        taken = rows.tolist()
        each = len(taken) // len(found := list(dict.fromkeys(taken)))
        if each > 1 and taken == [row for row in found for _ in range(each)]:
            return cls(start, stop, rows[::each], found)
        return cls(start, stop, rows, taken)


class Runs(NamedTuple):
    """All tokens of a layer's input as G runs of neighbours with one row."""

    stops: Tensor  # (G,) int32, where each ends
    rows: Tensor  # (G,) int64, position among the live tasks

    @classmethod
    def of(cls, lengths: Sequence[int], taken: Sequence[int], device: torch.device) -> Runs:
        """Of sequences that lie one after the other: (S,) tokens and (S,) row of each. Takes no sync.

        None is empty, as no sequence is: kernels have hung on empty groups.
        """
        rows, last = torch.tensor(taken), torch.ones(len(taken), dtype=torch.bool)
        last[:-1] = rows[1:] != rows[:-1]
        stops = torch.tensor(lengths).cumsum(0).int()
        return cls(*(found[last].to(device, non_blocking=True) for found in (stops, rows)))


class Routing:
    """Which live row every sequence of the batch belongs to; one object for all layers of a strategy.

    Set before a forward and valid until its backward has run (gradient checkpointing runs the forward again).
    A batch comes padded, (S, L, ...), or flat, (1, N, ...): the sequences of `blocks`, one after the other.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # (S,) int64, position among the live tasks
        self.taken: list[int] | None = None  # `rows` on the host, where known
        self.only: int | None = None  # the position that all S sequences share, None when they differ
        self.mask: Tensor | None = None  # (S, L) or (1, N) attention mask, for statistics over tokens
        self.target_mask: Tensor | None = None  # the same for the decoder of an encoder-decoder
        self.joined: dict[int, Any] = {}  # what layers that read the same input have computed for each other
        self._parts: dict[int, list[Part]] = {}  # tokens of a flat stream -> its parts; none = padded
        self._lengths: dict[int, list[int]] = {}  # the same -> tokens of every sequence
        self._runs: dict[int, Runs] = {}
        self._gates: dict[tuple, Tensor] = {}

    def lay_out(self, blocks: Sequence[Block]) -> None:
        """Say how the sequences of a flat batch lie in its streams; () = the batch is padded.

        The streams of sources and of targets are told apart by their number of tokens, so these must differ.
        """
        streams = [[block.length for block in blocks], [block.target_length for block in blocks]]
        totals = [
            sum(block.sequences * length for block, length in zip(blocks, lengths)) for lengths in streams
        ]
        assert not blocks or totals[0] != totals[1], "source and target streams are of equal length"
        self._parts, self._lengths, self._runs, self._gates, self.joined = {}, {}, {}, {}, {}
        for total, lengths in zip(totals, streams):
            self._lengths[total] = [
                length for block, length in zip(blocks, lengths) for _ in range(block.sequences)
            ]
            token = sequence = 0
            for block, length in zip(blocks, lengths):
                rows = self.rows[sequence : sequence + block.sequences]
                stop = token + block.sequences * length
                if stop > token:
                    self._parts.setdefault(total, []).append(Part.of(token, stop, rows))
                token, sequence = stop, sequence + block.sequences

    def parts(self, x: Tensor) -> list[Part]:
        """The parts of a layer's input x, (S, ..., I) padded or (1, N, I) flat, seen as (tokens, I).

        A padded batch is one part; its rows are repeated if the backbone expanded it (beams)."""
        tokens = x.numel() // x.shape[-1]
        if self._parts:
            return self._parts[tokens]
        return [Part.of(0, tokens, self.rows_for(len(x)))]

    def runs(self, x: Tensor) -> Runs | None:
        """The tokens of `parts` in as few runs as can be; None where the host does not know their rows.

        Made once for all layers."""
        if self.taken is None:
            return None
        tokens = x.numel() // x.shape[-1]
        if tokens not in self._runs:
            each = tokens // len(self.taken)  # padded; those of an expanded batch (beams) lie side by side
            lengths = self._lengths[tokens] if self._parts else [each] * len(self.taken)
            self._runs[tokens] = Runs.of(lengths, self.taken, x.device)
        return self._runs[tokens]

    def gate(self, x: Tensor, rows: int, rank: int, scale: float | Tensor) -> Tensor:
        """(N, rows * rank) in the type of x: the scale of each token's own row in its `rank` columns, else 0.

        x (..., I) has N tokens; scale is that of all rows or (rows,). Made once for all layers.
        """
        tokens = x.numel() // x.shape[-1]
        key = (tokens, rows, rank, x.dtype)
        if key not in self._gates:
            own = torch.cat(
                [
                    part.rows.repeat_interleave((part.stop - part.start) // len(part.rows))
                    for part in self.parts(x)
                ]
            )
            scales = scale if isinstance(scale, Tensor) else torch.full((rows,), scale, device=own.device)
            gate = torch.diag(scales.to(x.dtype))[own]
            self._gates[key] = gate.repeat_interleave(rank, dim=1)
        return self._gates[key]

    def rows_for(self, sequences: int) -> Tensor:
        """(sequences,) rows; each repeated if the backbone expanded the batch (beams: repeat_interleave)."""
        if len(self.rows) == sequences:
            return self.rows
        return self.rows.repeat_interleave(sequences // len(self.rows))


class Strategy(nn.Module, ABC):
    """Edits a backbone in place and says which parameters are shared and which belong to a task.

    Options come in `__init__` (keyword-only, what YAML can say). After `attach`, everything trainable is
    either a parameter of the backbone with requires_grad (shared by all tasks) or in `bank` (one row per
    task).
    """

    families: tuple[str, ...] = ("encoder", "encoder-decoder", "decoder")  # the backbones it can work with

    def __init__(self) -> None:
        super().__init__()
        self.bank: Bank | None = None
        self.routing = Routing()

    @abstractmethod
    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        """Freeze and edit `backbone` for the (T,) named tasks. With fresh parameters the outputs stay those
        of the backbone, exactly, for every strategy. A task's own parameters depend on (seed, its name) only.

        Raises:
            MtnlpError: the backbone has no module to adapt; the message names the pattern.
        """

    def begin(self, live: Sequence[int]) -> None:
        """Start a step (or an evaluation) in which only the (U,) tasks `live` occur: gather their rows."""
        if self.bank is not None:
            self.bank.gather(live)

    def holds(self, tasks: Sequence[int]) -> bool:
        """Whether batches of `tasks` can be run as things are, without another `begin`."""
        return self.bank is None or self.bank.holds(tasks)

    def select(
        self,
        task_ids: Tensor,
        mask: Tensor,
        *,
        tasks: Sequence[int] | None = None,
        target_mask: Tensor | None = None,
        blocks: Sequence[Block] = (),
        on_host: Sequence[int] | None = None,
    ) -> None:
        """Tell the layers whose rows the next batch holds.

        Args:
            task_ids: (S,) task indices, all of them live; of a flat batch in the order of its stream.
            mask: (S, L) attention mask; target_mask: (S, Lt), 1 on real target tokens of an encoder-decoder.
                Of a flat batch: (1, N) and (1, Nt).
            tasks: the different task indices in task_ids, where known; spares the device a sync.
            blocks: of a flat batch, how its sequences lie in the stream; () = padded.
            on_host: (S,) what task_ids holds, where grouped products may use it; see `kernels.grouped`.
        """
        tasks = task_ids.unique().tolist() if tasks is None else tasks
        bank, routing = self.bank, self.routing
        routing.mask, routing.target_mask = mask, target_mask
        routing.rows = task_ids if bank is None else bank.position(task_ids)
        routing.taken = None
        if bank is not None and on_host is not None:
            position = {task: row for row, task in enumerate(bank.live)}
            routing.taken = [position[task] for task in on_host]
        routing.only = bank.live.index(tasks[0]) if bank is not None and len(tasks) == 1 else None
        routing.lay_out(blocks)

    def aux_loss(self) -> Tensor | None:
        """() extra loss of the batch just seen (a router's load balance), already scaled; None = nothing."""
        return None

    def export(self, task: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What `task` learned in peft's LoRA file format: (adapter_config.json, tensors by name). None = it
        has no form that peft knows."""
        return None

    def adopt(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Put what `export` gave into the task's own row, bit for bit.

        Raises:
            MtnlpError: names or shapes that are not those of this strategy on this backbone; or it has no way
                to take adapters back, so that its bundles cannot be loaded.
        """
        raise MtnlpError(f"{type(self).__name__} cannot take back the adapters that it gives away.")


def freeze(backbone: Backbone) -> None:
    """Stop training the backbone, but for weights that no checkpoint gave it: random ones must learn."""
    for name, parameter in backbone.net.named_parameters():
        parameter.requires_grad_(name in backbone.fresh)


def require(condition: bool, message: str) -> None:
    """MtnlpError(message) unless the option is as it must be."""
    if not condition:
        raise MtnlpError(message)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matmul with `x` computes in: autocast's type where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
