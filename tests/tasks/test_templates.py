"""Prompts and targets: what is written can be read back, and no template can run away."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlp.errors import DataError, MtnlpError
from mtnlp.tasks.answers import write
from mtnlp.tasks.spec import Example, TaskSpec, Template
from mtnlp.tasks.templates import parse, problem, render, render_field, variables

CLASSIFY = TaskSpec(
    "t", "classify", "x", labels=("neg", "pos"), words=("bad", "good"), instruction="Judge it."
)
BIO = TaskSpec("t", "tag", "x", labels=("O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-LOC 2"))
TAGS = TaskSpec("t", "tag", "x", labels=("NOUN", "VERB", "proper noun"))
LISTS = TaskSpec("t", "multilabel", "x", labels=("a", "a, b", "b", "c"))


def made(spec: TaskSpec, target, **inputs) -> Example:
    return Example(spec.name, 0, inputs or {"text": "x"}, target)


def test_the_default_prompt_has_instruction_text_and_options():
    rendered = render(CLASSIFY, made(CLASSIFY, 1, text="Fine."))

    assert rendered.prompt == "Judge it.\nFine.\nOptions: bad, good\nAnswer:"
    assert (rendered.target, rendered.options) == ("good", ("bad", "good"))
    assert render(CLASSIFY, made(CLASSIFY, None)).target is None


def test_shots_stand_between_the_definition_and_the_question():
    shots = [made(CLASSIFY, 0, text="Dull."), made(CLASSIFY, 1, text="Fun.")]

    prompt = render(CLASSIFY, made(CLASSIFY, None, text="Fine."), shots=shots).prompt

    end = "\nOptions: bad, good\nAnswer:"
    assert prompt == f"Judge it.\n\nDull.{end} bad\n\nFun.{end} good\n\nFine.{end}"
    with pytest.raises(MtnlpError, match="row 0 has no answer and cannot be shown"):
        render(CLASSIFY, shots[0], shots=[made(CLASSIFY, None)])


def test_templates_are_chosen_by_name_and_the_first_is_the_default():
    spec = CLASSIFY.replace(
        templates={"a": Template("A {{ text }}"), "b": Template("B {{ text }}", "<{{ answer }}>")}
    )

    assert render(spec, made(spec, 0)).prompt == "A x"
    assert render(spec, made(spec, 0), template="b").target == "<bad>"
    assert render(spec, made(spec, 0), template=Template("C {{ options | length }}")).prompt == "C 2"
    with pytest.raises(MtnlpError, match="t: no template is called 'bb'"):
        render(spec, made(spec, 0), template="bb")


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "silent loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "multiplication": "{{ 'x' * 100000000 }}",
    "doubling": "{% set a = text %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "namespace": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "join": "{{ range(99999) | join(range(99999) | join('xxxxxxxx')) }}",
    "replace": "{{ (text | replace('x', range(99999) | join)) | replace('1', range(99999) | join) }}",
    "indent": "{{ text | indent(1000000000) }}",
    "include": "{% include '/etc/passwd' %}",
    "attribute of a text": "{{ text.__class__.__mro__ }}",
    "method of a text": "{{ text.center(1000000000) }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_bomb_fails_at_once_and_names_task_and_template(name):
    spec = CLASSIFY.replace(name="demo/task", templates={"boom": Template(BOMBS[name])})
    start = time.process_time()

    with pytest.raises(MtnlpError, match="demo/task: template 'boom', prompt: "):
        render(spec, made(spec, 0))

    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ txt }}", "`txt` is undefined"),
        ("{{ text", "not a template"),
        ("{{ text | nofilter }}", "nofilter"),
    ],
)
def test_a_broken_template_says_what_is_wrong(text, message):
    spec = CLASSIFY.replace(templates={"mine": Template(text)})

    with pytest.raises(MtnlpError, match=message):
        render(spec, made(spec, 0))
    assert problem("classify", spec.templates["mine"])


def test_problems_of_a_template_are_known_before_any_row():
    assert problem("classify", Template("{{ text }} {{ options | join }} {{ instruction }}")) is None
    assert "prompt: a classify template has no variable 'context'" in problem(
        "classify", Template("{{ context }}")
    )
    assert "prompt" in problem("classify", Template("{{ answer }}"))  # only the target may tell the answer


def test_a_field_text_reads_columns_also_inside_slices():
    row = {"s": "héllo world", "a": 0, "b": 5, "template_name": "me", "n": None}

    assert variables("{{ (s | upper)[a:b] }} {{ s[:b] }}") == {"s", "a", "b"}
    assert render_field("{{ (s | upper)[a:b] }}|{{ s[b + 1:] }}|{{ template_name }}", row) == "HÉLLO|world|me"
    with pytest.raises(DataError, match="no column 'c' in the row"):
        render_field("{{ c }}", row)


words = st.sampled_from(["Paris", "New", "York", "of", "[", "];", "none", ";", "B", "a b"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, st.integers(0, 5)), min_size=1, max_size=12))
def test_entities_written_as_text_come_back_exactly(tokens_and_tags):
    tokens, ids = [token for token, _ in tokens_and_tags], []
    for _, tag in tokens_and_tags:  # well formed: an I- only after its own type
        inside, before = BIO.labels[tag].startswith("I-"), BIO.labels[ids[-1]] if ids else "O"
        ids.append(tag - 1 if inside and before[2:] != BIO.labels[tag][2:] else tag)
    example = made(BIO, tuple(ids), tokens=tokens)

    assert parse(BIO, example, write(BIO, example)) == example.target


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 3)))
def test_label_lists_come_back_even_when_a_label_has_a_comma(target):
    example = made(LISTS, tuple(sorted(target)))
    text = write(LISTS, example)

    if not (target >= {0, 2} and 1 not in target):  # then "a, b" has two meanings
        assert parse(LISTS, example, text) == example.target


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_parsed_for_any_kind(text):
    tokens, choices = ["New", "York"], ["red", "blue"]
    regress = TaskSpec("t", "regress", "x", score_range=(0, 5))

    assert parse(CLASSIFY, made(CLASSIFY, 0), text) in (0, 1)
    assert parse(TaskSpec("t", "choose", "x"), made(CLASSIFY, 0, question="q", choices=choices), text) in (
        0,
        1,
    )
    assert 0 <= parse(regress, made(regress, 0.0), text) <= 5
    assert len(parse(BIO, made(BIO, None, tokens=tokens), text)) == 2
    assert len(parse(TAGS, made(TAGS, None, tokens=tokens), text)) == 2
    assert set(parse(LISTS, made(LISTS, None), text)) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("spec", "inputs", "text", "value"),
    [
        (CLASSIFY, {}, " Good.", 1),
        (CLASSIFY, {}, "good, because it is fun", 1),
        (CLASSIFY, {}, "goood", 1),
        (TaskSpec("t", "choose", "x"), {"choices": ["red", "a big blue one"]}, "(B)", 1),
        (TaskSpec("t", "choose", "x"), {"choices": ["B", "A"]}, "A", 1),
        (TaskSpec("t", "regress", "x", score_range=(0, 5)), {}, "Score: 7.2 of 5", 5.0),
        (TaskSpec("t", "regress", "x", score_range=(0, 5)), {}, "very", 2.5),
        (TaskSpec("t", "regress", "x"), {}, "-1.5e1 or so", -15.0),
        (TaskSpec("t", "span", "x"), {}, "Unanswerable.", ""),
        (TaskSpec("t", "span", "x"), {}, " in Rome ", "in Rome"),
        (TaskSpec("t", "generate", "x"), {}, " A text.\n", "A text."),
        (LISTS, {}, "A; c", ()),
        (LISTS, {}, "none", ()),
        (LISTS, {}, "C, unheard of, b", (2, 3)),
        (TAGS, {"tokens": ["a", "b", "c"]}, "verb proper_noun", (1, 2, 0)),
        (
            BIO,
            {"tokens": ["in", "new", "york", "York"]},
            "New York [loc]; Rome [PER]; York [PER]",
            (0, 1, 2, 3),
        ),
    ],
)
def test_what_models_write_is_read_kindly(spec, inputs, text, value):
    assert parse(spec, made(spec, None, **inputs), text) == value


def test_scores_are_written_with_a_fixed_number_of_decimals():
    spec = TaskSpec("t", "regress", "x")

    assert [write(spec, made(spec, score)) for score in (3.0, 3.456, -0.5)] == ["3.00", "3.46", "-0.50"]
