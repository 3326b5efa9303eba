"""Targets as text and back: what a text-to-text model is trained to write, and what its writing means.

    classify, pair, ordinal   the label's word           choose   the text of the choice
    multilabel                words joined by ", "       regress  two decimals
    tag, BIO labels           span [type]; span [type]   tag      one tag per token, separated by spaces
    span                      the first answer's text    generate the first reference

`parse(spec, example, write(spec, example))` gives the target back. A BIO span that also stands earlier in the
sentence carries a count, as in `Paris [location #2]`: the second place to its right counted from the end of
the span before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any

from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import Example, TaskSpec

CLOSED = {"classify", "pair", "ordinal", "choose"}  # one of a few options: can be scored by their likelihood
UNANSWERABLE = "unanswerable"
DECIMALS = 2

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")


def words(spec: TaskSpec) -> tuple[str, ...]:
    """What is written for each label."""
    if spec.labels is None:
        raise MtnlpError(
            f"{spec.name}: the label names are not known yet; read them from the train split first."
        )
    return spec.words or spec.labels


def options(spec: TaskSpec, example: Example) -> tuple[str, ...]:
    """Texts to choose from: choices, label words, entity types or tags; empty for free answers."""
    if spec.kind == "choose":
        return tuple(example.inputs["choices"])
    if spec.kind == "tag":
        return _types(spec.labels) if is_bio(spec.labels or ()) else _tag_words(words(spec))
    return words(spec) if spec.parts.labelled else ()


def write(spec: TaskSpec, example: Example) -> str:
    """The example's target as text."""
    target = example.target
    if spec.kind in CLOSED:
        return options(spec, example)[target]
    if spec.kind == "regress":
        return f"{target:.{DECIMALS}f}"
    if spec.kind == "multilabel":
        return ", ".join(words(spec)[i] for i in target) or _nothing(words(spec))
    if spec.kind == "tag":
        if is_bio(spec.labels or ()):
            return _write_spans(example.inputs["tokens"], [spec.labels[i] for i in target])
        return " ".join(_tag_words(words(spec))[i] for i in target)
    if spec.kind == "span":
        return target[0][0] if target else UNANSWERABLE
    return target[0]


def parse(spec: TaskSpec, example: Example, text: str) -> Any:
    """The prediction that a generated text stands for; never fails, whatever the text is.

    Returns:
        classify, pair, ordinal, choose: int (same text, else same letters, else the option it starts with,
        else the nearest one). regress: float, the first number, inside spec.score_range (no number: the
        middle of the range, or 0). multilabel: sorted tuple of int. tag: tuple of int, one per token.
        span: str, "" = unanswerable. generate: str.
    """
    if spec.kind in CLOSED:
        return _nearest(text, options(spec, example), letters=spec.kind == "choose")
    if spec.kind == "regress":
        return _number(text, spec.score_range)
    if spec.kind == "multilabel":
        return _parse_list(text, words(spec))
    if spec.kind == "tag":
        if is_bio(spec.labels or ()):
            return _parse_spans(text, example.inputs["tokens"], spec.labels)
        return _parse_tags(text, len(example.inputs["tokens"]), _tag_words(words(spec)))
    text = text.strip()
    return "" if spec.kind == "span" and plain(text) == UNANSWERABLE else text


def plain(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends: the form in which answers are compared."""
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'()[]")


@lru_cache(maxsize=1024)
def is_bio(labels: tuple[str, ...]) -> bool:
    """Are these tags O, B-x and I-x?"""
    return "O" in labels and len(labels) > 1 and all(tag == "O" or tag[:2] in ("B-", "I-") for tag in labels)


def _nearest(text: str, choices: Sequence[str], *, letters: bool) -> int:
    if text in choices:
        return choices.index(text)
    if text.strip() in choices:
        return choices.index(text.strip())
    wanted, flat = plain(text), [plain(choice) for choice in choices]
    if wanted in flat:
        return flat.index(wanted)
    if letters and (found := _LETTER.fullmatch(text.strip())) and ord(found[1]) - 65 < len(choices):
        return ord(found[1]) - 65
    starts = [i for i, choice in enumerate(flat) if choice and re.match(re.escape(choice) + r"\b", wanted)]
    if starts:
        return max(starts, key=lambda i: len(flat[i]))
    return max(range(len(flat)), key=lambda i: SequenceMatcher(None, wanted, flat[i]).ratio())


def _number(text: str, between: tuple[float, float] | None) -> float:
    found = _NUMBER.search(text)
    if found is None:
        return sum(between) / 2 if between else 0.0
    value = float(found[0])
    return min(max(value, between[0]), between[1]) if between else value


def _nothing(known: Sequence[str]) -> str:
    return next(word for word in ("none", "no label", "(none)") if word not in known)


def _parse_list(text: str, known: tuple[str, ...]) -> tuple[int, ...]:
    """Words may hold commas, so the longest known word goes first; other pieces become the nearest word or
    nothing."""
    longest_first, flat = (
        sorted(known, key=len, reverse=True),
        {plain(word): i for i, word in enumerate(known)},
    )
    chosen, rest = set(), text.strip()
    while rest and text.strip() != _nothing(known):
        word = next(
            (w for w in longest_first if rest.startswith(w) and rest[len(w) : len(w) + 1] in ("", ",")), None
        )
        piece = word if word is not None else rest.split(",")[0]
        if word is not None:
            chosen.add(known.index(word))
        elif close := get_close_matches(plain(piece), flat, n=1, cutoff=0.8):
            chosen.add(flat[close[0]])
        rest = rest[len(piece) :].lstrip(", ")
    return tuple(sorted(chosen))


def _tag_words(known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("_".join(word.split()) for word in known)


def _parse_tags(text: str, length: int, known: tuple[str, ...]) -> tuple[int, ...]:
    ids = {word: i for i, word in enumerate(known)} | {word.casefold(): i for i, word in enumerate(known)}
    ids |= {word: i for i, word in enumerate(known)}  # exact spelling wins
    rest = ids.get("O", 0)
    tags = [ids.get(piece, ids.get(piece.casefold(), rest)) for piece in text.split()[:length]]
    return tuple(tags + [rest] * (length - len(tags)))


@lru_cache(maxsize=1024)
def _types(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag[2:] for tag in labels if tag != "O"))


def _spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(first, end, type) of the entities; an I- after another type starts one, as in conlleval."""
    first = None
    for i, tag in enumerate([*tags, "O"]):
        if first is not None and (tag[:2] != "I-" or tag[2:] != tags[first][2:]):
            yield first, i, tags[first][2:]
            first = None
        if first is None and tag != "O":
            first = i


def _places(tokens: Sequence[str], surface: str, start: int) -> Iterator[tuple[int, int]]:
    """(first, end) of every run of tokens that reads `surface`, from token `start` on."""
    for first in range(start, len(tokens)):
        made = ""
        for end in range(first, len(tokens)):
            made = made + " " + tokens[end] if made else tokens[end]
            if made == surface:
                yield first, end + 1
            if len(made) >= len(surface) or not surface.startswith(made):
                break


def _write_spans(tokens: Sequence[str], tags: Sequence[str]) -> str:
    written, start = [], 0
    for first, end, kind in _spans(tags):
        surface = " ".join(tokens[first:end])
        count = next(n for n, place in enumerate(_places(tokens, surface, start), 1) if place == (first, end))
        written.append(f"{surface} [{kind}]" if count == 1 else f"{surface} [{kind} #{count}]")
        start = end
    return "; ".join(written) or "none"


@lru_cache(maxsize=1024)
def _pattern(types: tuple[str, ...]) -> re.Pattern[str]:
    listed = "|".join(map(re.escape, sorted(types, key=len, reverse=True)))
    return re.compile(rf"(.+?) ?\[({listed})(?: #(\d+))?\](?:; ?|\s*$)", re.S | re.I)


def _parse_spans(text: str, tokens: Sequence[str], labels: tuple[str, ...]) -> tuple[int, ...]:
    ids, types = {tag: i for i, tag in enumerate(labels)}, _types(labels)
    by_case = {kind.casefold(): kind for kind in reversed(types)}
    tags, start = [ids["O"]] * len(tokens), 0
    for surface, kind, count in _pattern(types).findall(text):
        kind = kind if kind in types else by_case[kind.casefold()]
        place = _place(tokens, surface, start, int(count or 1))
        if place is None or any(tag != ids["O"] for tag in tags[slice(*place)]):
            continue
        first, start = place
        begin, inside = ids.get(f"B-{kind}"), ids.get(f"I-{kind}")
        tags[first] = inside if begin is None else begin
        tags[first + 1 : start] = [begin if inside is None else inside] * (start - first - 1)
    return tuple(tags)


def _place(tokens: Sequence[str], surface: str, start: int, count: int) -> tuple[int, int] | None:
    """The count-th place right of `start`; failing that the first place anywhere, then regardless of case."""
    found = list(_places(tokens, surface, start))
    if count <= len(found):
        return found[count - 1]
    lowered = [token.casefold() for token in tokens]
    again = list(_places(tokens, surface, 0)) or list(_places(lowered, surface.strip().casefold(), 0))
    return next((place for place in again if place[0] >= start), again[0] if again else None)
