"""The matrix-multiply peak of this machine, and the share of it that a training step reaches.

Run:     python benchmarks/peak.py [--json peak.json]
Cost:    five minutes; with --quick half a minute
First torch.nn.functional.linear alone over several shapes, in fp32 (matmul precision "highest", torch's
default, and "medium") and bf16, on one thread (CPU time) and on two (wall clock). The best shape is the
peak. Then, interleaved with that matmul, forward and backward of one step of width 384 (2,048 tokens in
rows of 128, 16 tasks live of 64), ours and that of one shared peft LoRA. What a step must multiply, and
nothing else, is counted:

    a frozen linear layer   2 N I O forward, 2 N I O for its input's gradient (0 where that is the embeddings)
    its LoRA                2 N R (I + O) forward, twice that backward
    attention               4 N L D forward, 8 N L D backward, per layer

Element-wise work, softmax, norms, the heads, data and optimizer count as nothing, so 100 % cannot be
reached. The share is of the peak in the same precision; where "medium" rounds to bfloat16 (processors with
AMX), it is no way to compute in fp32 and only reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import step
import torch
import torch.nn.functional as F
from _kit import Row, arguments, middle, report, rounds
from _parts import RANK, settled

from mtnlp.train import timings
from mtnlp.train.engine import ROUNDING

SHAPES = [(4096, 4096, 4096), (2048, 1024, 1024), (1024, 1024, 1024), (2048, 384, 1536), (2048, 1536, 384)]
TARGET = 0.6
LENGTH, WIDTH, LAYERS = 128, 384, 6


def matmul(shape: tuple, precision: str, work: float) -> tuple[Callable[[], None], float]:
    """Repeats a product until that was about `work` floating-point operations; and how many it was."""
    tokens, inputs, outputs = shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight = (torch.randn(rows, inputs).to(dtype) for rows in (tokens, outputs))
    once = 2 * tokens * inputs * outputs
    times = max(1, round(work / once))

    @torch.no_grad()
    def run() -> None:
        for _ in range(times):
            F.linear(x, weight)

    return run, times * once


def flops(tokens: int, length: int = LENGTH, width: int = WIDTH, layers: int = LAYERS) -> float:
    """Of forward and backward of the step that step.py times; see above."""
    linears = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    frozen = sum(2 * tokens * i * o for i, o in linears)
    lora = sum(2 * tokens * RANK * (i + o) for i, o in linears)
    attention = 4 * tokens * length * width
    first = 3 * 2 * tokens * width * width  # query, key and value of the first layer need no input gradient
    return layers * (2 * frozen + 3 * (lora + attention)) - first


def peaks(kinds: list[tuple[str, str]], threads: int, options) -> dict[tuple[str, str], tuple[float, tuple]]:
    """(precision, matmul precision) -> the best rate in GFLOP/s, and its shape."""
    work, found = 2e9 if options.quick else 2e10, {}
    for precision, setting in kinds:
        torch.set_float32_matmul_precision(setting)
        made = {str(shape): matmul(shape, precision, work) for shape in SHAPES}
        times = rounds({name: run for name, (run, _) in made.items()}, count=options.rounds, threads=threads)
        rates = {shape: made[str(shape)][1] / median(times[str(shape)]) / 1e9 for shape in SHAPES}
        shape = max(rates, key=rates.get)
        found[precision, setting] = rates[shape], shape
    return found


def shares(precision: str, setting: str, shape: tuple, threads: int, options) -> list[Row]:
    """Of the peak, round by round; all with the same matmul precision."""
    torch.set_float32_matmul_precision(setting)
    tokens = 512 if options.quick else step.TOKENS
    rows = step.Rows.even(LENGTH, tokens // LENGTH, 64, tokens)
    product, work = matmul(shape, precision, flops(tokens))
    cases = {
        "matmul": product,
        "mtnlp": step.ours(rows, precision),
        step.SHARED: step.shared(rows, precision),
    }
    times = rounds(cases, count=options.rounds, threads=threads)
    found = []
    for name, target in (("mtnlp", TARGET), ("peft shared", None)):
        ratios = [flops(tokens) / work * peak / mine for mine, peak in zip(times[name], times["matmul"])]
        note = f"{flops(tokens) / median(times[name]) / 1e9:.0f} GFLOP/s"
        found.append(Row(f"{name}, share of peak", "matmul", *middle(ratios), target, False, note))
    return found


def main() -> int:
    options = arguments(__doc__).parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    _, engine = settled("lora-per-task", attention="eager", precision="fp32", matmul="highest")
    with engine.applied(training=True):
        report("Share of the matrix-multiply peak", measure(options), options)
    return 0


def measure(options) -> dict[str, list[Row]]:
    kinds, groups = [("fp32", "highest"), ("fp32", "medium"), ("bf16", "medium")], {}
    coarse = [] if timings.medium_gain()[1] < ROUNDING else [("fp32", "medium")]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        best = peaks(kinds, threads, options)
        groups[f"threads: {threads}, peak in GFLOP/s"] = [
            Row(f"{precision}, matmul precision {setting}", "-", *[rate] * 3, note="x".join(map(str, shape)))
            for (precision, setting), (rate, shape) in best.items()
        ]
        for precision in ("fp32", "bf16"):
            same = [kind for kind in best if kind[0] == precision and kind not in coarse]
            setting = max(same, key=lambda kind: best[kind][0])[1]
            shape, title = best[precision, setting][1], f"threads: {threads}, a step in {precision}"
            groups[title] = shares(precision, setting, shape, threads, options)
    return groups


if __name__ == "__main__":
    sys.exit(main())
