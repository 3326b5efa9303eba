"""Prompts of a definition with good and bad examples, from files of Natural Instructions and from folders."""

from __future__ import annotations

import json

import pytest

from mtnlp.errors import MtnlpError
from mtnlp.tasks._defined import defined
from mtnlp.tasks.examples import example
from mtnlp.tasks.load import load
from mtnlp.tasks.spec import Example, TaskSpec
from mtnlp.tasks.templates import problem, render

SPEC = TaskSpec("t", "generate", {}, instruction="not used")
ROW = Example("t", 0, {"text": "{{ 3 * 4 }}"}, ("12",))
GOOD = [
    {"input": "France", "output": "Paris", "explanation": "It is."},
    {"input": "Italy", "output": "Rome", "explanation": "It is, too."},
    {"input": "{{ x }}", "output": "{% y %}"},
]
BAD = [{"input": "Chad", "output": "Rome", "explanation": "That is in Italy."}, "-"]
FILE = {
    "Definition": ["Name the capital. "],
    "Positive Examples": GOOD,
    "Negative Examples": BAD,
    "Instances": [{"input": f"Country {i}", "output": [f"City {i}"]} for i in range(30)],
}
HEAD = "Definition: Name the capital.\n\n"
FRANCE = "Positive Example 1 -\nInput: France\nOutput: Paris\n"
ITALY = "Positive Example 2 -\nInput: Italy\nOutput: Rome\n"
ODD = "Positive Example 3 -\nInput: {{ x }}\nOutput: {% y %}\n"
CHAD = "Negative Example 1 -\nInput: Chad\nOutput: Rome\n"
ASKED = "\nNow complete the following example -\nInput: Country 7\nOutput:"
PROMPTS = {
    "default": "Name the capital. \nCountry 7\nAnswer:",
    "definition": HEAD + ASKED[1:],
    "positive-1": HEAD + FRANCE + ASKED,
    "positive-2": HEAD + FRANCE + "\n" + ITALY + ASKED,
    "positive-3": HEAD + FRANCE + "\n" + ITALY + "\n" + ODD + ASKED,
    "positive-1-negative-1": HEAD + FRANCE + "\n" + CHAD + ASKED,
    "positive-1-negative-1-explained": HEAD + FRANCE + "Explanation: It is.\n\n" + CHAD
    + "Explanation: That is in Italy.\n" + ASKED,
}  # fmt: skip


def test_a_file_gives_a_prompt_for_every_number_of_examples_that_it_has(tmp_path):
    (tmp_path / "capitals.json").write_text(json.dumps(FILE))

    [spec] = load("capitals.json", tmp_path)

    made = example(spec, {"input": "Country 7", "output": ["City 7"]}, 0)
    assert {name: render(spec, made, template=name).prompt for name in spec.templates} == PROMPTS
    assert render(spec, made).prompt == PROMPTS["default"]  # nothing changes where none is named
    assert not [
        problem("generate", template) for template in spec.templates.values() if problem("generate", template)
    ]


def test_a_folder_with_solved_examples_gives_the_same_prompts_and_one_without_keeps_its_own(tmp_path):
    meta = {"task_type": "instruction", "instruction": "Name the capital. ", "fields": {"target": "..."}}
    examples = {"positive_examples": GOOD, "negative_examples": BAD}
    for name, more in (("with", examples), ("without", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text(json.dumps({**meta, **more}))

    [spec], [bare] = load("./with", tmp_path), load("./without", tmp_path)

    made = example(spec, {"input": "Country 7", "target": "City 7"}, 0)
    assert {name: render(spec, made, template=name).prompt for name in spec.templates} == PROMPTS
    assert bare.templates == {}


def test_no_more_than_four_examples_are_shown_and_reasons_of_the_first_version_are_read(tmp_path):
    good = [{"input": f"in {i}", "output": f"out {i}", "reason": f"why {i}"} for i in range(9)]
    (tmp_path / "v1.json").write_text(
        json.dumps({**FILE, "Definition": "Do.", "Positive Examples": good, "Negative Examples": good[:1]})
    )

    [spec] = load("v1.json", tmp_path)

    counts = [f"positive-{k}" for k in (1, 2, 3, 4)]
    both = ["positive-1-negative-1", "positive-1-negative-1-explained"]
    assert list(spec.templates) == ["default", "definition", *counts, *both]
    assert render(spec, ROW, template=both[1]).prompt.count("Explanation: why 0\n") == 2


def test_examples_that_look_like_templates_stay_as_they_are():
    odd = "{{ x * y }} {% include 'a' %} {# note #} }} %} {{'{'}} \\ \" ' {\n{% raw %} [a:b]" + " + ~" * 9
    template = defined(odd, [{"input": odd, "output": [odd]}])

    assert problem("generate", template) is None
    assert render(SPEC, ROW, template=template).prompt.count(odd) == 3
    assert render(SPEC, ROW, template=template).target == "12"


def test_an_example_without_its_parts_is_refused():
    with pytest.raises(MtnlpError, match="Negative Example 1 - has no 'output'"):
        defined("do", [], [{"input": "x"}])
