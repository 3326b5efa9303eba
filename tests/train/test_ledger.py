"""The ledger against counting every row that reached the network."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from mtnlp import samplers
from mtnlp.data.mixture import Mixture
from mtnlp.train import checkpoint, ledger
from mtnlp.train.loop import INTERRUPTED, fit

STEPS, EXAMPLES = 24, 10
SAMPLERS = {
    "proportional": {},
    "uniform": {},
    "temperature": {"temperature": 2.0, "cap": 10},
    "weights": {"rates": {"topic": 1.0, "mood": 0.03, "names": 0.0, "pick": 3.0}},
    "sequential": {"steps": {"pick": 11, "topic": 9, "names": 0, "mood": 4}},
    "phased": {"phases": [{"until": 0.3, "tasks": ["topic"]}, {"sampler": "uniform"}]},
}


class Watched(Mixture):
    """Notes, of every micro-batch that is made, the rows and the real tokens of each task."""

    def batches(self, plan, **options):
        made = super().batches(plan, **options)
        for batch in made:
            for part in batch.slices:
                task, mask = self.names[part.task], batch.attention_mask[part.start : part.stop]
                self.seen.setdefault(task, []).extend((plan.step, row) for row in part.rows)
                self.tokens[task] += int(mask.sum())
        return made


def make(tiny, sampler, seen, tokens):
    run = tiny.make(strategy="heads", total=STEPS, dropout=0.0, examples=EXAMPLES)
    old = run.mixture
    phases = samplers.get(sampler)(**SAMPLERS[sampler]).phases(run.tasks, old.sizes, STEPS, EXAMPLES)
    run.mixture = Watched(
        run.tasks, old.stores, phases, seed=run.seed, examples_per_step=EXAMPLES, max_tokens=60, pad_id=0,
        form="encoder",
    )  # fmt: skip
    run.mixture.seen, run.mixture.tokens = seen, tokens
    return run


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_counts_what_a_run_with_an_interruption_really_saw(tiny, tmp_path, sampler):
    seen, tokens = {}, Counter()
    run = make(tiny, sampler, seen, tokens)

    def ask(record):
        run.asked_to_stop = record.step == 13

    fit(run, [ask])
    assert run.stopped == INTERRUPTED and run.step == 13
    run.stopped = ""
    checkpoint.save(run, tmp_path)
    run = make(tiny, sampler, seen, tokens)
    checkpoint.load(run, checkpoint.checkpoints(tmp_path)[-1])
    run.finish({"topic": 18})
    fit(run)

    found = {entry.task: entry for entry in ledger.of(run.mixture, run.step, ended=run.memory["ended"])}
    total = sum(map(len, seen.values()))
    assert total == STEPS * EXAMPLES and tuple(found) == run.tasks
    for task, entry in found.items():
        rows = Counter(row for _, row in seen.get(task, []))
        assert entry.rows == len(tiny.store(task))
        assert entry.drawn == sum(rows.values()) and entry.epochs == entry.drawn / entry.rows
        assert entry.repeats == sum(count > 1 for count in rows.values())
        assert entry.tokens == tokens[task]
        assert entry.achieved == entry.drawn / total
        assert entry.first == min((step + 1 for step, _ in seen.get(task, [])), default=None)
        assert entry.ended == (18 if task == "topic" else None)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shares_asked_are_the_samplers_rates_over_the_steps_done(tiny, sampler):
    run = make(tiny, sampler, {}, Counter())
    plan = run.mixture

    for steps in (1, 7, 13, STEPS):
        found = ledger.of(plan, steps)
        each = list(
            chain.from_iterable(
                [phase.rates] * (min(steps, stop) - phase.start)
                for phase, stop in zip(plan.phases, [*[p.start for p in plan.phases[1:]], STEPS])
            )
        )
        assert len(each) == steps
        assert [entry.asked for entry in found] == pytest.approx(list(sum(each) / steps))
        # Systematic sampling misses a rate by less than an example a step.
        assert all(abs(entry.achieved - entry.asked) < 1 / EXAMPLES for entry in found)


def test_a_ledger_of_no_step_is_empty_and_files_read_back(tiny, tmp_path):
    run = make(tiny, "uniform", {}, Counter())

    none, some = ledger.of(run.mixture, 0), ledger.of(run.mixture, 7, kept={"mood": 4})
    ledger.write(tmp_path / "ledger.json", some)

    assert all((e.drawn, e.tokens, e.first, e.achieved) == (0, 0, None, 0) for e in none)
    assert ledger.read(tmp_path / "ledger.json") == some and some[1].kept == 4
