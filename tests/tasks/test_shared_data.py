"""All real tasks of the shared data folder: read, made Examples, rendered, and read back from their own
text."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mtnlp.errors import MtnlpError
from mtnlp.tasks.examples import check_columns, demonstrations, example, read_labels
from mtnlp.tasks.load import load
from mtnlp.tasks.spec import KINDS
from mtnlp.tasks.templates import parse, render

ROOT = Path(__file__).parents[3] / "shared/data/tasks"
REFUSED = {"ewt_dep", "ud_multilingual", "medquad_retrieval", "xquad_r_retrieval"}
FOLDERS = sorted(path for path in ROOT.glob("*") if path.is_dir())

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the shared data folder is not here")


def rows(folder: Path, split: str, count: int | None) -> list[dict]:
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


def same(spec, made, got) -> bool:
    """Is the parsed value the target, as far as its text can say?"""
    if spec.kind == "regress":
        return abs(got - made.target) <= 0.0051
    if spec.kind == "choose":
        return made.inputs["choices"][got] == made.inputs["choices"][made.target]
    if spec.kind == "span":
        return got == (made.target[0][0].strip() if made.target else "")
    return got == (made.target[0].strip() if spec.kind == "generate" else made.target)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_real_task_is_read_rendered_and_parsed_back(folder):
    if folder.name in REFUSED:
        with pytest.raises(MtnlpError, match="no kind of task fits that yet"):
            load(str(folder))
        return
    for spec in load(folder.name, ROOT):
        train = rows(folder, "train", None)
        if spec.parts.labelled:
            found = read_labels(spec.replace(labels=None), train)
            numbers = all(name.isdecimal() for name in found)  # ids in the data, names in meta.json
            assert numbers or set(found) <= set(spec.labels or found)
            spec = spec.replace(labels=spec.labels or found)
        assert check_columns(spec, list(train[0])) == []
        shots = demonstrations(spec)[:2]
        for split in ("train", "validation", "test"):
            for index, row in enumerate(rows(folder, split, 50)):
                made = example(spec, row, index)
                rendered = render(spec, made, shots=shots)
                assert same(spec, made, parse(spec, made, rendered.target)), (split, index, rendered.target)
                assert rendered.options is None or rendered.target in rendered.options


def test_the_folders_cover_every_kind():
    kinds = Counter(
        spec.kind for folder in FOLDERS if folder.name not in REFUSED for spec in load(str(folder))
    )

    assert set(kinds) == set(KINDS)
    assert sum(kinds.values()) == len(FOLDERS) - len(REFUSED) + 1  # snips is two tasks
