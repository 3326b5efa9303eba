"""Instruction format: from an Example to prompt and target text, by minijinja templates that cannot run away.

A template is data that may come with somebody's recipe, so it gets fuel instead of time, only the statements
a prompt needs (if, for, set, raw), and no way to make text grow fast (no `*`, few `+` and `~`, guarded
filters). Variables of a prompt: the inputs of the kind (see tasks.spec; absent optional ones are ""),
`instruction` and `options`; of a target: the same and `answer`. Filters, not methods: `{{ text | trim }}`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mtnlp.errors import DataError, MtnlpError, did_you_mean, shown
from mtnlp.tasks import answers
from mtnlp.tasks.answers import parse
from mtnlp.tasks.spec import KINDS, Example, TaskSpec, Template

__all__ = ["DEFAULTS", "Rendered", "parse", "problem", "render", "render_field", "variables"]

FUEL = 200_000  # template instructions per rendering; a prompt with 1,000 loop turns uses about 10,000
LONGEST = 4_000_000  # characters that one rendering may give
STATEMENTS = {"if", "elif", "else", "endif", "for", "endfor", "set", "endset", "raw", "endraw"}
JOINERS = 8  # `+` and `~` in one template: text may not double without end

_HEAD = "{% if instruction %}{{ instruction }}\n{% endif %}"
_PAIR = "{{ text }}{% if text_pair %}\n{{ text_pair }}{% endif %}\n"
_FEW = "{% if options | length <= 12 %}Options: {{ options | join(', ') }}\n{% endif %}"

DEFAULTS: dict[str, Template] = {
    "classify": Template(_HEAD + "{{ text }}\n" + _FEW + "Answer:"),
    "pair": Template(_HEAD + "Text 1: {{ text }}\nText 2: {{ text_pair }}\n" + _FEW + "Answer:"),
    "ordinal": Template(_HEAD + _PAIR + _FEW + "Answer:"),
    "multilabel": Template(_HEAD + _PAIR + _FEW + "Labels:"),
    "regress": Template(_HEAD + _PAIR + "Score:"),
    "choose": Template(
        _HEAD + "{% if context %}{{ context }}\n{% endif %}{{ question }}\nOptions:\n"
        "{% for option in options %}- {{ option }}\n{% endfor %}Answer:"
    ),
    "tag": Template(
        _HEAD + "{{ tokens | join(' ') }}\n{% if options | length <= 24 %}Tags: "
        "{{ options | join(', ') }}\n{% endif %}Answer:"
    ),
    "span": Template(_HEAD + "{{ context }}\nQuestion: {{ question }}\nAnswer:"),
    "generate": Template(_HEAD + "{{ text }}\nAnswer:"),
}


@dataclass(frozen=True)
class Rendered:
    """One example as text.

    Args:
        prompt: what the model reads.
        target: what it should write; None when the example has no answer.
        options: every text it may write (label words or choices, in order of their index), or None if free.
    """

    prompt: str
    target: str | None
    options: tuple[str, ...] | None


def render(
    spec: TaskSpec, example: Example, *, template: str | Template | None = None, shots: Sequence[Example] = ()
) -> Rendered:
    """The example as prompt and target.

    Args:
        template: a name among spec.templates, a Template, or None: the task's first one, else the kind's own.
        shots: solved examples to show before this one: instruction, each shot's prompt and target, then the
            prompt.

    Raises:
        MtnlpError: unknown template name, or a template that fails; the message names task, template and
            line.
    """
    label, chosen = _chosen(spec, template)
    prompt = _body(spec, example, label, chosen, spec.instruction if not shots else "")
    if shots:
        solved = (_solved(spec, shot, label, chosen) for shot in shots)
        head = [spec.instruction] if spec.instruction and "instruction" in variables(chosen.prompt) else []
        prompt = "\n\n".join([*head, *solved, prompt])
    listed = answers.options(spec, example) if spec.kind in answers.CLOSED else None
    return Rendered(prompt, _target(spec, example, label, chosen), listed)


def render_field(text: str, row: Mapping[str, Any]) -> str:
    """A field written as a template over the columns of a row (`fields: {text: "{{ title }}. {{ body }}"}`).

    Raises:
        DataError: a column is missing, or the template fails.
    """
    wanted = variables(text)
    if missing := sorted(wanted - row.keys()):
        raise DataError(
            f"{_flat(text)}: no column {missing[0]!r} in the row. {did_you_mean(missing[0], row)}"
        )
    return _run(text, {name: row[name] for name in wanted}, _flat(text))


@lru_cache(maxsize=4096)
def variables(text: str) -> frozenset[str]:
    """Names that a template reads from outside. DataError if it is not a template."""
    _named(text)
    names, plain = set(), text
    while True:  # minijinja does not report the x of `x[a:b]`, so slices are taken away, the inner ones first
        names |= _environment().undeclared_variables_in_str(plain)
        plain, found = re.subn(r"\[([^\[\]]*):[^\[\]]*\]", "[0]", plain)
        if not found:
            return frozenset(names) - {"range", "dict"}


def problem(kind: str, template: Template) -> str | None:
    """What is wrong with a template of this kind of task, before any row is seen; None = nothing."""
    known = {*KINDS[kind].inputs, *KINDS[kind].optional, "instruction", "options"}
    for part, allowed in (("prompt", known), ("target", known | {"answer"})):
        try:
            unknown = sorted(variables(getattr(template, part)) - allowed)
        except MtnlpError as error:
            return f"{part}: {error}"
        if unknown:
            hint = did_you_mean(unknown[0], allowed)
            return f"{part}: a {kind} template has no variable {unknown[0]!r}. {hint}"
        if missing := _missing(getattr(template, part), allowed):
            return f"{part}: {missing}"
    return None


def _missing(text: str, names: Iterable[str]) -> str | None:
    """The filter, function, test, method or attribute that minijinja does not have, or that a template never
    ends; found by a trial, as it looks them up when it runs."""
    from minijinja import TemplateError

    lists = {"choices", "tokens", "options"}
    try:
        _environment().render_template(
            _named(text), **{name: ["x"] * 26 if name in lists else "x" for name in names}
        )
    except TemplateError as error:
        if str(getattr(error, "kind", "")).startswith(("Unknown", "Undefined", "OutOfFuel")):
            return _reason(error)
    except (DataError, TypeError, ValueError):
        pass  # a filter that refuses the trial's values
    return None


def _chosen(spec: TaskSpec, template: str | Template | None) -> tuple[str, Template]:
    if isinstance(template, Template):
        return "(given)", template
    if template is None:
        return next(iter(spec.templates.items()), ("(default)", DEFAULTS[spec.kind]))
    if template not in spec.templates:
        raise MtnlpError(
            f"{spec.name}: no template is called {template!r}. {did_you_mean(template, spec.templates)}"
        )
    return template, spec.templates[template]


def _context(spec: TaskSpec, example: Example, instruction: str) -> dict[str, Any]:
    absent = dict.fromkeys(spec.parts.optional, "")
    return {**absent, **example.inputs, "instruction": instruction, "options": answers.options(spec, example)}


def _body(spec: TaskSpec, example: Example, label: str, template: Template, instruction: str) -> str:
    where = f"{spec.name}: template {label!r}, prompt"
    return _run(template.prompt, _context(spec, example, instruction), where)


def _target(spec: TaskSpec, example: Example, label: str, template: Template) -> str | None:
    if example.target is None:
        return None
    answer = answers.write(spec, example)
    if template.target == "{{ answer }}":
        return answer
    context = {**_context(spec, example, spec.instruction), "answer": answer}
    return _run(template.target, context, f"{spec.name}: template {label!r}, target")


def _solved(spec: TaskSpec, shot: Example, label: str, template: Template) -> str:
    prompt, target = _body(spec, shot, label, template, ""), _target(spec, shot, label, template)
    if target is None:
        raise MtnlpError(
            f"{spec.name}: row {shot.index} has no answer and cannot be shown as a solved example."
        )
    return prompt + ("" if prompt[-1:].isspace() else " ") + target


def _run(text: str, context: Mapping[str, Any], where: str) -> str:
    from minijinja import TemplateError

    try:
        made = _environment().render_template(_named(text), **context)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {_reason(error)}") from None
    if len(made) > LONGEST:
        raise DataError(f"{where}: gave {len(made):,} characters; the most is {LONGEST:,}.")
    return made


def _reason(error: Exception) -> str:
    if getattr(error, "kind", "") == "OutOfFuel" or "out of fuel" in str(error):
        return f"stopped after {FUEL:,} instructions. Does it loop more than a prompt needs?"
    line = f" (line {error.line})" if getattr(error, "line", None) else ""
    return str(getattr(error, "detail", None) or str(error).split("\n")[0]) + line + "."


@lru_cache(maxsize=1)
def _environment() -> Any:
    from minijinja import Environment

    env = Environment(fuel=FUEL, undefined_behavior="strict", pycompat=False)
    env.remove_global("namespace")
    for name in ("indent", "format", "batch", "slice", "pprint", "xmlattr", "urlencode"):
        env.remove_filter(name)
    env.add_filter("join", _join)
    env.add_filter("replace", _replace)
    return env


@lru_cache(maxsize=4096)
def _named(text: str) -> str:
    """The name under which the environment knows this template; compiled once."""
    from minijinja import TemplateError

    tags = re.findall(r"\{[{%].*?[%}]\}", text, re.S)
    words = {match[1] for tag in tags if (match := re.match(r"\{%[-+]?\s*(\w+)", tag))}
    if strange := sorted(words - STATEMENTS):
        raise DataError(f"a template has no statement {strange[0]!r}; it may use if, for, set and raw.")
    bare = [re.sub(r"'[^']*'|\"[^\"]*\"", "", tag) for tag in tags]
    if any("*" in tag for tag in bare):
        raise DataError("a template cannot multiply (`*`), because text could grow without end.")
    if sum(tag.count("~") + tag.count("+") for tag in bare) > JOINERS:
        raise DataError(
            f"more than {JOINERS} `+` or `~` in one template; write the texts one after the other."
        )
    try:
        _environment().add_template(name := f"text-{next(_NUMBERS)}", text)
    except TemplateError as error:
        raise DataError(f"not a template: {_reason(error)}") from None
    return name


_NUMBERS = itertools.count()  # one thread at a time takes a number, unlike the length of a list


def _join(values: Any, separator: str = "") -> str:
    parts = [str(value) for value in values]
    if sum(map(len, parts)) + len(separator) * len(parts) > LONGEST:
        raise ValueError(f"join makes more than {LONGEST:,} characters")
    return separator.join(parts)


def _replace(text: str, old: str, new: str) -> str:
    text = str(text)
    if len(text) + text.count(old) * len(new) > LONGEST:
        raise ValueError(f"replace makes more than {LONGEST:,} characters")
    return text.replace(old, new)


def _flat(text: str) -> str:
    return shown(" ".join(text.split()))
