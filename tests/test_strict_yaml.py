"""YAML with the scalars of version 1.2, and the documents that are refused."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlp import strict_yaml
from mtnlp.errors import MtnlpError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("5.", 5.0), ("-.inf", -math.inf),
        ("20_000", 20000), ("-7", -7), ("007", 7), ("0x1F", 31), ("0o17", 15),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("Yes", "Yes"), ("on", "on"), ("1:30", "1:30"), ("2024-05-01", "2024-05-01"),
        ("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"), ("'3e-4'", "3e-4"), ("_1", "_1"), (".", "."),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text, value):
    read = strict_yaml.load(text, "x")

    assert (read, type(read)) == (value, type(value))


@given(VALUES)
@settings(max_examples=200)
def test_what_is_dumped_reads_back_the_same(value):
    assert strict_yaml.load(strict_yaml.dump(value), "x") == value


@given(VALUES)
@settings(max_examples=100)
def test_other_yaml_readers_read_the_same_dump(value):
    assert yaml.safe_load(strict_yaml.dump(value)) == value


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml: line 3: the key 'a' is given twice"),
        ("x: {lr: 1,\n lr: 2}", "r.yaml: line 2: the key 'lr' is given twice"),
        ("a: 1\n b: 2\n", "r.yaml: line 2: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "r.yaml: line 2: but found another document"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        (BOMB, "aliases unfold into more than 1,000,000 values"),
        ("a: &a [1, *a]", "aliases unfold into more than"),
        ("[" * 5000, "nested too deeply"),
        ("a: \0", "not readable as YAML"),
        ("9" * 5000, "not readable as YAML"),
    ],
    ids=[
        "twice",
        "twice inside",
        "indent",
        "two documents",
        "python",
        "bomb",
        "cycle",
        "deep",
        "nul",
        "long",
    ],
)
def test_a_document_that_could_surprise_is_refused(text, message):
    with pytest.raises(MtnlpError) as caught:
        strict_yaml.load(text, "r.yaml")

    assert message in str(caught.value)


def test_plain_anchors_and_merges_are_welcome():
    text = "base: &base {lr: 1e-3, steps: 5}\nrun: {<<: *base, steps: 9}\n"

    assert strict_yaml.load(text, "x")["run"] == {"lr": 1e-3, "steps": 9}


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")

    with pytest.raises(MtnlpError, match=r"latin\.yaml: not a UTF-8 text file"):
        strict_yaml.read(tmp_path / "latin.yaml")
    with pytest.raises(MtnlpError, match=r"none\.yaml: No such file"):
        strict_yaml.read(tmp_path / "none.yaml")
