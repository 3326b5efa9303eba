from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mtnlp.data import readers
from mtnlp.data.encode import Encoder
from mtnlp.data.sources import open_rows
from mtnlp.data.task_data import TaskData
from mtnlp.errors import DataError, MtnlpError
from mtnlp.tasks.spec import TaskSpec

ROWS = [{"text": f"text {i}, \u00e9", "label": ("neg", "pos")[i % 2]} for i in range(40)]


def spec(source, kind="classify", **options):
    return TaskSpec("own/task", kind, source, **options)


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8", newline="")
    return str(path)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def delimited(rows, mark, quote=""):
    return (
        "\n".join(
            [mark.join(rows[0]), *(mark.join(f"{quote}{v}{quote}" for v in row.values()) for row in rows)]
        )
        + "\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.jsonl", "\ufeff" + jsonl(ROWS[:2]) + "\n" + jsonl(ROWS[2:]), "x.jsonl:5"),
        ("x.json", json.dumps({"data": ROWS}), "x.json[3]"),
        ("x.csv", delimited(ROWS, ",", '"').replace("text 1,", "text 1,\nmore"), "x.csv:6"),
        ("x.tsv", delimited(ROWS, "\t"), "x.tsv:5"),
    ],
)
def test_text_files_read_alike_and_know_their_lines(name, content, place, tmp_path):
    write(tmp_path / name, content)

    rows = open_rows(spec({"train": str(tmp_path / name)}))["train"]

    assert [{**row, "text": row["text"].replace("\nmore", "")} for row in rows] == ROWS
    assert rows.where(3) == str(tmp_path / place)
    assert rows.columns == ["text", "label"] and len(rows) == 40 and rows[-1] == ROWS[-1]


@pytest.mark.parametrize("block", [1, 3, 1 << 24])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n \n"])
def test_json_lines_are_those_that_hold_something(block, end, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", block)
    lines = ['{"a": 1}', "", "  ", ' {"a": 2}', "\t\r", '{"a": 3}\r', '{"a": 4}']
    rows, numbers = readers.read(Path(write(tmp_path / "x.jsonl", "\n".join(lines) + end)))

    assert list(rows) == [{"a": n} for n in (1, 2, 3, 4)] and rows[1:3] == [{"a": 2}, {"a": 3}]
    assert list(numbers) == [1, 4, 6, 7]
    assert list(readers.read(Path(write(tmp_path / "empty.jsonl", end)))[0]) == []


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system does not list a process's open files")
def test_a_thousand_tasks_do_not_keep_a_thousand_files_open(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", jsonl(ROWS[i % 40 :][:2])) for i in range(100)]
    before = len(os.listdir("/dev/fd"))

    opened = [open_rows(spec({"train": path}))["train"] for path in paths]

    assert len(os.listdir("/dev/fd")) - before <= 64
    assert all(rows[0] == ROWS[i % 40] for i, rows in enumerate(opened))


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_only_line_ends_end_a_record(ending, mark, line, tmp_path):
    rows = [{"text": f"a{odd}b", "label": "neg"} for odd in "\u2028\u2029\x85\x0b\x0c\x1c"]
    write(tmp_path / f"x.{ending}", delimited(rows, mark).replace("\n", line))

    found = open_rows(spec({"train": str(tmp_path / f"x.{ending}")}))["train"]

    assert list(found) == rows
    assert [found.where(i) for i in range(6)] == [f"{found.path}:{i}" for i in range(2, 8)]


def test_parquet_reads_lists_and_slices(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = [{"tokens": ["a", "b"], "tags": [0, i % 2]} for i in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train.parquet")

    rows = open_rows(spec({"train": str(tmp_path / "train.parquet")}, "tag"))["train"]

    assert list(rows) == table and rows[4] == table[4] and rows.read(1, 3) == table[1:3]
    assert rows.where(2).endswith("train.parquet[2]")


def test_conll_sentences_know_the_line_they_start_in(tmp_path):
    plain = write(tmp_path / "x.conll", "-DOCSTART- -X- O\n\nBerlin NNP B-loc\nis VBZ O\n\n\n# NN O\n")
    universal = write(
        tmp_path / "x.conllu",
        "# text = Hi there\n1-2\tx"
        + "\t_" * 8
        + "\n1\tHi\thi\tINTJ"
        + "\t_" * 6
        + "\n2\tthere\tthere\tADV"
        + "\t_" * 6
        + "\n\n",
    )

    rows = open_rows(spec({"train": plain}, "tag"))["train"]
    other = open_rows(spec({"train": universal}, "tag"))["train"]

    assert list(rows) == [
        {"tokens": ["Berlin", "is"], "column_2": ["NNP", "VBZ"], "tags": ["B-loc", "O"]},
        {"tokens": ["#"], "column_2": ["NN"], "tags": ["O"]},
    ]
    assert [rows.where(i) for i in range(2)] == [f"{plain}:3", f"{plain}:7"]
    assert (other[0]["tokens"], other[0]["tags"], other.where(0)) == (
        ["Hi", "there"],
        ["INTJ", "ADV"],
        f"{universal}:3",
    )


def test_a_folder_is_read_split_by_split(tmp_path):
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "extra.jsonl"):
        write(tmp_path / name, jsonl([{"text": name, "label": "neg"}]))
    write(tmp_path / "meta.json", "{}")

    rows = open_rows(spec(str(tmp_path)))

    assert {split: own[0]["text"] for split, own in rows.items()} == {
        "train": "train.jsonl",
        "validation": "dev.jsonl",
        "test": "test.jsonl",
        "extra": "extra.jsonl",
    }


def opened(source, **options):
    return TaskData.open(spec(source, **options))


@pytest.mark.parametrize("form", ["file", "folder", "split", "memory"])
def test_validation_is_held_out_by_content_where_a_source_has_none(form, tmp_path):
    many = [{"text": f"row {i % 300}", "label": "neg"} for i in range(400)]

    def source(name, rows):
        path = write(tmp_path / name / ("train.jsonl" if form == "folder" else "x.jsonl"), jsonl(rows))
        if form == "folder":
            write(tmp_path / name / "test.jsonl", jsonl(rows[:3]))
        memory = {"train": rows, "test": rows[:3]}
        return {"file": path, "folder": str(tmp_path / name), "split": {"train": path}, "memory": memory}[
            form
        ]

    first = opened(source("a", many))
    grown = opened(source("b", [{"text": "new", "label": "neg"}, *reversed(many)]))

    held = {row["text"] for row in first.rows("validation")}
    assert first.rows("validation").held_out and not first.rows("train").held_out
    assert first.splits[:2] == ("train", "validation") and 15 < len(held) < 50
    assert held.isdisjoint(row["text"] for row in first.rows("train"))
    assert len(first.rows("train")) + len(first.rows("validation")) == 400
    assert held == {row["text"] for row in grown.rows("validation")} - {"new"}
    if form == "file":
        assert first.rows("validation").where(0).startswith(f"{tmp_path / 'a' / 'x.jsonl'}:")


@pytest.mark.parametrize(
    ("texts", "least", "most"),
    [
        ([f"row {i}" for i in range(30_000)], 1000, 1000),
        (["a", "b"], 1, 1),
        (["a", "b"] * 50, 0, 0),  # copies: a whole half would have to go
        (["a"] * 50, 0, 0),
        (["a"], 0, 0),
    ],
)
def test_few_rows_are_held_out_and_never_a_large_part(texts, least, most):
    rows = opened({"train": [{"text": text, "label": "neg"} for text in texts]})

    held = len(rows.rows("validation")) if "validation" in rows.splits else 0
    assert least <= held <= most
    assert held + len(rows.rows("train")) == len(texts)


def test_shots_are_drawn_from_train_and_are_not_trained_on():
    data = opened({"train": ROWS, "validation": ROWS[:2]}, shots=3, demonstrations=(ROWS[0],))
    again = TaskData.open(data.spec.replace(shots=2))

    shown = data.spec.demonstrations
    assert shown[0] == ROWS[0] and len(shown) == 3 and all(row in ROWS for row in shown)
    assert len(data.rows("train")) == 38
    assert all(row not in shown[1:] for row in data.rows("train"))
    assert again.spec.demonstrations == shown and len(again.rows("train")) == 40
    with pytest.raises(DataError, match="shots is 9, and there are 0 demonstrations and 5 rows in train"):
        opened({"train": ROWS[:5], "validation": ROWS}, shots=9)


def test_splits_are_renamed_and_cut_as_the_spec_says():
    source = {"train": ROWS, "dev": ROWS[:10]}

    found = open_rows(
        spec(source, splits={"train": "train[:75%]", "validation": "train[75%:]", "test": "dev"})
    )

    assert {split: (len(rows), rows[0]) for split, rows in found.items()} == {
        "train": (30, ROWS[0]),
        "validation": (10, ROWS[30]),
        "test": (10, ROWS[0]),
    }
    with pytest.raises(DataError, match=r"splits.test: the source has no split 'tset'. Known: dev, train"):
        open_rows(spec(source, splits={"test": "tset"}))


def test_given_splits_leave_out_what_they_do_not_name_but_train():
    source = {"train": ROWS, "dev": ROWS[:10], "test": ROWS[:5]}

    assert list(open_rows(spec(source))) == ["train", "validation", "test"]
    assert list(open_rows(spec(source, splits={"validation": "dev"}))) == ["train", "validation"]


def test_a_limit_draws_the_same_rows_again_in_their_order():
    first, again = (open_rows(spec({"train": ROWS, "test": ROWS[:5]}, limit=12)) for _ in range(2))

    texts = [row["text"] for row in first["train"]]
    assert (
        len(texts) == 12
        and texts == [row["text"] for row in again["train"]]
        and texts != [r["text"] for r in ROWS[:12]]
    )
    assert [ROWS.index(row) for row in first["train"]] == sorted(ROWS.index(row) for row in first["train"])
    assert len(first["test"]) == 5
    assert first["train"].where(0) == f"own/task train[{ROWS.index(first['train'][0])}]"


def test_the_fingerprint_follows_content_and_choice_of_rows(tmp_path):
    def mark(rows, **options):
        return open_rows(spec({"train": rows}, **options))["train"].fingerprint

    path = write(tmp_path / "x.jsonl", jsonl(ROWS))
    before = mark(path)

    assert mark(ROWS) == mark(list(ROWS)) != mark(ROWS[:-1])
    assert mark(ROWS, limit=5) != mark(ROWS, limit=6)
    assert before == mark(path) != mark(write(tmp_path / "x.jsonl", jsonl(ROWS[1:])))


def test_a_hub_data_set_gives_rows_splits_and_label_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    part = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    asked = []

    def load_dataset(*address, **options):
        asked.append((*address, options))
        return datasets.DatasetDict(train=part, validation_matched=part.select([1, 2]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    data = TaskData.open(spec("hub:owner/set/config@abc", splits={"validation": "validation_matched"}))

    assert asked == [("owner/set", "config", {"revision": "abc"})]
    assert data.splits == ("train", "validation") and data.spec.labels == ("bad", "good")
    assert list(data.rows("validation")) == [{"text": "b", "label": 0}, {"text": "c", "label": 1}]
    assert data.example("train", 2).target == 1
    assert data.rows("train").where(2) == "hub:owner/set/config@abc train[2]"
    fingerprints = {data.rows(split).fingerprint for split in data.splits}
    assert len(fingerprints) == 2
    assert {TaskData.open(data.spec).rows(split).fingerprint for split in data.splits} == fingerprints


def test_a_hub_data_set_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)

    with pytest.raises(
        MtnlpError, match=r"own/task: hub:a/b could not be loaded: .*no route.*in the cache, or give local"
    ):
        open_rows(spec("hub:a/b"))
    with pytest.raises(DataError, match="no hub address"):
        open_rows(spec("hub:a/b@"))


BAD_FILES = {
    "empty file": ("train.jsonl", "", r"train\.jsonl: the train split has no rows"),
    "no file": (None, None, r"train\.jsonl: no such file. Did you mean 'trian.jsonl'"),
    "ending": ("train.docx", "x", r"train\.docx: files ending in '.docx' cannot be read"),
    "cut json line": (
        "train.jsonl",
        jsonl(ROWS[:2]) + '{"text": "a", "label": po}',
        r"train\.jsonl:3: not valid JSON in or "
        "after the field 'label'",
    ),
    "no object": ("train.jsonl", "[1, 2]\n", r"train\.jsonl:1: found '\[1, 2\]', expected a JSON object"),
    "json": ("train.json", '[\n{"text": 1,}]', r"train\.json:2: not valid JSON"),
    "json rows": ("train.json", '[{"text": "a"}, 7]', r"train\.json\[1\]: found 7,"),
    "bytes": (
        "train.jsonl",
        jsonl(ROWS[:1]).encode() + b'{"text": "\xff"}\n',
        r"train\.jsonl:2: byte 0xff .* is not UTF-8",
    ),
    "csv bytes": (
        "train.csv",
        b"text,label\na,neg\nb\xfe,pos\n",
        r"train\.csv:3: byte 0xfe after b'b' is not UTF-8",
    ),
    "few fields": (
        "train.csv",
        "text,label\na,neg\nb\n",
        r"train\.csv:3: 1 fields, .* the field 'label' is missing",
    ),
    "many fields": (
        "train.tsv",
        "text\tlabel\na\tneg\tx\n",
        r"train\.tsv:2: 3 fields, .*'x' comes after the last field 'label'",
    ),
    "open quote": ("train.csv", 'text,label\n"a,neg\n', r"train\.csv:2: not a valid record"),
    "conll columns": ("train.conll", "a O\nb\n", r"train\.conll:2: 1 columns, expected 2; the field 'tags'"),
    "parquet": ("train.parquet", "no", r"train\.parquet: not a readable Parquet file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_its_line_and_field(case, tmp_path):
    name, content, message = BAD_FILES[case]
    if name is None:
        name = "train.jsonl"
        write(tmp_path / "trian.jsonl", jsonl(ROWS))
    else:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(DataError, match=message):
        list(open_rows(spec({"train": str(tmp_path / name)}))["train"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROWS[0], 1: "a"}, r"own/task train\[1\]: the column 1 has no text for a name"),
        (
            {**ROWS[0], "more": {1: "a", "b": 2}},
            r"own/task train\[1\]: .*keys of a mapping in a row must all be",
        ),
        ("a text", r"own/task train\[1\]: a row is a mapping of columns to values, found 'a text'"),
    ],
)
def test_a_row_in_memory_that_is_no_row_is_named(row, message):
    with pytest.raises(DataError, match=message):
        opened({"train": [ROWS[0], row]})


def test_a_folder_in_the_place_of_a_file_is_told_from_a_missing_one(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path} is a folder; expected one file .*`source: {tmp_path}`"):
        open_rows(spec({"train": str(tmp_path)}))


def test_ids_in_a_text_file_are_ids_of_the_labels_that_are_given(tmp_path):
    path = write(tmp_path / "x.csv", "text,label\na,0\nb,1\nc,1.0\n")

    data = opened(path, labels=("neg", "pos"), splits={"train": "train", "validation": "train"})

    assert [data.example("train", i).target for i in range(3)] == [0, 1, 1]


BAD_ROWS = {
    "unequal lengths": ("tag", {"tokens": ["a", "b"], "tags": ["O"]}, "tags: 1 tags for 2 tokens"),
    "unknown label": (
        "classify",
        {"text": "a", "label": "poss"},
        "label 'poss' .*is not a label .*Did you mean 'pos'",
    ),
    "label number": ("classify", {"text": "a", "label": 7}, r"label 7 is outside 0\.\.1"),
    "missing field": ("classify", {"label": "pos"}, "text: no column 'text'"),
    "answer offset": (
        "span",
        {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [0]}},
        "answers: ",
    ),
}
GOOD_ROWS = {
    "tag": {"tokens": ["a"], "tags": ["O"]},
    "classify": {"text": "a", "label": "neg"},
    "span": {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [1]}},
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_its_file_line_and_field(case, tmp_path, tokenizers):
    kind, row, message = BAD_ROWS[case]
    labels = {"tag": ("O",), "classify": ("neg", "pos")}.get(kind)
    path = write(tmp_path / "train.jsonl", jsonl([GOOD_ROWS[kind]] * 2 + [row]))
    write(tmp_path / "validation.jsonl", jsonl([GOOD_ROWS[kind]]))
    data = TaskData.open(spec(str(tmp_path), kind, labels=labels))

    for read in (
        lambda: data.example("train", 2),
        lambda: data.store("train", Encoder(tokenizers["bert"], "encoder", 30), tmp_path / "cache"),
    ):
        with pytest.raises(DataError, match=f"^{path}:3: {message}"):
            read()


def test_opening_a_task_finds_its_labels_and_reports_all_missing_columns():
    source = {"train": ROWS, "validation": ROWS, "extra": [{"other": 1}]}

    assert TaskData.open(spec(source)).spec.labels == ("neg", "pos")
    with pytest.raises(
        DataError,
        match=r"(?s)fields.text: no column 'txt'.*Did you mean 'text'.*fields.label: no column 'lable'",
    ):
        TaskData.open(spec(source, fields={"text": "txt", "label": "lable"}))
    with pytest.raises(DataError, match="no train split to read them from"):
        TaskData.open(spec({"test": ROWS}))
    with pytest.raises(DataError, match=r"(?s)test: fields.label: no column 'label'.*Is it unlabelled"):
        TaskData.open(spec({"train": ROWS, "test": [{"text": "a"}]}))
    with pytest.raises(DataError, match="no 'test' split\\. Known: extra, train, validation"):
        TaskData.open(spec(source)).rows("test")
    with pytest.raises(DataError, match=r"own/task: own/task test: the test split has no rows"):
        open_rows(spec({"train": ROWS, "test": []}))


def test_a_limit_takes_rows_away_but_no_labels():
    rows = [{"text": str(i), "label": f"label {i:02}"} for i in range(30)]

    data = TaskData.open(spec({"train": rows, "validation": rows}, limit=3))

    assert len(data.spec.labels) == 30
    assert [len(data.rows(split)) for split in data.splits] == [3, 3]
    assert all(data.example("validation", i).target is not None for i in range(3))
