"""Six tasks about Python functions, built on the spot from the standard library of the running interpreter.

No download: the rows come from the docstrings, signatures and bodies that every Python brings along (see
_stdlib.py). The same library gives the same rows on every machine; another version gives slightly others.

What would give an answer away is taken out: a function's own name is blanked in the descriptions of `match`
and `choose`, and wrong answers are never names that the description mentions.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.tasks._draw import SPLITS, chance
from mtnlp.tasks._stdlib import Function, blanked, functions, library, plain
from mtnlp.tasks.spec import TaskSpec

PACKAGES = 12  # labels of `module`
CHOICES = 4
ROWS = 5000  # at most, per task and split
BODY_LINES = 30  # of a function's body shown in `summary`
DOC_WORDS = 40  # of a docstring shown in `match`, `params` and `length`

Row = dict[str, Any]
Made = tuple[Function, Row]


def rows(task: str, split: str) -> list[Row]:
    """The rows of one split of `pystdlib/<task>`; the same list each time, so do not change it.

    Args:
        task: module, match, params, choose, length or summary.
        split: train, validation or test.

    Raises:
        MtnlpError: no such task or split. DataError: the library's sources are not there.
    """
    if task not in _BUILDERS:
        raise MtnlpError(f"pystdlib: no task is called {task!r}. {did_you_mean(task, _BUILDERS)}")
    if split not in SPLITS:
        raise MtnlpError(f"pystdlib: no split is called {split!r}. {did_you_mean(split, SPLITS)}")
    return _splits(task)[split]


@cache
def signature() -> str:
    """Hex hash of all that the rows follow from: the interpreter, the files of its library (by name, size and
    time of change) and the code that reads them."""
    state = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for file in library():
        about = file.stat()
        state.update(f"\n{file} {about.st_size} {about.st_mtime_ns}".encode())
    for name in ("pystdlib", "_stdlib", "_draw"):
        state.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return state.hexdigest()


@cache
def _splits(task: str) -> dict[str, list[Row]]:
    """All rows of a task. Of rows that say the same, the first one stays, whatever its split."""
    made: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for f, row in _BUILDERS[task](sorted(functions(), key=lambda f: chance("order", f.path))):
        says = plain(str(next(iter(row.values()))))  # the description, or the code: always the first column
        if says not in seen and len(made[f.split]) < ROWS:
            made[f.split].append(row)
        seen.add(says)
    return made


def _module(every: Sequence[Function]) -> Iterator[Made]:
    common = {package for package, _ in Counter(f.package for f in functions()).most_common(PACKAGES)}
    return ((f, {"text": f.summary, "label": f.package}) for f in every if f.package in common)


def _match(every: Sequence[Function]) -> Iterator[Made]:
    """Each description once, with its own signature or, as often, with one from the same file."""
    for f, others in _with_others(every, lambda f: f.doc):
        if others:
            wrong = chance("wrong", f.path) < 0.5
            shown = others[int(chance("other", f.path) * len(others))] if wrong else f
            description = _prose(blanked(f.doc, f.name))
            label = "no" if wrong else "yes"
            yield f, {"text": description, "text_pair": shown.signature, "label": label}


def _params(every: Sequence[Function]) -> Iterator[Made]:
    """Docstrings that name a parameter: whole words, as they are or in capitals (tkinter's habit)."""
    for f in every:
        names = {*f.parameters, *(name.upper() for name in f.parameters if len(name) > 1)}
        tokens = re.findall(r"\w+|[^\w\s]", _prose(f.doc))
        tags = ["B-param" if token in names else "O" for token in tokens]
        if "B-param" in tags and "a" not in names:  # "a" is nearly always the article
            yield f, {"tokens": tokens, "tags": tags}


def _choose(every: Sequence[Function]) -> Iterator[Made]:
    for f, others in _with_others(every, lambda f: f.summary):
        names = sorted({g.name for g in others}, key=lambda name: chance("choice", f.path, name))
        if len(names) >= CHOICES - 1:
            answer = int(chance("answer", f.path) * CHOICES)
            choices = [*names[:answer], f.name, *names[answer : CHOICES - 1]]
            yield f, {"question": blanked(f.summary, f.name), "choices": choices, "answer": answer}


def _length(every: Sequence[Function]) -> Iterator[Made]:
    for f in every:
        lines = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in f.body.split("\n"))
        if lines:
            yield f, {"text": _prose(f.doc), "text_pair": f.signature, "score": round(math.log(lines), 4)}


def _summary(every: Sequence[Function]) -> Iterator[Made]:
    for f in every:
        cut = f.first_line != f.summary and not f.first_line.endswith((".", "!", "?", ":"))
        if f.body and not cut:  # half a sentence is no target
            body = "\n".join(f"    {line}".rstrip() for line in f.body.split("\n")[:BODY_LINES])
            yield f, {"text": f"def {f.signature}:\n{body}", "target": " ".join(f.first_line.split())}


_BUILDERS: dict[str, Callable[[Sequence[Function]], Iterable[Made]]] = {
    "module": _module,
    "match": _match,
    "params": _params,
    "choose": _choose,
    "length": _length,
    "summary": _summary,
}


def _with_others(
    every: Sequence[Function], text: Callable[[Function], str]
) -> Iterator[tuple[Function, list[Function]]]:
    """Each function with those of its file and split that go by other names, none of them in its text."""
    near: dict[tuple[str, str], list[Function]] = defaultdict(list)
    for f in every:
        near[f.module, f.split].append(f)
    for f in every:
        taken = {_bare(f), *re.findall(r"\w+", text(f).lower())}
        yield f, [g for g in near[f.module, f.split] if taken.isdisjoint((_bare(g), g.name.lower()))]


def _bare(f: Function) -> str:
    return f.name.strip("_").lower()


def _prose(doc: str) -> str:
    """The words of a docstring up to its first doctest, at most DOC_WORDS."""
    return " ".join(doc.split(">>>")[0].split()[:DOC_WORDS])


def _spec(task: str, kind: str, instruction: str, **parts: Any) -> TaskSpec:
    return TaskSpec(
        name=f"pystdlib/{task}",
        kind=kind,
        source=f"pystdlib:{task}",
        instruction=instruction,
        licence="PSF-2.0",
        citation="Python Software Foundation, the Python standard library (docs.python.org/3/library)",
        notes="Built from the running interpreter; rows differ slightly between Python versions.",
        **parts,
    )


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _spec(
            "module",
            "classify",
            "Name the package of Python's standard library that this description comes from.",
        ),
        _spec(
            "match",
            "pair",
            "Does the description fit the signature of the Python function?",
            labels=("no", "yes"),
            metrics=("accuracy", "f1"),
        ),
        _spec(
            "params",
            "tag",
            "Mark the words of the docstring that name a parameter of the function.",
            labels=("O", "B-param"),
            metrics=("span_micro_f1", "token_accuracy"),
        ),
        _spec("choose", "choose", "Choose the name of the Python function that the description is about."),
        _spec(
            "length",
            "regress",
            "How long is the body of this Python function? Give the natural logarithm of its lines of code.",
            score_range=(0.0, 6.0),
        ),
        _spec(
            "summary",
            "generate",
            "Write the first line of the docstring of this Python function.",
            metrics=("rouge_l", "chrf"),
        ),
    )
}
