"""Rows of pystdlib tasks that are kept: the same as built ones, whatever happened to the file."""

from __future__ import annotations

import json
import os
import sys

import pytest

from mtnlp.data import kept
from mtnlp.errors import MtnlpError
from mtnlp.tasks import _stdlib, pystdlib

NAMES = ("module", "match", "params", "choose", "length", "summary")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """fresh(name): the rows of a task as a new process gets them; the cache is empty at first."""
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path))

    def fresh(name):
        kept.pystdlib_rows.cache_clear()
        return kept.pystdlib_rows(name)

    yield fresh
    kept.pystdlib_rows.cache_clear()


@pytest.fixture
def unbuilt(monkeypatch):
    """After unbuilt(), building any row is an error."""

    def refuse(*args):
        raise AssertionError("built again")

    return lambda: monkeypatch.setattr(pystdlib, "rows", refuse)


def built(name):
    return {split: pystdlib.rows(name, split) for split in pystdlib.SPLITS}


def only_file(folder):
    (file,) = (folder / "pystdlib").iterdir()
    return file


@pytest.mark.parametrize("name", NAMES)
def test_kept_rows_are_the_built_ones_to_the_last_type(fresh, unbuilt, name):
    expected = built(name)
    first = fresh(name)
    unbuilt()

    again = fresh(name)

    assert repr(again) == repr(first) == repr(expected)  # types, and the order of splits and columns too


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "binary", "other JSON", "folder"])
def test_a_damaged_file_is_made_again(fresh, unbuilt, tmp_path, damage):
    expected = fresh("module")
    file = only_file(tmp_path)
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        changed = content.replace(b"Construct", b"Destruct ", 1)
        file.write_bytes(
            {
                "cut": content[:-1000],
                "changed": changed,
                "empty": b"",
                "binary": b"\xff\xfe" * 99,
                "other JSON": b"[]\n[]",
            }[damage]
        )
        assert file.read_bytes() != content

    assert fresh("module") == expected

    if damage != "folder":
        assert only_file(tmp_path).read_bytes() == content
        unbuilt()
        assert fresh("module") == expected


def test_where_nothing_can_be_written_the_rows_are_built(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "file"))

    assert fresh("module") == built("module")


def test_a_write_that_fails_leaves_nothing(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(kept.Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("full")))

    assert fresh("module") == built("module")
    assert list((tmp_path / "pystdlib").iterdir()) == []


def test_a_wrong_name_is_told_and_keeps_nothing(fresh, tmp_path):
    with pytest.raises(MtnlpError, match="no task is called 'modul'"):
        fresh("modul")

    assert not (tmp_path / "pystdlib").exists()


def test_another_python_library_or_builder_has_another_signature(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    library.mkdir()
    (library / "json.py").write_text('def dumps(obj):\n    """Serialize obj."""\n')
    monkeypatch.setattr(_stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    signature = pystdlib.signature.__wrapped__
    seen = [signature()]
    assert signature() == seen[0]

    os.utime(library / "json.py", ns=(1, 1))
    seen.append(signature())
    (library / "ast.py").write_text("")
    seen.append(signature())
    monkeypatch.setattr(sys, "version", "3.99")
    seen.append(signature())
    read = pystdlib.Path.read_bytes
    monkeypatch.setattr(pystdlib.Path, "read_bytes", lambda self: read(self) + b"# changed")
    seen.append(signature())

    assert len(set(seen)) == len(seen)


def test_the_file_is_plain_json(fresh, tmp_path):
    rows = fresh("length")

    lines = only_file(tmp_path).read_text("utf-8").splitlines()

    assert len(lines) == 2 and json.loads(lines[1]) == rows
