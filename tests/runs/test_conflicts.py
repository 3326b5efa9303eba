"""Gradient conflicts and versions: what a run keeps of them while it trains, and what its page shows."""

from __future__ import annotations

import json
import re
import shutil
import signal
from html import unescape
from importlib.metadata import version

import pytest
import tiny_tasks
from rich.console import Console

from mtnlp.errors import MtnlpError
from mtnlp.runs import report, train, versions
from mtnlp.train import checkpoint, conflicts
from mtnlp.train.callbacks import Progress

QUIET = Console(quiet=True)
UPPER = {"name": "lora", "rank": 4, "targets": r"layer\.1\."}  # so that the lowest block may be kept


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("trunk"), dropout=0.1)


def recipe(trunk, names=("topic", "rating", "mood"), **options):
    kinds = {"topic": "classify", "rating": "regress", "mood": "classify"}
    tasks = [tiny_tasks.task(name, kinds[name], rows=20) for name in names]
    return {
        **tiny_tasks.recipe(trunk, tasks, steps=6, examples_per_step=12, **options),
        "name": "mine",
        "eval": {"every": 3},
    }


@pytest.fixture(scope="module")
def mine(trunk, tmp_path_factory):
    """A run that looked at gradients after steps 2, 4 and 6, its frozen block kept."""
    out = tmp_path_factory.mktemp("mine") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conflicts, "EVERY", 2)
        train.finetune(recipe(trunk, strategy=UPPER, cache_trunk=True), out=out, console=QUIET)
    return out


@pytest.fixture
def run(mine, tmp_path):
    return shutil.copytree(mine, tmp_path / "run")


def recorded(run):
    found = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in found if line["kind"] == "conflicts"]


def section(run, heading):
    """The words of a section of the page, one space between any two pieces."""
    text = report.write(run).read_text("utf-8")
    found = re.search(f'<h2 id="[^"]*">{heading}</h2>(.*?)(<h2|</main>|</body>)', text, re.DOTALL)
    return " ".join(unescape(re.sub("<[^>]*>", " ", found[1])).split()) if found else None


def test_a_run_with_a_kept_trunk_is_bit_for_bit_the_same_without_a_look_at_its_gradients(
    trunk, mine, tmp_path, monkeypatch
):
    monkeypatch.setattr(conflicts, "possible", lambda run: False)
    train.finetune(recipe(trunk, strategy=UPPER, cache_trunk=True), out=tmp_path / "run", console=QUIET)

    assert [line["step"] for line in recorded(mine)] == [2, 4, 6] and not recorded(tmp_path / "run")
    weights, plain = (checkpoint.read_table(run / "model.safetensors") for run in (mine, tmp_path / "run"))
    assert weights.keys() == plain.keys()
    assert all(tensor.equal(plain[name]) for name, tensor in weights.items())


def test_the_page_shows_the_mean_cosine_of_every_pair_lowest_first(run):
    lines = recorded(run)
    pairs = {}
    for line in lines:
        gram = line["gram"]
        for i, one in enumerate(line["tasks"]):
            for j, other in enumerate(line["tasks"][:i]):
                pairs.setdefault((other, one), []).append(gram[i][j] / (gram[i][i] * gram[j][j]) ** 0.5)
    means = {pair: sum(values) / len(values) for pair, values in pairs.items()}
    below = sorted((pair for pair in means if means[pair] < 0), key=means.get)

    told = section(run, "Gradient conflicts")

    assert "3 measurements, after steps 2 to 6, on 2 rows of each task." in told
    assert f"{len(below)} of {len(means)} measured pairs are below 0 on average" in told
    rows = [told.rindex(f"{one} {other} {means[one, other]:+.2f}") for one, other in below]
    assert rows == sorted(rows)
    assert all(f"{one}, {other}: {value:+.2f}" in told for (one, other), value in means.items())
    assert "mtnlp affinity" in told


def test_a_planted_conflict_stands_first(run):
    line = {"kind": "conflicts", "step": 6, "tasks": ["topic", "mood"], "rows": 2, "gram": [[1, -2], [-2, 4]]}
    kept = [text for text in (run / "metrics.jsonl").read_text().splitlines() if "conflicts" not in text]
    (run / "metrics.jsonl").write_text("\n".join([*kept, json.dumps(line)]) + "\n")

    told = section(run, "Gradient conflicts")

    assert "1 of 1 measured pairs are below 0 on average: task and cosine below 0" in told
    assert "topic mood -1.00 1 of 1" in told and "even signs may be chance" in told

    (run / "metrics.jsonl").write_text(json.dumps(line | {"tasks": ["topic", "nobody"]}) + "\n")
    with pytest.raises(MtnlpError, match=r"metrics.jsonl: a line of kind conflicts cannot be read .*nobody"):
        report.write(run)


def test_tasks_that_share_nothing_cannot_conflict_and_one_alone_has_no_section(trunk, run, tmp_path):
    kept = [text for text in (run / "metrics.jsonl").read_text().splitlines() if "conflicts" not in text]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    train.finetune(recipe(trunk), out=tmp_path / "apart", console=QUIET)
    train.finetune(recipe(trunk, ("topic",), strategy="lora"), out=tmp_path / "one", console=QUIET)

    assert "This run has recorded none." in section(run, "Gradient conflicts")
    assert "With lora-per-task tasks share no trained parameter" in section(
        tmp_path / "apart", "Gradient conflicts"
    )
    assert section(tmp_path / "one", "Gradient conflicts") is None
    assert not recorded(tmp_path / "apart") and not recorded(tmp_path / "one")


def test_versions_are_those_of_training_also_where_a_run_went_on_with_others(trunk, tmp_path, monkeypatch):
    call = Progress.__call__

    def press(self, record):
        call(self, record)
        if record.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", press)
        with pytest.raises(KeyboardInterrupt):
            train.finetune(recipe(trunk, strategy="lora"), out=tmp_path / "run", console=QUIET)
    first = json.loads((tmp_path / "run" / "versions.json").read_text())
    first[0]["made"]["torch"] = "0.4.1"
    (tmp_path / "run" / "versions.json").write_text(json.dumps(first))
    train.finetune(recipe(trunk, strategy="lora"), out=tmp_path / "run", resume=True, console=QUIET)
    monkeypatch.setattr(versions, "version", lambda name: "9.9.9")

    told = section(tmp_path / "run", "Settings and versions")

    assert f"torch 0.4.1, {version('torch')} from step 5" in told
    assert f"transformers {version('transformers')} " in told and "9.9.9" not in told
    assert "1 x cpu (" in told

    (tmp_path / "run" / "versions.json").write_text("[{}]")
    with pytest.raises(MtnlpError, match=r"versions.json: damaged .* Restore the file, or remove it."):
        report.write(tmp_path / "run")
    (tmp_path / "run" / "versions.json").unlink()
    assert "versions this run has kept none" in section(tmp_path / "run", "Settings and versions")
