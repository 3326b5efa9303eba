"""Rows become Examples with checked targets, and what is wrong with a row is said in one line."""

from __future__ import annotations

import pytest

from mtnlp.errors import DataError, MtnlpError
from mtnlp.tasks.examples import check_columns, demonstrations, example, read_labels
from mtnlp.tasks.spec import TaskSpec


def spec(kind: str, **more) -> TaskSpec:
    if kind in ("classify", "pair", "ordinal", "multilabel", "tag"):
        more.setdefault("labels", ("no", "yes", "maybe"))
    return TaskSpec("t", kind, "rows.jsonl", **more)


TEXT, SPAN = {"text": "x"}, {"question": "q", "context": "ab cd ab"}
CHOOSE = {"question": "q", "choices": ["red", "B", "1"]}
GOOD = [
    (spec("classify"), {**TEXT, "label": 2}, 2),
    (spec("classify"), {**TEXT, "label": 2.0}, 2),
    (spec("classify"), {**TEXT, "label": "yes"}, 1),
    (spec("classify", labels=("False", "True")), {**TEXT, "label": True}, 1),
    (spec("classify", labels=("1", "2", "5")), {**TEXT, "label": 5}, 2),  # numbers as names
    (spec("classify", labels=("-1", "0", "1")), {**TEXT, "label": -1}, 0),
    (spec("classify"), {**TEXT, "label": "2"}, 2),  # text files hold nothing but texts
    (spec("classify"), {**TEXT, "label": "2.0"}, 2),
    (spec("classify", labels=("1", "2", "5")), {**TEXT, "label": "5.0"}, 2),
    (spec("classify", labels=("yes", "0")), {**TEXT, "label": "0"}, 1),  # a name goes before an id
    (spec("multilabel"), {**TEXT, "labels": ["2", "yes"]}, (1, 2)),
    (spec("tag"), {"tokens": ["a", "b"], "tags": ["yes", "0"]}, (1, 0)),
    (spec("pair"), {**TEXT, "text_pair": 7, "label": 0}, 0),
    (spec("multilabel"), {**TEXT, "labels": ["maybe", 0, 2]}, (0, 2)),
    (spec("multilabel"), {**TEXT, "labels": []}, ()),
    (spec("multilabel", fields={"labels": ["a", "b", "c"]}), {**TEXT, "a": 1, "b": 0, "c": True}, (0, 2)),
    (spec("multilabel", fields={"labels": ["a", "b", "c"]}), {**TEXT, "a": "0", "b": "1", "c": "0"}, (1,)),
    (spec("regress", score_range=(0, 5)), {**TEXT, "score": "3.5"}, 3.5),
    (spec("choose"), {**CHOOSE, "answer": 2}, 2),
    (spec("choose"), {**CHOOSE, "answer": "0"}, 0),
    (spec("choose"), {**CHOOSE, "answer": "1"}, 2),  # the text of a choice goes before its index
    (spec("choose"), {**CHOOSE, "answer": "B"}, 1),
    (spec("choose"), {**CHOOSE, "answer": "C"}, 2),
    (spec("choose", fields={"choices": ["a", "b"]}), {"question": "q", "a": "x", "b": "y", "answer": "y"}, 1),
    (
        spec("choose", fields={"choices": "options.text"}),
        {"question": "q", "options": [{"text": "x"}, {"text": "y"}], "answer": 1},
        1,
    ),
    (spec("tag"), {"tokens": ["a", "b"], "tags": ["yes", 0]}, (1, 0)),
    (
        spec("span"),
        {**SPAN, "answers": {"text": ["ab", "ab", "ab"], "answer_start": [0, 6, 6]}},
        (("ab", 0), ("ab", 6)),
    ),
    (spec("span"), {**SPAN, "answers": [{"text": "cd", "answer_start": 3}]}, (("cd", 3),)),
    (spec("span"), {**SPAN, "answers": {"text": [], "answer_start": []}}, ()),
    (spec("generate"), {**TEXT, "target": "y"}, ("y",)),
    (spec("generate", fields={"target": "refs"}), {**TEXT, "refs": ["y", "z", "y", ""]}, ("y", "z")),
]
BAD = [
    (spec("classify"), {**TEXT, "label": 3}, "label 3 is outside 0..2"),
    (
        spec("classify"),
        {**TEXT, "label": -1},
        "label -1: the row has no answer. Is this the unlabelled test split",
    ),
    (spec("classify"), {**TEXT, "label": None}, "label None: the row has no answer"),
    (spec("classify"), {**TEXT, "label": "-1"}, "label '-1': the row has no answer"),
    (spec("classify"), {**TEXT, "label": float("nan")}, "label nan: the row has no answer"),
    (spec("classify"), {**TEXT, "label": "3"}, r"label '3' is outside 0\.\.2 .*Known: maybe, no, yes"),
    (
        spec("classify"),
        {**TEXT, "label": ["yes"]},
        r"label: expected one label, found \['yes'\] .list.*multilabel",
    ),
    (spec("classify", fields={"label": "a.b"}), {**TEXT, "a": None}, "label None: the row has no answer"),
    (
        spec("classify", fields={"label": "a.b"}),
        {**TEXT, "a": "x"},
        "label: 'a.b': .*with 'b', found 'x' .str",
    ),
    (spec("classify", fields={"text": "a.b"}), {"a": None, "label": 0}, "text: expected text, found None"),
    (spec("choose", fields={"choices": ["a", "b"]}), {"question": "q", "a": "x"}, "choices: no column 'b'"),
    (
        spec("classify"),
        {**TEXT, "label": "yess"},
        "label 'yess' .str. is not a label of this task. Did you mean 'yes'",
    ),
    (spec("classify"), {**TEXT, "label": True}, "label True .bool. is not a label"),
    (spec("classify"), {**TEXT, "label": 1.5}, "label 1.5"),
    (spec("classify", labels=("1", "2")), {**TEXT, "label": 0}, "label 0 .int. is not a label of this task"),
    (spec("classify"), {"txt": "x", "label": 0}, "text: no column 'text' in the row. Did you mean 'txt'"),
    (spec("classify", fields={"text": "a.b"}), {"a": {"c": 1}, "label": 0}, "text: no column 'a.b'"),
    (
        spec("classify", fields={"text": "{{ body }}"}),
        {"text": "x", "label": 0},
        "text: '{{ body }}': no column 'body'",
    ),
    (spec("classify"), {"text": None, "label": 0}, "text: expected text, found None"),
    (spec("classify"), {"text": ["x"], "label": 0}, "text: expected text, found"),
    (spec("multilabel"), {**TEXT, "labels": "yes"}, "labels: expected a list, found 'yes'"),
    (spec("multilabel"), {**TEXT, "labels": [0, 9]}, r"labels\[1\] 9 is outside 0..2"),
    (
        spec("multilabel", fields={"labels": ["a", "b", "c"]}),
        {**TEXT, "a": 1, "b": 0, "c": 0.5},
        "must hold 0 or 1",
    ),
    (spec("regress"), {**TEXT, "score": "high"}, "score: expected a number, found 'high'"),
    (spec("regress"), {**TEXT, "score": float("nan")}, "score: expected a number, found nan"),
    (spec("regress"), {**TEXT, "score": 10**400}, "score: expected a number, found 1000"),
    (
        spec("regress", score_range=(0, 5)),
        {**TEXT, "score": -1.0},
        "score: -1 is outside 0..5. -1 means that",
    ),
    (spec("choose"), {**CHOOSE, "answer": 3}, "answer: 3 .int. is none of the 3 choices"),
    (spec("choose"), {**CHOOSE, "answer": "blue"}, "answer: 'blue' .str. is none of the 3 choices"),
    (spec("choose"), {**CHOOSE, "answer": ""}, "has no answer"),
    (spec("choose"), {**CHOOSE, "choices": [], "answer": 0}, "choices: the list is empty"),
    (spec("tag"), {"tokens": ["a", "b"], "tags": [0]}, "tags: 1 tags for 2 tokens"),
    (spec("tag"), {"tokens": [], "tags": []}, "tokens: the list is empty"),
    (spec("tag"), {"tokens": ["a", None], "tags": [0, 0]}, r"tokens\[1\]: expected text"),
    (
        spec("span"),
        {**SPAN, "answers": {"text": ["cd"], "answer_start": [2]}},
        "'cd' .str. does not stand at character 2",
    ),
    (spec("span"), {**SPAN, "answers": {"text": ["cd"], "answer_start": []}}, "answers: expected"),
    (spec("span"), {**SPAN, "answers": "cd"}, "answers: expected"),
    *(
        (
            spec("span"),
            {**SPAN, "answers": {"text": ["cd"], "answer_start": [start]}},
            "answers: answer_start: expected a character's number, found",
        )
        for start in ("3", 3.0, None, [3], True)
    ),
    (spec("generate"), {**TEXT, "target": []}, "has no answer"),
]


@pytest.mark.parametrize(("task", "row", "target"), GOOD)
def test_a_good_row_gives_its_canonical_target(task, row, target):
    made = example(task, row, 4)

    assert made.target == target
    assert type(made.target) is type(target)
    assert (made.task, made.index) == ("t", 4)


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_a_bad_row_is_refused_with_the_field_and_the_value(task, row, message):
    with pytest.raises(DataError, match=message):
        example(task, row, 0)


def test_rows_to_predict_need_no_answer_and_a_hidden_one_counts_as_none():
    for label in (-1, "-1", None, "", float("nan")):
        assert example(spec("classify"), {**TEXT, "label": label}, 0, needs_target=False).target is None
    assert example(spec("classify"), TEXT, 0, needs_target=False).target is None
    with pytest.raises(DataError, match="label: no column 'label'"):
        example(spec("classify"), TEXT, 0)


def test_an_optional_input_is_left_out_when_the_row_does_not_have_it():
    assert set(example(spec("regress"), {**TEXT, "score": 1}, 0).inputs) == {"text"}
    assert set(example(spec("regress"), {**TEXT, "text_pair": None, "score": 1}, 0).inputs) == {"text"}
    assert set(example(spec("regress"), {**TEXT, "text_pair": "y", "score": 1}, 0).inputs) == {
        "text",
        "text_pair",
    }
    with pytest.raises(DataError, match="text_pair: no column 'b'"):  # named, so it is wanted
        example(spec("regress", fields={"text_pair": "b"}), {**TEXT, "score": 1}, 0)


@pytest.mark.parametrize(
    ("kind", "column", "values", "labels"),
    [
        ("classify", "label", ["b", "a", "b", None], ("a", "b")),
        ("classify", "label", [10, 9, 2.0], ("2", "9", "10")),
        ("classify", "label", [True, False], ("False", "True")),
        ("classify", "label", ["b", float("nan"), "a"], ("a", "b")),
        ("classify", "label", ["1.0", "0.0", "0"], ("0", "1")),
        ("classify", "label", ["007", "8"], ("007", "8")),
        ("multilabel", "labels", [["x"], [], ["y", "x"]], ("x", "y")),
        ("tag", "tags", [["B-a", "O"], ["I-a"]], ("O", "B-a", "I-a")),
    ],
)
def test_label_names_are_read_from_the_train_rows(kind, column, values, labels):
    task = TaskSpec("t", kind, "rows.jsonl")

    assert read_labels(task, [{column: value} for value in values]) == labels


def test_labels_that_are_numbers_read_from_the_data_map_back_to_themselves():
    rows = [{"text": "x", "label": stars} for stars in (5, 1, 3)]
    task = TaskSpec("t", "ordinal", "rows.jsonl")
    task = task.replace(labels=read_labels(task, rows))

    assert [task.labels[example(task, row, 0).target] for row in rows] == ["5", "1", "3"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0], "0.5 is a fraction, not a label"),
        ([f"word {i}" for i in range(1001)], "1,001 different values are no list of labels"),
        ([None, ""], "no label in the train rows"),
        (["a", ["a"]], r"label: expected one label, found \['a'\] .list.* use kind: multilabel"),
    ],
)
def test_columns_that_cannot_be_labels_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        read_labels(TaskSpec("t", "classify", "rows.jsonl"), [{"label": value} for value in values])


def test_missing_columns_are_found_all_at_once_with_suggestions():
    task = spec(
        "choose", fields={"question": "{{ premise }} {{ ask }}", "choices": ["c1", "c2"], "context": "a.b"}
    )

    problems = check_columns(task, ["premise", "asked", "c1", "a", "answer"])

    assert problems[0].startswith("fields.question: no column 'ask' in the data. Did you mean 'asked'")
    assert problems[1].startswith("fields.choices: no column 'c2'")
    assert len(problems) == 2  # `a.b` lies inside column a
    assert check_columns(spec("classify"), ["text"], needs_target=False) == []


def test_demonstrations_are_rows_of_the_same_columns():
    task = spec("classify", fields={"text": "body"}, demonstrations=({"body": "x", "label": "yes"},))

    assert demonstrations(task)[0].inputs == {"text": "x"} and demonstrations(task)[0].target == 1


def test_the_same_label_twice_is_refused():
    with pytest.raises(MtnlpError, match="t: labels: yes stands there twice"):
        spec("classify", labels=("yes", "no", "yes"))
