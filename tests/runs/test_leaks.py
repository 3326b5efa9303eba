"""Rows of other splits that stand in train, over all tasks of a recipe; planted, so that they are known."""

from __future__ import annotations

import io

from rich.console import Console
from tiny_hub import stand_in

from mtnlp.data.task_data import TaskData
from mtnlp.runs import leaks
from mtnlp.runs.check import check
from mtnlp.tasks.load import from_mapping

LONG = "the quick brown fox jumps over the lazy dog and then it sleeps for the rest of a warm afternoon"


def rows(*texts):
    return [{"text": text, "label": "xy"[i % 2]} for i, text in enumerate(texts)]


def task(name, **splits):
    source = {split: rows(*texts) for split, texts in splits.items()}
    return {"name": name, "kind": "classify", "labels": ["x", "y"], "source": source}


ONE = task("one", train=["a b", "c d", LONG], validation=["e f", "g h"], test=["i j", "C, d!"])
TWO = task("two", train=["k l", "m n"], validation=["q r"], test=[f"{LONG} in May", "o p"])


def test_a_planted_copy_and_a_near_one_are_found_with_the_task_that_they_come_from(tmp_path):
    found = leaks.own([TaskData.open(from_mapping(one, base=tmp_path, where="here")) for one in (ONE, TWO)])

    parts = {part.task: (part.rows, part.exact, part.near, dict(part.sources)) for part in found.tasks}
    assert parts == {
        "one validation": (2, 0, 0, {}),
        "one test": (2, 1, 0, {"one": 1}),
        "two validation": (1, 0, 0, {}),
        "two test": (2, 0, 1, {"one": 1}),
    }
    assert found.train_rows == 5 and leaks.told(found).startswith("Leaks: of 7 validation and test rows, 1 ")
    assert [row[0] for row in leaks.cells(found)] == ["one test", "two test"]


def test_check_tells_of_leaks_and_of_none(tmp_path):
    model = {"backbone": str(stand_in("minilm", tmp_path)), "max_length": 8}

    def told(*tasks):
        stream = io.StringIO()
        report = check({"model": model, "tasks": list(tasks), "train": {"steps": 1}})
        report.print(Console(file=stream, width=160))
        return [line.split() for line in stream.getvalue().splitlines()]

    assert ["one", "test", "2", "1", "0", "50.0%", "one", "1"] in told(ONE, TWO)
    none = "Leaks: none of 3 validation and test rows stands in 2 train rows."
    assert none.split() in told(TWO) and not any(line[-3:] == ["train", "of"] for line in told(TWO))
