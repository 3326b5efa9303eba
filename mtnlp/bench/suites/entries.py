"""What a suite is made of: tasks with the way they are scored, and what can be wrong with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mtnlp import metrics
from mtnlp.bench.groups import Group, Value, normalised
from mtnlp.bench.questions import LIKELIHOODS
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.tasks.answers import CLOSED
from mtnlp.tasks.spec import TaskSpec

ZERO = {"matthews", "pearson", "spearman", "quadratic_kappa", "span_micro_f1"}
PER_LABEL = {"accuracy", "balanced_accuracy", "token_accuracy"}
PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Entry:
    """One task of a suite.

    Args:
        spec: the task; its metrics are those that the suite wants, the main one first.
        split: the split to score.
        metric: the main one, which means over tasks read.
        chance: what a guess without reading scores by it; None = not known.
        reference: what people (or another known model) score by it; None = not known.
        templates: names of the prompts to try, one after the other; none = the task's first one.
        shots: solved examples in every prompt, drawn from train for each document by itself; None = those
            that the task shows.
        request: how a model is asked; "auto" = by its head, or by what suits the kind of task. "head",
            "options", "generate" and "embed" (the similarity of vectors) answer the task; "likelihood" of its
            target and "text", the likelihood of its whole text, say how much the model is surprised.
        limit: at most so many rows; None = all.
        generation: how texts are written: max_new_tokens, beams, temperature, top_p, top_k, stop, seed.
        normalise: how the log-likelihood of an option is made comparable with others': its sum as it is, per
            token, per byte, or less that of the option alone (pointwise mutual information); "auto" = per
            token where options are free text, else the sum.
        slices: columns of the source; the main metric is shown for the rows of each of their values.
        cluster: the column of the source whose equal values (one document, one author) make rows that are
            resampled together; "" = every row by itself.
    """

    spec: TaskSpec
    split: str
    metric: str
    chance: float | None = None
    reference: float | None = None
    templates: tuple[str, ...] = ()
    shots: int | None = None
    request: str = "auto"
    limit: int | None = None
    normalise: str = "auto"
    generation: Mapping[str, Any] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    cluster: str = ""

    @property
    def kind(self) -> str:
        """What metrics call what is scored: the kind of the task, or "text" where likelihoods are."""
        return "text" if self.request in LIKELIHOODS else self.spec.kind


@dataclass(frozen=True)
class Search:
    """A retrieval task of a suite: its folder or file (see bench.retrieval), the split of its judgements, and
    the metrics of the kind "retrieve", the main one first."""

    name: str
    path: Path
    split: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """Tasks that are scored together. path: its file or folder; notes: what was left out of it, and why;
    searches: its retrieval tasks."""

    name: str
    version: int
    description: str
    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    path: Path
    notes: tuple[str, ...] = ()
    searches: tuple[Search, ...] = ()


def guess(spec: TaskSpec, metric: str) -> float | None:
    """What guessing without reading scores on average, where that follows from the task alone.

    What the task states as `floor: {chance_accuracy: ...}`; 1 / C by accuracy with C labels, each guessed as
    often; 0 by correlations, by entities and by free text. None: it depends on the data.
    """
    stated = spec.floor.get(f"chance_{metric}")
    if stated is not None:
        return float(stated)
    if metric not in metrics.names(spec.kind) or not metrics.get(metric, spec.kind).greater_is_better:
        return None
    if metric in ZERO or spec.kind in ("span", "generate"):
        return 0.0
    return 1 / len(spec.labels) if spec.labels and metric in PER_LABEL else None


def misfits(entry: Entry) -> list[str]:
    """What of an entry does not go with its task, in sentences that start with the key."""
    spec, found = entry.spec, []
    for name in spec.metrics:
        try:
            metrics.get(name, entry.kind)
        except MtnlpError as error:
            found.append(f"metric: {error}")
    for name in entry.templates:
        if name not in spec.templates:
            found.append(f"templates: none is called {shown(name)}. {did_you_mean(name, spec.templates)}")
    if why := _unanswerable(entry):
        found.append(f"request: {why}")
    if entry.normalise != "auto" and spec.kind not in CLOSED:
        found.append(f"normalise: a {spec.kind} task has no options whose likelihood could be normalised.")
    elif entry.normalise != "auto" and entry.request not in ("auto", "options"):
        found.append(
            f"normalise: no options are compared by request: {entry.request}; leave one of them out."
        )
    if entry.request in ("text", "embed"):
        given = {"templates": entry.templates, "shots": entry.shots}
        found += [f"{key}: request: {entry.request} has no prompt." for key in given if given[key]]
    return found


def _unanswerable(entry: Entry) -> str:
    """Why tasks of this kind cannot be asked so; empty if they can."""
    request, kind = entry.request, entry.spec.kind
    if request == "options" and kind not in CLOSED:
        return f"a {kind} task has no options to choose from; use auto or generate."
    if request == "head" and kind == "generate":
        return "no head answers with a text; use auto or generate."
    if request == "embed" and kind not in ("regress", "choose"):
        return f"vectors answer regress and choose tasks, by similarity, not {kind}; use auto."
    if request == "text" and "text" not in entry.spec.parts.inputs:
        return f"a {kind} task has no text by itself; use likelihood, of its target."
    return ""


def no_split(entry: Entry) -> str:
    """Why there are no rows to score, where the task says so without its data; empty if there may be some."""
    spec = entry.spec
    known = dict(spec.splits) or (dict(spec.source) if isinstance(spec.source, Mapping) else {})
    splits = {*known, *(["validation"] if "train" in known else [])}  # held out of train where there is none
    if not splits or entry.split in splits:
        return ""
    return f"{spec.name}: split: none is called {shown(entry.split)}. {did_you_mean(entry.split, splits)}"


def no_scale(entry: Entry) -> str:
    """Why a score of this entry cannot be normalised; empty if it can."""
    try:
        better = metrics.get(entry.metric, entry.kind).greater_is_better
        normalised(Value(0.0, 0.0, 1, entry.chance, entry.reference, greater_is_better=better))
    except MtnlpError as error:
        return f"{entry.spec.name}: {error}"
    return ""


def twice(places: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences on names that several tasks go by. places: name -> where tasks of that name stand."""
    return [
        f"tasks: {len(found)} tasks are called {name}: {', '.join(found)}. Leave out all but one, or give "
        "each a name of its own: {use: TASK, name: OTHER}."
        for name, found in places.items()
        if len(found) > 1
    ]


def matching(patterns: Sequence[str], known: Iterable[str]) -> list[str]:
    """The known names that a name or a pattern stands for, each once, in their own order."""
    return [name for name in known if any(name == p or fnmatchcase(name, p) for p in patterns)]


def unmatched(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Sentences on names and patterns that stand for nothing."""
    return [
        f"no task of this suite is called {shown(pattern)}. {did_you_mean(pattern, known)}"
        for pattern in patterns
        if not matching([pattern], known)
    ]
