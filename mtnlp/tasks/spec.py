"""What a task is, what one example of it is, and the nine kinds of task: data and small functions.

A `TaskSpec` names a source and says which column plays which part (`fields`). `examples.example(spec, row,
index)` turns a raw row into an `Example` with the canonical parts of its kind and a checked target, which
every later room relies on (an optional input that a row does not have is left out):

    kind        inputs (optional in brackets)    target of an Example
    classify    text                             int, index into labels
    pair        text, text_pair                  int, index into labels
    ordinal     text [text_pair]                 int, index into labels, which are in order
    multilabel  text [text_pair]                 tuple of int, indices into labels, sorted; may be empty
    regress     text [text_pair]                 float
    choose      question, choices [context]      int, index into the row's own choices
    tag         tokens                           tuple of int, one label index per token
    span        question, context                tuple of (answer text, first character); () = unanswerable
    generate    text                             tuple of str: references; the first one is trained on

What a column may hold: a label is an id (0-based) or a label's name; if all names are whole numbers, numbers
are names. Text files hold texts alone, so "1" is the id 1 too where no label is called so; 1.0 and "1.0" are
1. `answer` is the text of a choice, a letter A-Z or an index. `answers` is {text: [...], answer_start: [...]}
or a list of {text, answer_start}. `labels` is a list of ids or names. -1, "", null and NaN mean that the
row's answer is hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtnlp.errors import MtnlpError, did_you_mean, shown

MEMORY = "memory:"  # how a run folder writes rows that it does not keep
UNLABELLED = -1  # what hub data sets put in place of a hidden label


@dataclass(frozen=True)
class Kind:
    """The parts of one kind of task. `target` is the canonical field that holds the answer."""

    inputs: tuple[str, ...]
    target: str
    optional: tuple[str, ...] = ()
    labelled: bool = False  # has one closed list of labels, shared by all rows
    metrics: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "classify": Kind(("text",), "label", labelled=True, metrics=("accuracy", "macro_f1")),
    "pair": Kind(("text", "text_pair"), "label", labelled=True, metrics=("accuracy", "macro_f1")),
    "ordinal": Kind(
        ("text",), "label", ("text_pair",), labelled=True, metrics=("quadratic_kappa", "accuracy")
    ),
    "multilabel": Kind(("text",), "labels", ("text_pair",), labelled=True, metrics=("micro_f1", "macro_f1")),
    "regress": Kind(("text",), "score", ("text_pair",), metrics=("spearman", "pearson", "mse")),
    "choose": Kind(("question", "choices"), "answer", ("context",), metrics=("accuracy",)),
    "tag": Kind(("tokens",), "tags", labelled=True, metrics=("token_accuracy", "macro_f1")),
    "span": Kind(("question", "context"), "answers", metrics=("squad_f1", "exact_match")),
    "generate": Kind(("text",), "target", metrics=("rouge_l", "exact_match")),
}


@dataclass(frozen=True)
class Template:
    """Two minijinja texts. The prompt sees the example's inputs plus `instruction` and `options` (label words
    or choices); the target sees the same plus `answer` (the option, text or number to be written)."""

    prompt: str
    target: str = "{{ answer }}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task in canonical form; `target` as in the table above, None without an answer."""

    task: str
    index: int
    inputs: Mapping[str, Any]
    target: Any


@dataclass(frozen=True)
class TaskSpec:
    """One task as data.

    Args:
        name: unique name, usually `family/task`.
        kind: one of KINDS.
        source: where the rows are: `hub:owner/name/config@revision`, a path (file, or folder with meta.json),
            a mapping of split to path, or a mapping of split to a list of rows (memory). See
            mtnlp.data.sources.
        splits: our split -> the source's split name. Default: train, validation, test as they are.
        fields: canonical field -> column (dots go inward: `answers.text`), list of columns (their values
            become a list), or a minijinja text with `{{ column }}`. Fields not named are read from the column
            of that name. A list of columns for `labels` is one 0/1 column per label, in their order.
        labels: label names in the order of their ids; None = read from the train split.
        words: what a text-to-text model writes for each label; default: the labels. Not used by BIO tags.
        instruction: one sentence that says what to do; templates may use it.
        templates: named prompt/target pairs; the first one is the default; none = the kind's own template.
        demonstrations: rows for k-shot prompts (raw rows in the source's columns); none = drawn from train.
        shots: solved examples put into every prompt of a text-to-text model: the first demonstrations.
        metrics: names from mtnlp.metrics; the first is the task's main score; default: the kind's.
        score_range: (low, high) of a regress target, None = open.
        score_scale: (centre, spread) that a regress head learns in; None = from score_range, else the mean
            and standard deviation of the train split.
        limit: at most so many rows per split (drawn by a fixed permutation), None = all.
        floor: reference scores of simple methods on the test split, e.g. {"majority_accuracy": 0.5}.
        language, licence, citation, notes: for cards and reports.
    """

    name: str
    kind: str
    source: Any
    splits: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    words: tuple[str, ...] | None = None
    instruction: str = ""
    templates: Mapping[str, Template] = field(default_factory=dict)
    demonstrations: tuple[Mapping[str, Any], ...] = ()
    shots: int = 0
    metrics: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    score_scale: tuple[float, float] | None = None
    limit: int | None = None
    floor: Mapping[str, float] = field(default_factory=dict)
    language: str = "en"
    licence: str = ""
    citation: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MtnlpError(
                f"{self.name}: no kind of task is called {shown(self.kind)}. {did_you_mean(self.kind, KINDS)}"
            )
        if self.words is not None and self.labels is not None and len(self.words) != len(self.labels):
            raise MtnlpError(
                f"{self.name}: {len(self.words)} words for {len(self.labels)} labels; give one per label."
            )
        for option in ("labels", "words"):
            names = getattr(self, option) or ()
            if len(set(names)) < len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                raise MtnlpError(f"{self.name}: {option}: {', '.join(twice)} stands there twice.")
        known = {*self.parts.inputs, *self.parts.optional, self.parts.target}
        for name in self.fields:
            if name not in known:
                raise MtnlpError(
                    f"{self.name}: fields.{name}: a {self.kind} task has no such field. "
                    f"{did_you_mean(name, known)}"
                )
        if not self.metrics:
            object.__setattr__(self, "metrics", self.parts.metrics)

    @property
    def parts(self) -> Kind:
        return KINDS[self.kind]

    def replace(self, **changes: Any) -> TaskSpec:
        return dataclasses.replace(self, **changes)
