"""The suite that is read from the running interpreter: no leaks, the same every time, and worth learning."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.errors import DataError, MtnlpError
from mtnlp.tasks import _draw, _stdlib, pystdlib
from mtnlp.tasks.examples import example, read_labels

NAMES = ("module", "match", "params", "choose", "length", "summary")
SPLITS = ("train", "validation", "test")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_the_task_says(name):
    spec = pystdlib.TASKS[f"pystdlib/{name}"]
    resolved = (
        spec.replace(labels=read_labels(spec, pystdlib.rows(name, "train"))) if name == "module" else spec
    )

    assert (spec.name, spec.source, spec.licence) == (f"pystdlib/{name}", f"pystdlib:{name}", "PSF-2.0")
    assert all(metric in metrics.names(spec.kind) for metric in spec.metrics)
    for split in SPLITS:
        rows = pystdlib.rows(name, split)
        assert 100 < len(rows) <= pystdlib.ROWS
        for row in rows:
            assert set(row) - set(spec.parts.optional) == {*spec.parts.inputs, spec.parts.target}
            assert all(value != "" for value in row.values())
        examples = [example(resolved, row, i) for i, row in enumerate(rows)]
        if spec.labels:
            used = {tag for row in rows for tag in row.get("tags", [row.get("label")])}
            assert used == set(spec.labels)
        elif name == "module":
            assert {e.target for e in examples} == set(range(pystdlib.PACKAGES))


@pytest.mark.parametrize("name", NAMES)
def test_no_text_stands_in_two_splits(name):
    rows = [row for split in SPLITS for row in pystdlib.rows(name, split)]

    texts = {
        " ".join(words(str(next(iter(row.values()))))) for row in rows
    }  # the first column identifies a row
    assert len(texts) == len(rows)


def test_a_function_belongs_to_the_split_of_its_name():
    functions = _stdlib.functions()

    assert len({f.path for f in functions}) == len(functions)
    shares = Counter(f.split for f in functions)
    for split, share in _draw.SPLITS.items():
        assert shares[split] / len(functions) == pytest.approx(share, abs=0.02)
    # The split follows from the name alone, so another library version moves nothing.
    assert _stdlib.Function("m", "json.dumps", "", (), "", "").split == "train"
    assert _stdlib.Function("m", "pathlib.Path.cwd", "", (), "", "").split == "train"


@pytest.mark.parametrize("path", ["json.dumps", "textwrap.wrap", "email.message.Message.get_payload"])
def test_functions_are_read_as_the_interpreter_knows_them(path):
    (function,) = [f for f in _stdlib.functions() if f.path == path]
    real = importlib.import_module(function.module)
    for part in path.removeprefix(f"{function.module}.").split("."):
        real = getattr(real, part)

    assert function.doc == inspect.getdoc(real)
    names = [name for name in inspect.signature(real).parameters if name != "self"]
    assert list(function.parameters) == names
    assert function.signature.startswith(f"{real.__name__}({names[0]}")
    assert function.body.splitlines()[-1].strip() == inspect.getsource(real).rstrip().splitlines()[-1].strip()


def test_the_rows_are_the_same_in_every_process():
    script = f"from mtnlp.tasks.pystdlib import rows; print([rows(name, 'test') for name in {NAMES}])"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}

    there = subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True).stdout

    assert ast.literal_eval(there.decode()) == [pystdlib.rows(name, "test") for name in NAMES]


def test_answers_cannot_be_read_off():
    by_signature = {f.signature: f for f in _stdlib.functions()}
    for split in SPLITS:
        for row in pystdlib.rows("choose", split):
            assert len(set(row["choices"])) == pystdlib.CHOICES
            assert not set(words(row["question"])) & {choice.lower() for choice in row["choices"]}
        for row in pystdlib.rows("match", split):
            assert by_signature[row["text_pair"]].name.lower() not in words(row["text"])
        places = Counter(row["answer"] for row in pystdlib.rows("choose", split))
        labels = Counter(row["label"] for row in pystdlib.rows("match", split))
        for counts, expected in ((places, 1 / 4), (labels, 1 / 2)):
            total = sum(counts.values())
            assert max(counts.values()) / total < expected + 4 * (expected / total) ** 0.5


def test_params_marks_the_names_of_parameters():
    rows = {
        " ".join(row["tokens"]): row["tags"] for split in SPLITS for row in pystdlib.rows("params", split)
    }

    tags = next(
        tags for text, tags in rows.items() if text.startswith("Serialize ` ` obj ` ` to a JSON formatted")
    )

    assert tags[:5] == ["O", "O", "O", "B-param", "O"]


def test_wrong_names_are_explained():
    with pytest.raises(MtnlpError, match=r"no task is called 'modul'. Did you mean 'module'"):
        pystdlib.rows("modul", "train")
    with pytest.raises(MtnlpError, match=r"no split is called 'dev'. Known: test, train, validation"):
        pystdlib.rows("module", "dev")


def test_an_interpreter_without_sources_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(_stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    with pytest.raises(DataError, match=r"no Python sources in .*use an interpreter that has them"):
        _stdlib.functions.__wrapped__()


def score_of_overlap(row: dict) -> int:
    """Word beginnings that description and signature share."""
    said, shown = (
        {w[:5] for w in re.findall(r"[a-z]+", row[part].lower())} for part in ("text", "text_pair")
    )
    return len(said & shown)


def test_match_needs_both_texts_and_yields_to_them():
    sklearn = pytest.importorskip("sklearn.pipeline")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = pystdlib.rows("match", "train"), pystdlib.rows("match", "test")
    for part in ("text", "text_pair"):
        model = sklearn.make_pipeline(TfidfVectorizer(min_df=2), LogisticRegression(C=5))
        model.fit([row[part] for row in train], [row["label"] for row in train])
        alone = model.score([row[part] for row in test], [row["label"] for row in test])
        assert alone < 0.57

    together = np.mean([(score_of_overlap(row) > 0) == (row["label"] == "yes") for row in test])
    assert together > 0.65
