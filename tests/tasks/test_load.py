"""Tasks from YAML, folders and Natural-Instructions files."""

from __future__ import annotations

import json

import pytest

from mtnlp import tasks
from mtnlp.errors import DataError, MtnlpError, RecipeError
from mtnlp.tasks.examples import demonstrations, example
from mtnlp.tasks.load import _CHECKS, KEYS, from_mapping, load
from mtnlp.tasks.spec import Template
from mtnlp.tasks.templates import render

YAML = """
name: mail
kind: classify
source: data/mail.csv
fields: {text: "{{ subject }}: {{ body }}"}
labels: [no, yes, off, 3]
template: "{{ text }}\\nUrgent?"
metrics: macro_f1
limit: 100
language: [en, de]
"""
META = {
    "name": "demo",
    "task_type": "classification",
    "instruction": "Judge.",
    "label_names": ["a", "b"],
    "metrics": ["macro_f1", "lrap"],
    "floor": {"majority_accuracy": 0.5},
    "language": ["en", "sw"],
    "licence": {"name": "MIT"},
    "citation": "Doe 2020",
    "fields": {"text": "text", "label": "class id"},
}
NATURAL = {
    "Contributors": ["x"],
    "Source": ["quiz"],
    "Instance License": ["MIT"],
    "Definition": ["Give the capital of the country."],
    "Positive Examples": [{"input": "France", "output": "Paris", "explanation": "It is."}],
    "Negative Examples": [],
    "Instances": [
        {"id": f"t-{i}", "input": f"Country {i}", "output": [f"City {i}", "?"]} for i in range(200)
    ],
}


ROW = {"sentence1": "a", "sentence2": "b", "label": 0}


def folder(path, **meta):
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({**META, **meta}))
    return path


def test_a_task_in_yaml_needs_no_python(tmp_path):
    (tmp_path / "mail.yaml").write_text(YAML)

    [spec] = load("mail.yaml", tmp_path)

    assert spec.source == str(tmp_path / "data/mail.csv")
    assert spec.labels == ("no", "yes", "off", "3")  # words, not booleans
    assert spec.templates == {"default": Template("{{ text }}\nUrgent?")}
    assert (spec.metrics, spec.limit, spec.language) == (("macro_f1",), 100, "en, de")
    made = example(spec, {"subject": "Hi", "body": "Now!", "label": "yes"}, 0)
    assert render(spec, made).prompt == "Hi: Now!\nUrgent?"


def test_a_yaml_list_and_a_pattern_give_several_tasks(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.yaml").write_text("- {name: a, kind: regress, source: x.csv}\n- {use: a.yaml}\n")
    (tmp_path / "t/b.yaml").write_text("{name: b, kind: regress, source: ../x.csv}")

    assert load("t/b.yaml", tmp_path)[0].source == str(tmp_path / "t/../x.csv")
    with pytest.raises(RecipeError, match=r"\*.yaml:\n  .*a.yaml: task 2: use: .*its `use` leads back"):
        load("t/*.yaml", tmp_path)
    (tmp_path / "t/a.yaml").write_text(
        "- {name: a, kind: regress, source: x.csv}\n- {use: b.yaml, name: c}\n"
    )
    assert [spec.name for spec in load("t/*.yaml", tmp_path)] == ["a", "c", "b"]


def test_use_starts_from_another_task_and_replaces_whole_keys():
    spec = from_mapping(
        {"use": "glue/sst2", "source": {"train": "my.csv"}, "fields": {"text": "review"}},
        base="/base",
        where="r.yaml",
    )

    original = tasks.get("glue/sst2")
    assert (spec.name, spec.labels, spec.templates) == ("glue/sst2", original.labels, original.templates)
    assert (spec.source, spec.fields) == ({"train": "/base/my.csv"}, {"text": "review"})


def test_a_template_is_chosen_by_its_name():
    def names(**keys):
        spec = from_mapping({"use": "glue/rte", **keys}, base=".", where="r.yaml")
        return list(spec.templates), render(spec, example(spec, ROW, 0)).prompt

    own = {"short": "{{ text }}?", "long": "Read: {{ text }}"}

    assert names(template="t5")[0] == ["t5", "question", "instruction-first"]
    assert names(template="t5")[1].startswith("rte sentence1: a")
    assert names(template="long", templates=own) == (["long", "short"], "Read: a")
    assert names(template="Hm {{ text }}") == (["default"], "Hm a")
    with pytest.raises(
        RecipeError, match=r"template: 'instruction' is neither .*Did you mean 'instruction-first'"
    ):
        names(template="instruction")


def test_all_problems_of_a_mapping_are_told_at_once():
    data = {
        "name": "a b",
        "kind": "clasify",
        "sorce": "x",
        "labels": [True, "no"],
        "limit": 0,
        "score_range": [5, 1],
        "templates": {"x": 3},
        "fields": {"text": 7},
    }

    with pytest.raises(RecipeError) as caught:
        from_mapping(data, base=".", where="r.yaml: tasks[1]")

    told = "\n".join(caught.value.problems)
    for piece in (
        "sorce: no such key. Did you mean 'source'",
        "name: expected a name, found 'a b'",
        "labels: True is a boolean for YAML; put quotes",
        "limit: expected a whole number above 0, found 0",
        "score_range: expected [low, high]",
        "templates: expected a text, or {prompt",
        "source: missing",
        "fields: text: expected a column",
    ):
        assert piece in told
    assert str(caught.value).startswith("r.yaml: tasks[1]:\n  ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clasify"}, "no kind of task is called 'clasify'. Did you mean 'classify'"),
        ({"fields": {"txt": "a"}}, "fields.txt: a classify task has no such field. Did you mean 'text'"),
        ({"words": ["a", "b", "c"], "labels": ["x", "y"]}, "3 words for 2 labels"),
        ({"template": "{{ txt }}"}, "templates.default: prompt: a classify template has no variable 'txt'"),
        ({"fields": {"text": "{{ a"}}, "fields.text: not a template"),
        ({"use": "glue/sst3"}, "use: No task is called 'glue/sst3'"),
    ],
)
def test_a_problem_is_told_with_its_key(change, message):
    with pytest.raises(RecipeError, match=message):
        from_mapping({"name": "a", "kind": "classify", "source": "x.csv", **change}, base=".", where="r.yaml")


def test_every_key_of_a_task_can_be_written_in_yaml():
    assert set(KEYS) == {*_CHECKS, "use"}


def test_rows_in_memory_are_a_source_too():
    rows = [{"text": "x", "label": "a"}]

    spec = from_mapping(
        {"name": "m", "kind": "classify", "source": {"train": rows}}, base="/base", where="r.yaml"
    )

    assert spec.source == {"train": rows}


def test_registered_names_and_patterns_are_found():
    assert [spec.name for spec in load("glue/*")] == [
        name for name in tasks.names() if name.startswith("glue/")
    ]
    assert load("superglue/wsc") == [tasks.get("superglue/wsc")]
    with pytest.raises(
        MtnlpError, match=r"No task is called 'gleu/rte' and .* does not exist. Did you mean 'glue/rte'"
    ):
        load("gleu/rte")


def test_a_folder_keeps_what_its_meta_file_says(tmp_path):
    folder(tmp_path / "tasks/demo")

    [spec] = load("tasks/demo", tmp_path)

    assert (spec.name, spec.kind, spec.source) == ("demo", "classify", str(tmp_path / "tasks/demo"))
    assert (spec.labels, spec.metrics, spec.floor) == (("a", "b"), ("macro_f1",), {"majority_accuracy": 0.5})
    assert (spec.licence, spec.citation, spec.language) == ("MIT", "Doe 2020", "en, sw")
    assert spec.notes == "Not computed here: lrap."
    assert load("tasks/*", tmp_path) == [spec]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("retrieval", "ranks passages of a corpus, and no kind of task fits that yet"),
        ("dependency_parsing", "gives every word a head, and no kind of task fits that yet"),
        ("clasification", "task_type 'clasification' is not known. Did you mean 'classification'"),
    ],
)
def test_a_folder_that_no_kind_fits_is_refused_in_one_line(tmp_path, kind, message):
    path = folder(tmp_path / "x", task_type=kind)

    with pytest.raises(MtnlpError, match=message) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_all_that_a_pattern_matches_in_vain_is_told_at_once(tmp_path):
    folder(tmp_path / "t/a")
    folder(tmp_path / "t/b", task_type="retrieval")
    folder(tmp_path / "t/c", task_type="clasification")
    (tmp_path / "t/d.yaml").write_text("{name: d, kind: classify}")

    with pytest.raises(RecipeError) as caught:
        load("t/*", tmp_path)

    assert [problem.split(": ")[0].removeprefix(f"{tmp_path}/t/") for problem in caught.value.problems] == [
        "b",
        "c/meta.json",
        "d.yaml",
        "A pattern takes all that it matches, here 4; list those that are wanted instead.",
    ]


@pytest.mark.parametrize("entry", ["t/snt", "./t/snt", "{}/t/snt", "t/sent.yml", "sent.yaml"])
def test_a_mistyped_path_is_compared_with_what_stands_beside_it(tmp_path, entry):
    (tmp_path / "sent.yml").touch()
    folder(tmp_path / "t/sent")

    with pytest.raises(
        MtnlpError, match=r"does not exist\. Did you mean 'sent(\.yml)?'\? Known: sent\.yml|sent"
    ):
        load(entry.format(tmp_path), tmp_path)
    with pytest.raises(MtnlpError, match=r"The folder '.*nowhere' does not exist either"):
        load("./nowhere/sent", tmp_path)


@pytest.mark.parametrize("size", range(1, 12))
def test_a_small_natural_instructions_file_has_no_empty_split_and_always_train(tmp_path, size):
    for first in (0, 20, 40):
        instances = NATURAL["Instances"][first : first + size]
        (tmp_path / "few.json").write_text(json.dumps({**NATURAL, "Instances": instances}))

        [spec] = load("few.json", tmp_path)

        assert "train" in spec.source and all(spec.source.values())
        assert sum(map(len, spec.source.values())) == size


def test_a_natural_instructions_file_gives_definition_examples_and_fixed_splits(tmp_path):
    path = tmp_path / "task1146_country_capital.json"
    path.write_text(json.dumps(NATURAL))

    [spec] = load(path.name, tmp_path)

    sizes = {split: len(rows) for split, rows in spec.source.items()}
    assert sum(sizes.values()) == 200 and 140 <= sizes["train"] <= 180 and min(sizes.values()) >= 8
    assert load(path.name, tmp_path) == [spec]
    assert (spec.name, spec.licence) == ("task1146_country_capital", "MIT")
    made = example(spec, spec.source["test"][0], 0)
    assert made.target == (made.inputs["text"].replace("Country", "City"), "?")
    assert render(spec, made, shots=demonstrations(spec)).prompt == (
        f"Give the capital of the country.\n\nFrance\nAnswer: Paris\n\n{made.inputs['text']}\nAnswer:"
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Definition": []}, MtnlpError, "no 'Definition'"),
        ({"Instances": [{"input": "x"}]}, DataError, r"Instances\[0\]: expected {input: text"),
    ],
)
def test_a_broken_natural_instructions_file_is_refused(tmp_path, change, error, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**NATURAL, **change}))

    with pytest.raises(error, match=message):
        load(str(path))


@pytest.mark.parametrize("text", ["a: [", "- 3", "just words"])
def test_a_file_that_is_no_task_is_named(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)

    with pytest.raises(MtnlpError, match=r"t\.yaml"):
        load("t.yaml", tmp_path)


LONG = "y" * 5000


@pytest.mark.parametrize(
    "change",
    [
        {key: value}
        for key in _CHECKS
        for value in (LONG, [LONG, None], [[LONG]], {"a": [LONG, None]}, {"a": {"b": LONG}})
    ]
    + [{"use": LONG}, {"template": {"prompt": LONG, "x": 1}}, {"source": {"train": [LONG]}}],
)
def test_no_value_is_told_at_length(change):
    """Some of these are right; those that are not are told in a line that a terminal can show."""
    told = ""
    try:
        from_mapping({"name": "a", "kind": "classify", "source": "x.csv", **change}, base=".", where="r.yaml")
    except RecipeError as error:
        told = str(error)

    assert LONG[:300] not in told


def test_a_name_too_long_for_a_path_is_a_name_that_nothing_has():
    with pytest.raises(MtnlpError, match=r"No task is called 'y+\.\.\. and '.*\.\.\. does not exist"):
        load(LONG)
