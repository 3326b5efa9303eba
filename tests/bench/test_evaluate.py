"""A report as a line, a table and a file."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from mtnlp.bench.evaluate import Report, TaskScore
from mtnlp.errors import MtnlpError

SCORES = tuple(
    TaskScore(
        f"family/t{i}", "regress", "test", 10, {"mse": 1.0, "pearson": 0.5}, {"mse": 2.0, "pearson": 0.0}
    )
    for i in range(14)
)


def printed(report, width=120):
    console = Console(file=io.StringIO(), width=width)
    report.print(console)
    return console.file.getvalue()


def test_a_line_has_the_main_score_and_the_baseline_of_each_task():
    short = Report(SCORES[:2]).line("scores after step 5", {"family/t0": "t0"})
    long = Report(SCORES).line("x")

    assert short == "scores after step 5 (baseline)  t0 1.000 (2.000)  family/t1 1.000 (2.000)  mean 0.500"
    assert long.endswith("family/t11 1.000 (2.000)  and 2 more  mean 0.500") and "\n" not in long


def test_a_table_has_a_row_per_metric_and_says_when_there_is_none():
    rows = [line.split() for line in printed(Report(SCORES[:1])).splitlines()]

    assert ["family/t0", "regress", "test", "10", "mse", "2.000", "1.000"] in rows
    assert ["pearson", "0.000", "0.500"] in rows
    assert "nothing was scored" in printed(Report(()))


def test_a_narrow_table_folds_names_and_keeps_numbers(capsys):
    score = dataclasses.replace(SCORES[0], task="a-family/" + "long-name" * 5, n=12_345)

    narrow = printed(Report((score,)), width=80)
    Report((score,)).print()

    assert "12,345" in narrow and "baseline" in narrow and "…" not in narrow
    assert score.task in capsys.readouterr().out  # a pipe has room


def test_a_report_is_saved_into_a_new_folder_or_says_why_not(tmp_path):
    Report(SCORES[:1], {"run": "x"}).save(tmp_path / "new" / "scores.json")

    assert json.loads((tmp_path / "new" / "scores.json").read_text())["about"] == {"run": "x"}
    with pytest.raises(MtnlpError, match="the scores cannot be written there"):
        Report(()).save(tmp_path / "new" / "scores.json" / "x.json")
