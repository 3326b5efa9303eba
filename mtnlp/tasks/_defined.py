"""Prompts of a task that is given by its definition, with examples of good and of bad answers.

Source: Wang et al. 2022, Super-NaturalInstructions, arXiv:2204.07705 (the encoding of Tk-Instruct).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import Template
from mtnlp.tasks.templates import DEFAULTS

MOST = 4  # examples of either sort in one prompt, the most that the paper shows


def templates(
    definition: str, positive: Sequence[Mapping[str, Any]], negative: Sequence[Mapping[str, Any]]
) -> dict[str, Template]:
    """The named prompts that a task's definition and examples allow; the first is that of any text task.

    default: the kind's own. definition: without examples. positive-K: with the first K good ones.
    positive-K-negative-K: with as many bad ones. positive-K-negative-K-explained: with why they are good or
    bad, where all of them say so. K: 1 to MOST, as far as there are examples.

    Args: as `defined`.
    """
    found = {"default": DEFAULTS["generate"], "definition": defined(definition)}
    for k in range(1, min(MOST, len(positive)) + 1):
        found[f"positive-{k}"] = defined(definition, positive[:k])
    for k in range(1, min(MOST, len(positive), len(negative)) + 1):
        shown = positive[:k], negative[:k]
        found[f"positive-{k}-negative-{k}"] = defined(definition, *shown)
        if all(example.get("explanation") for own in shown for example in own):
            found[f"positive-{k}-negative-{k}-explained"] = defined(definition, *shown, explained=True)
    return found


def defined(
    definition: str,
    positive: Sequence[Mapping[str, Any]] = (),
    negative: Sequence[Mapping[str, Any]] = (),
    *,
    explained: bool = False,
) -> Template:
    """The prompt of a text task as its definition, examples of good and of bad answers, then the row.

    Args:
        definition: what is to be done.
        positive, negative: {"input", "output", "explanation"}; the explanation may be absent.
        explained: show explanations too.

    Raises:
        MtnlpError: an example without input or output.
    """
    parts = [f"Definition: {definition.strip()}"]
    for name, examples in (("Positive", positive), ("Negative", negative)):
        for number, example in enumerate(examples, 1):
            parts.append(_solved(f"{name} Example {number} -", example, explained))
    row = "Now complete the following example -\nInput: {{ text }}\nOutput:"
    return Template("\n\n".join([*(part.replace("{", "{{ '{' }}") for part in parts), row]))


def _solved(head: str, example: Mapping[str, Any], explained: bool) -> str:
    if missing := [name for name in ("input", "output") if name not in example]:
        raise MtnlpError(f"{head} has no {missing[0]!r}; an example has input, output and maybe explanation.")
    output = example["output"]
    output = output if isinstance(output, str) else output[0]
    lines = [head, f"Input: {example['input']}", f"Output: {output}"]
    if explained and example.get("explanation"):
        lines.append(f"Explanation: {example['explanation']}")
    return "\n".join(lines)
