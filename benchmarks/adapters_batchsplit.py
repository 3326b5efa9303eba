"""A step with a LoRA per task: ours against BatchSplit of the `adapters` library, in one process.

Run:     python benchmarks/adapters_batchsplit.py [--json adapters.json], in an environment of its own:
         pip install torch==2.13.0 adapters peft accelerate datasets minijinja pydantic pyyaml
Cost:    ten minutes on one core; under a minute with --quick
`adapters` pins a transformers (4.57) older than mtnlp declares, hence the environment; what mtnlp needs of
transformers for this encoder is there too, so both run side by side, beside peft's shared LoRA as in
step.py. All cases have the same network, rows, precision, eager attention and matmul settings as `step.py
--lengths 32`. adapters wraps 30 of the 36 linear layers (it knows no LoRA on the output of attention), ours
and peft's all 36. Before timing: every live task's LoRA and no other must get a gradient from BatchSplit,
else exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import step
import torch
import torch.nn.functional as F
from _kit import Row, arguments, compared, report, rounds
from _parts import ALPHA, LABELS, RANK, bert
from torch import Tensor, nn

TASKS = {16: None, 64: 2.4}  # tasks -> how many times faster than BatchSplit ours is to be
SINGLE, SPLIT = "adapters single LoRA", "adapters BatchSplit"


def network(names: list[str]) -> nn.Module:
    """The usual encoder with a LoRA of each name."""
    import adapters
    from adapters import LoRAConfig

    net = bert()
    adapters.init(net)
    for name in names:
        net.add_adapter(
            name,
            config=LoRAConfig(
                r=RANK,
                alpha=ALPHA,
                attn_matrices=["q", "k", "v"],
                selfattn_lora=True,
                intermediate_lora=True,
                output_lora=True,
            ),
        )
    return net


def split_over(rows: step.Rows) -> nn.Module:
    """The encoder with an adapter per task, and every row sent through its task's."""
    from adapters.composition import BatchSplit

    net = network([f"a{task}" for task in range(rows.total)])
    net.train_adapter(BatchSplit(*[f"a{task}" for task in rows.live], batch_sizes=rows.counts.tolist()))
    return net.train()


def single() -> nn.Module:
    net = network(["one"])
    net.train_adapter("one")
    return net.train()


def case(net: nn.Module, ends: np.ndarray, data: tuple[Tensor, ...], precision: str) -> Callable[[], None]:
    """Forward and backward with a head for each stretch of rows."""
    ids, mask, labels = data
    torch.manual_seed(1)
    starts = [0, *ends[:-1]]
    heads = [(nn.Linear(384, len(LABELS)), slice(int(a), int(b))) for a, b in zip(starts, ends)]
    trained = [p for p in net.parameters() if p.requires_grad]
    trained += [p for head, _ in heads for p in head.parameters()]

    def run() -> None:
        with step.autocast(precision):
            hidden = net(input_ids=ids, attention_mask=mask).last_hidden_state
        states = hidden.float().mean(1)
        losses = [F.cross_entropy(head(states[own]), labels[own], reduction="sum") for head, own in heads]
        (torch.stack(losses).sum() / len(labels)).backward()
        for parameter in trained:
            parameter.grad = None

    return run


def only_live_learn() -> bool:
    rows = step.Rows.drawn(32, 16, 256)
    net, (ids, mask, _) = split_over(rows), rows.tensors()
    net(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()
    learn = {
        name.partition(".loras.")[2].partition(".")[0]
        for name, p in net.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    return learn == {f"a{task}" for task in rows.live}


def measure(rows: step.Rows, precision: str, options) -> list[Row]:
    ends, data = np.cumsum(rows.counts), rows.tensors()
    cases = {
        "mtnlp": step.ours(rows, precision),
        SPLIT: case(split_over(rows), ends, data, precision),
        SINGLE: case(single(), ends[-1:], data, precision),
        step.SHARED: step.shared(rows, precision),
    }
    times = rounds(cases, count=options.rounds, threads=options.threads)
    return [
        compared(times, SPLIT, "mtnlp", name=f"{SPLIT} / mtnlp", target=TASKS[rows.total], most=False),
        compared(times, SPLIT, SINGLE, name=f"{SPLIT} / {SINGLE}"),
        compared(times, "mtnlp", SINGLE, name=f"mtnlp / {SINGLE}"),
        compared(times, "mtnlp", step.SHARED, name=f"mtnlp / {step.SHARED}"),
        compared(times, SINGLE, step.SHARED, name=f"{SINGLE} / {step.SHARED}"),
    ]


def main() -> int:
    options = arguments(__doc__).parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    right = only_live_learn()
    groups = {}
    for precision in ("fp32", "bf16"):
        for total in list(TASKS)[:1] if options.quick else TASKS:
            rows = step.Rows.drawn(32, total, 256 if options.quick else step.TOKENS)
            title = f"{precision}, {len(rows.of_task)} rows of 32, {len(rows.live)} of {total} tasks live"
            groups[title] = measure(rows, precision, options)
    report("BatchSplit of adapters", groups, options, only_live_learn=right)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
