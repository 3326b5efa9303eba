"""What the runs of a comparison came to: their answers row by row, and what they cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import fmean

from mtnlp.bench import comparison
from mtnlp.bench.comparison import Side
from mtnlp.bench.evaluate import Report
from mtnlp.bench.suites import Entry, Suite
from mtnlp.compare import reuse, verdicts
from mtnlp.compare.outcome import Costs, Variant
from mtnlp.compare.reuse import JOINT, Job
from mtnlp.errors import MtnlpError
from mtnlp.runs import harness, session, targets
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.lineup import Group

TIMED = 32  # rows of each task that latency is measured on


def judged(groups: Sequence[Group], runs: Path, *, trust_remote_code: bool = False) -> list[Variant]:
    """The verdicts of every variant. A run is asked once, and its answers are kept."""
    kept: dict[str, dict[str, tuple[Side, str]]] = {}
    for job in (job for group in groups for job in group.jobs):
        if job.name not in kept:
            kept[job.name] = _sides(runs, job, trust_remote_code)
    found = []
    for group in groups:
        alone = {task: [kept[job.name][task][0] for job in jobs] for task, jobs in group.baselines.items()}
        joint = {task: [kept[job.name][task][0] for job in group.joint] for task in group.baselines}
        splits = {task: kept[group.joint[0].name][task][1] for task in group.baselines}
        costs = replace(_costs(runs, group.joint), latency=reuse.measured(runs, group.joint[0])["latency"])
        baselines = _sum([_costs(runs, jobs) for jobs in group.baselines.values()])
        found.append(Variant(group.name, verdicts.verdicts(alone, joint, splits), costs, baselines))
    return found


def _sides(runs: Path, job: Job, trust_remote_code: bool) -> dict[str, tuple[Side, str]]:
    """Task -> what a run did on its final rows, row by row, and the name of their split."""
    folder = RunFolder(runs / job.name)
    target = targets.open_target(str(folder.path), trust_remote_code=trust_remote_code)
    report = Report.from_dict(json.loads(folder.results.read_text("utf-8")))
    splits = {score.task: score.split for score in report.scores}
    entries = tuple(Entry(data.spec, splits[data.spec.name], data.spec.metrics[0]) for data in job.data)
    opened = {data.spec.name: data for data in job.data}
    suite = Suite("own tasks", 1, "", entries, (), folder.path)
    found = harness.evaluate(target, suite, opened=opened, resamples=0)
    if found.report.skipped:
        raise MtnlpError("\n".join(f"{item['task']}: {item['reason']}" for item in found.report.skipped))
    if job.label == JOINT and "latency" not in reuse.measured(runs, job):
        reuse.keep(runs, job, latency=_latency(target, job, splits))
    return {side.task: (side, splits[side.task]) for side in comparison.sides(found.judged, "")}


def _latency(target: targets.Target, job: Job, splits: Mapping[str, str]) -> float:
    """Seconds per row: at most TIMED rows of each task in shared batches, after as many to warm up."""
    asked = {
        i: session.questions_of(data, splits[data.spec.name], most=TIMED) for i, data in enumerate(job.data)
    }
    target.predictor(asked)
    started = time.perf_counter()
    target.predictor(asked)
    return (time.perf_counter() - started) / sum(len(part.examples) for part in asked.values())


def _costs(runs: Path, jobs: Sequence[Job]) -> Costs:
    """Of runs that differ in their seed."""
    folders = [RunFolder(runs / job.name) for job in jobs]
    seconds = fmean(_seconds(folder.metrics) for folder in folders)
    return Costs(_parameters(folders[0].weights), seconds, folders[0].weights.stat().st_size)


def _sum(costs: Sequence[Costs]) -> Costs:
    parts = [(one.parameters, one.seconds, one.size) for one in costs]
    return Costs(*map(sum, zip(*parts, strict=True)))


def _seconds(metrics: Path) -> float:
    """Of all steps; a run that was resumed has them all too."""
    lines = map(json.loads, metrics.read_text("utf-8").splitlines())
    return sum(line["seconds"] for line in lines if line["kind"] == "step")


def _parameters(weights: Path) -> int:
    """Numbers in a safetensors file."""
    from safetensors import safe_open

    with safe_open(weights, "np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
