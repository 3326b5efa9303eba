"""What a check tells of a recipe that is in order, but odd."""

from __future__ import annotations

from tiny_hub import stand_in

from mtnlp.runs.check import check

SHORT, LONG = {"text": "a b", "label": "x"}, {"text": "a b " * 40, "label": "y"}


def test_splits_whose_rows_lose_tokens_are_named(tmp_path):
    source = {"train": [SHORT, LONG] * 3, "validation": [SHORT, SHORT], "test": [LONG, LONG]}
    task = {"name": "toy", "kind": "classify", "source": source}
    model = {"backbone": str(stand_in("minilm", tmp_path)), "max_length": 8}

    report = check({"model": model, "tasks": [task], "train": {"steps": 1}})

    told = "rows lose tokens: 50.0% of train, 100.0% of test; raise model.max_length."
    assert report.tasks[0].warnings == (told,)
