"""The commands that a run ends with: they can be pasted, and fit the task."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mtnlp.cli.predict import read_rows
from mtnlp.data.task_data import TaskData
from mtnlp.runs.hints import next_steps
from mtnlp.tasks.spec import TaskSpec

ROWS = {
    "classify": {"text": "it's 5 o'clock \\ $HOME\n" + "and so on " * 30, "label": "x"},
    "pair": {"text": "one", "text_pair": 'two "quoted"', "label": "x"},
    "ordinal": {"text": '{"no": "JSON"}', "label": "x"},
    "multilabel": {"text": "a", "labels": ["x"]},
    "regress": {"text": "one", "text_pair": "two", "score": 1},
    "choose": {"question": "who?", "choices": ["long " * 50, "b", "c" * 60, "d" * 60], "answer": 0},
    "tag": {"tokens": ["Ann"] * 50, "tags": ["O"] * 50},
    "span": {"question": "who?", "context": "Ann did.", "answers": {"text": ["Ann"], "answer_start": [0]}},
    "generate": {"text": "say it", "target": "it"},
}
PLAIN = {"classify", "multilabel", "tag", "generate"}


def opened(kind, source=None):
    rows = [ROWS[kind]] * 2
    return TaskData.open(TaskSpec(f"own/{kind}", kind, source or {"train": rows, "test": rows}))


@pytest.mark.parametrize("kind", ROWS)
def test_the_command_gives_the_task_a_row_of_its_own_data(kind):
    data = opened(kind)

    lines = next_steps(Path("my runs/x"), [data]).splitlines()

    assert lines[1] == "The run lies in my runs/x. Try next:" and lines[3:] == [
        "  mtnlp report 'my runs/x'"
    ]  # rows in memory: no eval
    words = shlex.split(lines[2])
    assert words[2:] == ["|", "mtnlp", "predict", "my runs/x", "--task", f"own/{kind}"]
    assert words[0] == "echo" and len(lines[2]) < 300
    assert "\\" not in words[1].replace('\\"', "")  # \\" is the same to every shell's echo
    assert words[1].startswith("{") == (kind not in PLAIN)
    ((_, row),) = read_rows([words[1]], data.spec, "here")
    assert set(row) == set(data.spec.parts.inputs) | (set(data.spec.parts.optional) & set(ROWS[kind]))


def test_a_task_that_takes_plain_text_is_preferred_and_eval_is_shown_where_rows_are_kept(tmp_path):
    for kind in ("pair", "multilabel"):
        for split in ("train", "validation"):
            path = tmp_path / kind / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(ROWS[kind]) + "\n")
    tasks = [opened(kind, str(tmp_path / kind)) for kind in ("pair", "multilabel")]

    _, _, predict, judge, report = next_steps(Path("runs/x"), tasks).splitlines()

    assert predict == "  echo a | mtnlp predict runs/x --task own/multilabel"
    assert judge == "  mtnlp eval runs/x --split validation"
    assert report == "  mtnlp report runs/x"
