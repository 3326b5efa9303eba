"""What a guess without reading scores: the number every trained model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mtnlp.errors import MtnlpError, did_you_mean

if TYPE_CHECKING:
    from mtnlp.tasks.spec import Example

Targets = Sequence[Any]


def _ordered(values: Iterable[Any]) -> list[Any]:
    """Distinct values, the most frequent first; ties go to the smaller value."""
    return [value for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]


def _majority(targets: Targets, examples: Sequence[Example]) -> list[int]:
    return [_ordered(targets)[0]] * len(examples)


def _choose(targets: Targets, examples: Sequence[Example]) -> list[int]:
    order = [*_ordered(targets), 0]  # rows may have fewer choices than the most frequent place
    return [next(place for place in order if place < len(example.inputs["choices"])) for example in examples]


def _mean(targets: Targets, examples: Sequence[Example]) -> list[float]:
    return [sum(targets) / len(targets)] * len(examples)


def _multilabel(targets: Targets, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    counts = Counter(label for target in targets for label in target)
    common = tuple(sorted(label for label, count in counts.items() if 2 * count >= len(targets)))
    return [common or tuple(_ordered(counts.elements())[:1])] * len(examples)


def _tag(targets: Targets, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    most = _ordered(tag for target in targets for tag in target)[0]
    return [(most,) * len(example.inputs["tokens"]) for example in examples]


def _span(targets: Targets, examples: Sequence[Example]) -> list[str]:
    if 2 * sum(not target for target in targets) > len(targets):
        return [""] * len(examples)
    return [" ".join(example.inputs["context"].split()[:3]) for example in examples]


def _generate(targets: Targets, examples: Sequence[Example]) -> list[str]:
    return [_ordered(target[0] for target in targets)[0]] * len(examples)


BASELINES: dict[str, Callable[[Targets, Any], list[Any]]] = {
    "classify": _majority,
    "pair": _majority,
    "ordinal": _majority,
    "multilabel": _multilabel,
    "regress": _mean,
    "choose": _choose,
    "tag": _tag,
    "span": _span,
    "generate": _generate,
}


def baseline(
    kind: str, train_targets: Targets, examples: Sequence[Example], labels: Sequence[str] | None = None
) -> list[Any]:
    """Predictions that look only at the train targets (and, for span, at the first words of the context).

    classify, pair, ordinal: the most frequent label. choose: the most frequent place among the row's
    choices. regress: the mean. multilabel: the labels that at least half of the rows have, else the most
    frequent one. tag: the most frequent tag at every token. span: no answer if most rows have none, else the
    context's first three words. generate: the most frequent first reference.

    Args:
        kind: one of mtnlp.tasks.spec.KINDS.
        train_targets: targets of the train Examples; None (unlabelled) is skipped.
        examples: (N,) the Examples to answer.
        labels: not needed by any of these guesses; part of the face that all predictors share.

    Returns:
        (N,) canonical values, as the metrics read them.

    Raises:
        MtnlpError: unknown kind, or no train target to learn from.
    """
    if kind not in BASELINES:
        raise MtnlpError(f"No baseline for tasks of kind {kind!r}. {did_you_mean(kind, BASELINES)}")
    targets = [target for target in train_targets if target is not None]
    if not targets:
        raise MtnlpError(f"A baseline for a {kind} task needs train rows with answers; there are none.")
    return BASELINES[kind](targets, examples)
