"""Folders and what fsspec reaches: a push arrives whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from pathlib import Path

import fsspec
import pytest

from mtnlp.errors import MtnlpError
from mtnlp.hub import addresses, stores

OLD = {
    "mtnlp_bundle.json": b'{"old": 1}',
    "tasks/a/head.safetensors": b"old" * 500,
    "tasks/gone/head.safetensors": b"gone",
    "README.md": b"old",
}
NEW = {
    "mtnlp_bundle.json": b'{"new": 1}',
    "tasks/a/head.safetensors": b"new" * 500,
    "tasks/b/head.safetensors": b"b",
    "README.md": b"new",
}
FOREIGN = {"notes.txt": b"theirs", "tasks/mine.txt": b"theirs too"}
STEPS = [(os, "replace"), (os, "rename"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (shutil, "copyfile")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def owned(name):
    return name not in FOREIGN


def push(folder, address):
    return stores.publish(folder, address, message="", owned=owned)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.fixture
def memory():
    """The address of an empty place in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield "memory://bucket/it"
    files.store.clear()


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request, tmp_path, memory):
    """An address of each kind, at which nothing is."""
    return {
        "folder": f"{tmp_path}/a place/it",
        "file://": f"file://{tmp_path}/a place/it",
        "memory://": memory,
    }[request.param]


def test_what_was_pushed_comes_back_and_a_second_push_writes_nothing(place, tmp_path):
    old, new = write(tmp_path / "old", OLD), write(tmp_path / "new", NEW)

    results = [push(old, place), push(old, place), push(new, place), push(new, place)]

    assert [found.changed for found in results] == [True, False, True, False]
    assert results[0] == stores.Published(place, None, None, True)
    seen = []
    fetched = stores.fetch(place, check=seen.extend)
    assert read(fetched) == read(new) == NEW
    assert dict(seen) == {name: len(content) for name, content in NEW.items()}


def test_files_of_others_stay(place, tmp_path):
    push(write(tmp_path / "old", {**OLD, **FOREIGN}), place)

    push(write(tmp_path / "new", NEW), place)

    assert read(stores.fetch(place)) == {**NEW, **FOREIGN}
    if not place.startswith("file://"):  # elsewhere a folder ends with its last file
        assert not list(tmp_path.glob("a place/it/tasks/gone"))


def test_a_changed_card_alone_is_a_change(place, tmp_path):
    push(write(tmp_path / "old", OLD), place)

    assert push(write(tmp_path / "old", {"README.md": b"OLD"}), place).changed
    assert read(stores.fetch(place)) == {**OLD, "README.md": b"OLD"}


def after(step, act):
    """In a process of its own: kill it before its `step`-th change of the file system; whether it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def killed(change):
        def changed(*args, **options):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return change(*args, **options)

        return changed

    for module, name in STEPS:
        setattr(module, name, killed(getattr(module, name)))
    try:
        act()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_folder_is_the_old_or_the_new_one_wherever_a_push_is_killed(tmp_path):
    new, seen = write(tmp_path / "new", NEW), []
    for step in range(1, 200):
        place = write(tmp_path / "places" / str(step), {**OLD, **FOREIGN})
        ended = after(step, lambda place=place: push(new, place))
        seen.append(read(stores.fetch(str(place))))
        push(new, place)
        assert read(place) == {**NEW, **FOREIGN}
        if ended:
            break

    known = [{**OLD, **FOREIGN}, {**NEW, **FOREIGN}]
    clean = [
        {name: c for name, c in found.items() if not name.startswith(".mtnlp-push.part")} for found in seen
    ]
    assert all(found in known for found in clean)
    assert len(seen) > 15 and clean.count(known[0]) > 5 and clean.count(known[1]) > 5


def test_a_full_disk_leaves_a_folder_as_it_was(tmp_path, monkeypatch):
    place, new = write(tmp_path / "it", {**OLD, **FOREIGN}), write(tmp_path / "new", NEW)
    copy, count = shutil.copyfile, iter(range(9))

    def full(source, target):
        if next(count) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(MtnlpError, match=r"the disk is full .* Free some space, then run the same"):
        push(new, place)

    assert read(place) == {**OLD, **FOREIGN} and read(new) == NEW


@pytest.mark.parametrize("call", ["put_file", "mv", "rm_file", "makedirs"])
def test_an_fsspec_place_never_loads_as_a_mix_wherever_a_push_breaks_off(tmp_path, memory, monkeypatch, call):
    old, new = write(tmp_path / "old", OLD), write(tmp_path / "new", NEW)
    kind, states = type(fsspec.filesystem("memory")), []
    change = getattr(kind, call)
    for step in range(20):
        push(old, memory)
        count = iter(range(100))

        def broken(*args, count=count, step=step, **options):
            if next(count) == step:
                raise TimeoutError("the bucket went away")
            return change(*args, **options)

        monkeypatch.setattr(kind, call, broken)
        told = ""
        try:
            push(new, memory)
        except MtnlpError as error:
            told = str(error)
        monkeypatch.undo()
        monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))
        states.append(read(stores.fetch(memory)))
        assert told.startswith(f"{memory}: the bucket went away") or states[-1] == NEW
        assert push(new, memory).changed == (states[-1] != NEW) and read(stores.fetch(memory)) == NEW
        if next(count) <= step:  # there were not so many calls
            break

    assert states[-1] == NEW and 1 < len(states) < 20
    assert all(found in (OLD, NEW) or "mtnlp_bundle.json" not in found for found in states)
    if call == "put_file":  # nothing was there yet but copies
        assert states == [OLD] * len(NEW) + [NEW]


def test_a_fetched_copy_is_used_again_until_something_changes(tmp_path, memory, monkeypatch):
    push(write(tmp_path / "old", OLD), memory)
    first = stores.fetch(memory)
    kind = type(fsspec.filesystem("memory"))
    asked, get = [], kind.get_file
    monkeypatch.setattr(
        kind, "get_file", lambda self, *args, **options: asked.append(args) or get(self, *args)
    )

    assert stores.fetch(memory) == first and asked == []
    fsspec.filesystem("memory").pipe("/bucket/it/tasks/a/head.safetensors", b"OLD" * 500)  # of the same size
    again = stores.fetch(memory)

    assert again != first and read(again)["tasks/a/head.safetensors"] == b"OLD" * 500
    assert read(first) == OLD


def test_a_download_that_breaks_off_leaves_no_copy(tmp_path, memory, monkeypatch, cache):
    push(write(tmp_path / "old", OLD), memory)
    kind = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(kind, "get_file", lambda self, source, target, **_: Path(target).write_bytes(b"ol"))

    with pytest.raises(MtnlpError, match=r"^memory://bucket/it: 'README.md' arrived with 2 of 3 bytes"):
        stores.fetch(memory)

    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_names_that_leave_the_folder_are_refused_before_anything_is_fetched(memory, cache):
    fsspec.filesystem("memory").store["/bucket/it/a/../../out"] = fsspec.filesystem("memory").open("/x", "wb")

    with pytest.raises(MtnlpError, match=r"is no name for a file of a bundle"):
        stores.fetch(memory)

    assert not cache.exists()


def test_links_out_of_a_folder_are_neither_sent_nor_written_through(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    source = write(tmp_path / "source", NEW)
    (source / "tasks/a/x.safetensors").symlink_to(tmp_path / "secret")
    through = write(tmp_path / "through", {"mtnlp_bundle.json": b"{}"})
    (through / "tasks").symlink_to(tmp_path / "elsewhere")

    for folder, place in [(source, tmp_path / "there"), (write(tmp_path / "new", NEW), through)]:
        with pytest.raises(MtnlpError, match="is a link that leads out of it"):
            push(folder, place)
    with pytest.raises(MtnlpError, match="is a link that leads out of it"):
        stores.fetch(str(source))
    assert not (tmp_path / "there" / "tasks").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_says_it_was_being_pushed_to_cannot_reach_out(tmp_path):
    place = write(tmp_path / "it", OLD)
    write(place, {".mtnlp-push/removed.json": b'["../mine.txt"]'})
    write(tmp_path, {"mine.txt": b"mine"})

    with pytest.raises(MtnlpError, match="is no name for a file"):
        stores.fetch(str(place))

    assert (tmp_path / "mine.txt").read_bytes() == b"mine"


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    place = write(tmp_path / "project", {"README.md": b"mine", "code.py": b"mine"})

    with pytest.raises(
        MtnlpError, match=r"README\.md is there already, and of no bundle\. Give another folder"
    ):
        push(write(tmp_path / "new", NEW), place)

    assert read(place) == {"README.md": b"mine", "code.py": b"mine"}


def test_two_pushes_to_one_folder_do_not_meet(tmp_path, monkeypatch):
    new, place, met = write(tmp_path / "new", NEW), tmp_path / "it", []
    copy = shutil.copyfile

    def meanwhile(source, target):
        with pytest.raises(MtnlpError, match="another push to it is running"):
            push(new, place)
        met.append(target)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", meanwhile)
    push(new, place)

    assert len(met) == len(NEW) and read(place) == NEW


@pytest.mark.parametrize(
    ("text", "kind", "place", "revision"),
    [
        ("owner/name", "hub", "owner/name", None),
        ("hf://owner/name@v1.0", "hub", "owner/name", "v1.0"),
        ("owner/name@refs/pr/3", "hub", "owner/name", "refs/pr/3"),
        ("./owner/name", "folder", "./owner/name", None),
        ("out/bundle", "folder", "out/bundle", None),  # exists
        ("a/b/c", "folder", "a/b/c", None),
        ("name", "folder", "name", None),
        ("s3://bucket/it", "remote", "s3://bucket/it", None),
        (Path("owner/name"), "folder", "owner/name", None),
    ],
)
def test_addresses_mean_what_they_look_like(tmp_path, monkeypatch, text, kind, place, revision):
    (tmp_path / "out/bundle").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    found = addresses.parse(text)

    assert (found.kind, found.place, found.revision) == (kind, place, revision)
    if isinstance(text, str):
        assert stores.is_address(text) == (kind != "folder" or text == "out/bundle")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("gcss://bucket/it", {}, "there is no scheme 'gcss'.*Did you mean 'gcs'"),
        ("https://huggingface.co/a/b", {}, "a web page is no place.*owner/name"),
        ("hf://datasets/a/b", {}, "hf://owner/name@revision"),
        ("", {}, "is no address"),
        ("a\0b", {}, "is no address"),
        ("owner/name@../../x", {}, "is no name of a branch"),
        ("owner/name@main", {"revision": "v1"}, "Leave one out"),
        ("./folder", {"revision": "v1"}, "only a hub repository has revisions"),
        ("./folder", {}, "no such folder.*owner/name"),
        ("memory://bucket/nothing", {}, "nothing is there"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(text, options, words):
    with pytest.raises(MtnlpError, match=words):
        stores.fetch(text, **options)


def test_options_of_a_hub_are_refused_elsewhere(tmp_path):
    source = write(tmp_path / "new", NEW)

    for option in ({"private": True}, {"create_pr": True}):
        with pytest.raises(MtnlpError, match="is for hub repositories"):
            stores.publish(source, "memory://x", message="", **option)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)

    with pytest.raises(MtnlpError, match=r"^s3://bucket/it: s3:// needs a package .*pip install s3fs"):
        push(write(tmp_path / "new", NEW), "s3://bucket/it")


def test_keys_in_an_address_are_never_told(tmp_path, capfd, caplog):
    class Leaky(fsspec.AbstractFileSystem):
        protocol = "leaky"

        def find(self, path, **options):
            raise ValueError("cannot reach leaky://AKIAKEY:p%40ss@host/it?sig=SIGNATURE with p@ss")

    fsspec.register_implementation("leaky", Leaky, clobber=True)
    address = "leaky://AKIAKEY:p%40ss@host/it?sig=SIGNATURE"

    with caplog.at_level("DEBUG"), pytest.raises(MtnlpError, match="cannot reach") as caught:
        push(write(tmp_path / "new", NEW), address)

    told = "".join([*traceback.format_exception(caught.value), caplog.text, *capfd.readouterr()])
    assert str(caught.value).startswith("leaky://***@host/it?***: cannot reach")
    assert not any(
        secret in told.replace(address, "") for secret in ("AKIAKEY", "p@ss", "p%40ss", "SIGNATURE")
    )
