"""Kept answers: whatever a kill leaves of the file, whole batches and nothing else come back."""

import os
import time

import pytest
from filelock import FileLock

from mtnlp.bench import samples
from mtnlp.bench.samples import Samples, key_of
from mtnlp.errors import MtnlpError

BATCHES = [
    [("a", {"value": 1, "scores": [0.1, 1 / 3]}), ("b", {"value": "tëxt\u2028 \ud800"})],
    [("c", {"value": [1, 2]})],
    [("d", {"value": -1e-300}), ("e", {"value": None}), ("f", {"value": 0.1 + 0.2})],
]


def kept(path):
    for batch in BATCHES:
        Samples(path).add(batch)
    return path.read_bytes()


def test_answers_come_back_exactly(tmp_path):
    kept(tmp_path / "x" / "m.jsonl")
    found = Samples(tmp_path / "x" / "m.jsonl")
    assert [found.get(key) for batch in BATCHES for key, _ in batch] == [a for b in BATCHES for _, a in b]
    assert len(found) == 6 and found.get("other") is None


def test_after_a_kill_at_any_byte_whole_batches_are_there_and_the_rest_can_be_added_again(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = kept(path)
    ends = [0, *(whole.index(f'"key": "{batch[-1][0]}"'.encode()) for batch in BATCHES)]
    ends = [0, *(whole.index(b"\n", end) + 1 for end in ends[1:])]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = Samples(path)
        done = sum(end <= cut for end in ends[1:])
        assert len(found) == sum(len(batch) for batch in BATCHES[:done])
        for batch in BATCHES[done:]:
            found.add(batch)
        assert path.read_bytes() == whole


def test_the_key_is_of_content_and_not_of_the_order_of_keys():
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    assert len({key_of(1), key_of("1"), key_of([1]), key_of(1, 2), key_of([1, 2])}) == 5


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "m.jsonl").mkdir()
    with pytest.raises(MtnlpError, match=r"m\.jsonl: kept answers cannot be read"):
        Samples(tmp_path / "m.jsonl")


def test_two_processes_lose_nothing_of_each_other(tmp_path):
    one, two = Samples(tmp_path / "m.jsonl"), Samples(tmp_path / "m.jsonl")
    for i, who in enumerate((one, two, two, one, two)):
        who.add([(f"{i}", {"value": i})])
    assert [Samples(tmp_path / "m.jsonl").get(f"{i}")["value"] for i in range(5)] == list(range(5))


@pytest.mark.parametrize("rubbish", [b"\0" * 50, b"{}\n"], ids=["zeros", "line"])
def test_whatever_stands_behind_a_cut_at_any_byte_only_whole_batches_are_read(tmp_path, rubbish):
    path = tmp_path / "m.jsonl"
    whole = kept(path)
    lines = whole.splitlines(keepends=True)
    ends = [len(b"".join(lines[:count])) for count in (2, 3, 6)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut] + rubbish)
        assert len(Samples(path)) == sum(n for n, end in zip((2, 1, 3), ends, strict=True) if end <= cut)


def day(path, days):
    """Says that a file was last used so many days ago."""
    os.utime(path, (time.time() - days * 86400,) * 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Kept answers of a hundred bytes each, by the days for which they were not used; 250 may stay."""
    monkeypatch.setattr(samples, "MOST", 250)
    for days in (100, 60, 40, 20, 10):
        (tmp_path / f"{days}.jsonl").write_text("x" * 99 + "\n")
        (tmp_path / f"{days}.jsonl.lock").touch()
        day(tmp_path / f"{days}.jsonl", days)
    return tmp_path


def names(folder):
    return {path.stem for path in folder.glob("*.jsonl")}


def test_the_longest_unused_answers_are_removed_before_new_ones_are_written_but_none_of_this_month(folder):
    Samples(folder / "60.jsonl")  # opened, so it is used
    new = Samples(folder / "new.jsonl")
    assert names(folder) == {"100", "60", "40", "20", "10"}
    new.add(BATCHES[0])
    assert names(folder) == {"60", "20", "10", "new"}
    day(folder / "10.jsonl", 90)
    new.add(BATCHES[1])
    assert "10" in names(folder)  # it was looked at once, before the first batch


def test_no_more_is_removed_than_is_too_much(folder, monkeypatch):
    monkeypatch.setattr(samples, "MOST", 400)
    (folder / "mine.jsonl").write_text("x" * 999)  # of somebody who put it there
    day(folder / "mine.jsonl", 999)
    samples.prune(folder)
    assert names(folder) == {"60", "40", "20", "10", "mine"}


def test_what_another_process_is_writing_stays(folder):
    with FileLock(f"{folder / '100.jsonl'}.lock"):
        samples.prune(folder)
    assert names(folder) == {"100", "20", "10"}


def test_a_file_that_was_removed_while_it_was_in_use_is_begun_again(tmp_path):
    found = Samples(tmp_path / "m.jsonl")
    found.add(BATCHES[0])
    (tmp_path / "m.jsonl").unlink()
    found.add(BATCHES[1])
    assert len(found) == 3 and Samples(tmp_path / "m.jsonl").get("c") == {"value": [1, 2]}
