"""Kept answers: whatever a kill leaves of the file, whole batches and nothing else come back."""

import pytest

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
