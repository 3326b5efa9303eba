"""The registry: every registered task can be used, and knowing many of them costs nothing."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import pytest
from hub_rows import ROWS

from mtnlp import metrics, tasks
from mtnlp.errors import MtnlpError
from mtnlp.tasks import templates
from mtnlp.tasks.examples import check_columns, example
from mtnlp.tasks.folders import METRICS
from mtnlp.tasks.load import load
from mtnlp.tasks.spec import KINDS, TaskSpec

HUB = [name for name in tasks.names() if str(tasks.get(name).source).startswith("hub:")]


@pytest.mark.parametrize("name", HUB)
def test_a_row_of_the_hub_becomes_an_example_and_every_template_of_the_task_gives_its_target_back(name):
    spec = tasks.get(name)
    row, target = ROWS.get(name) or next(pair for key, pair in ROWS.items() if fnmatch.fnmatch(name, key))

    made = example(spec, row, 0)

    assert made.target == target
    assert check_columns(spec, list(row)) == []
    for template in [None, *spec.templates]:
        rendered = templates.render(spec, made, template=template)
        wanted = target if spec.kind != "span" else target[0][0] if target else ""
        got = templates.parse(spec, made, rendered.target)
        assert got == (
            pytest.approx(wanted, abs=0.0051)
            if spec.kind == "regress"
            else wanted[0]
            if spec.kind == "generate"
            else wanted
        )
        assert all(
            str(made.inputs[part]).strip() in rendered.prompt
            for part in ("text", "text_pair", "question", "context")
            if part in made.inputs
        )


@pytest.mark.parametrize("name", HUB)
def test_a_registered_task_is_pinned_described_and_sound(name):
    spec = tasks.get(name)
    revision = str(spec.source).partition("@")[2]

    assert spec.name == name
    assert spec.licence and spec.citation and spec.instruction
    assert re.fullmatch(r"[0-9a-f]{40}", revision) or "revision" in spec.notes or "commit" in spec.notes
    assert [problem for t in spec.templates.values() if (problem := templates.problem(spec.kind, t))] == []
    assert spec.labels is not None or not spec.parts.labelled


def test_every_metric_that_a_task_names_exists_for_its_kind():
    for spec in map(tasks.get, tasks.names()):
        assert set(spec.metrics) <= set(metrics.names(spec.kind)), spec.name
    for ours, kinds in METRICS.values():
        assert all(ours in metrics.names(kind) for kind in kinds), ours


def test_at_least_twenty_tasks_beside_glue_and_superglue_cover_every_kind():
    others = [name for name in HUB if not name.startswith(("glue/", "superglue/"))]

    assert len(others) >= 20
    assert {tasks.get(name).kind for name in others} == set(KINDS)


def test_importing_the_room_imports_no_family_and_no_library():
    code = (
        "import sys, mtnlp.tasks as t; t.families(); print(' '.join(m for m in sys.modules "
        "if m.startswith('mtnlp.tasks.') or m in ('numpy', 'torch', 'datasets', 'minijinja', 'yaml')))"
    )

    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert seen == []


def test_a_thousand_registered_tasks_cost_nothing_at_import_and_milliseconds_to_list(monkeypatch):
    made = []

    class Many(EntryPoint):
        def load(self):
            made.append(1)
            return {f"many/{i}": TaskSpec(f"many/{i}", "classify", "hub:a/b@main") for i in range(1000)}

    monkeypatch.setattr(tasks, "_plugins", lambda: {"many": Many("many", "x:y", "mtnlp.tasks")})
    families, before = tasks.families(), len(made)
    start = time.process_time()
    names = tasks.names()
    seconds = time.process_time() - start
    tasks._family.cache_clear()

    assert "many" in families and before == 0  # known, not loaded
    assert "many/999" in names
    assert seconds < 0.1
    print(f"1,000 more tasks: listed in {1000 * seconds:.1f} ms")


def test_an_unknown_task_names_the_nearest_one():
    with pytest.raises(MtnlpError, match=r"No task is called 'glue/sst3'. Did you mean 'glue/sst2'"):
        tasks.get("glue/sst3")


def test_a_task_registered_at_run_time_is_found_and_its_name_cannot_be_taken_twice(monkeypatch):
    monkeypatch.setattr(tasks, "_added", {})
    mine = tasks.register(TaskSpec("mine/a", "classify", "rows.csv"))

    assert tasks.get("mine/a") is mine and load("mine/a") == [mine] and "mine/a" in tasks.names()
    assert tasks.register(mine) is mine
    with pytest.raises(MtnlpError, match="registered already"):
        tasks.register(mine.replace(kind="regress"))
    with pytest.raises(MtnlpError, match="registered already"):
        tasks.register(TaskSpec("glue/sst2", "classify", "rows.csv"))
