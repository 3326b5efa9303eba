"""Pushing to a hub and pulling from it, through its real client and over real connections."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import huggingface_hub as client
import pytest
from hub.conftest import TOKEN
from hub.server import environment
from huggingface_hub import constants

from mtnlp.data import hub as reached
from mtnlp.errors import MtnlpError
from mtnlp.hub import stores

OLD = {"mtnlp_bundle.json": b'{"files": {}}', "tasks/a/head.safetensors": b"old" * 500, "README.md": b"old"}
NEW = {"mtnlp_bundle.json": b'{"files": {} }', "tasks/b/head.safetensors": b"new" * 500, "README.md": b"new"}


def owned(name):
    return name not in ("foreign.txt", ".gitattributes")


def push(folder, address="ann/it", **options):
    return stores.publish(folder, address, message="a push", owned=owned, **options)


def read(folder):
    """Name -> content, without what the hub adds."""
    found = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".gitattributes"}


@pytest.fixture
def folder(tmp_path):
    """folder(files) -> a folder with them."""

    def folder(files, name="bundle"):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    return folder


def test_a_push_makes_the_repository_and_one_commit_and_the_next_one_nothing(hub, folder):
    first = push(folder(NEW), private=True)
    made = hub.repositories["ann/it"]
    asked = len(hub.asked)
    again = push(folder(NEW), private=True)

    assert made.private and made.files == NEW and made.messages == ["initial commit", "a push"]
    assert first == stores.Published("ann/it", made.head, f"{hub.endpoint}/ann/it/commit/{made.head}", True)
    assert again == stores.Published("ann/it", made.head, first.url, False)
    assert [method for method, _ in hub.asked[asked:]] == ["GET", "GET"]


def test_a_push_changes_what_is_ours_and_leaves_the_rest(hub, folder):
    made = hub.add("ann/it", {**OLD, "foreign.txt": b"theirs"})

    push(folder(NEW))

    assert made.files == {**NEW, "foreign.txt": b"theirs"}
    assert ".gitattributes" in made.commits[made.head]


def test_64_folders_are_one_commit_and_one_changed_file_is_sent_alone(hub, folder):
    files = {
        f"tasks/t{i:02}/{name}": f"{i} {name}".encode() * 50
        for i in range(64)
        for name in ("adapter_model.safetensors", "mtnlp_task.json")
    }
    push(folder({**files, "mtnlp_bundle.json": b"1"}))
    sent = hub.count("PUT", "/lfs/")
    push(folder({"tasks/t07/adapter_model.safetensors": b"changed"}))

    assert hub.repositories["ann/it"].messages == ["initial commit", "a push", "a push"]
    assert (sent, hub.count("PUT", "/lfs/")) == (64, 65) and hub.count("POST", "/commit/") == 2
    assert read(stores.fetch("ann/it")) == hub.repositories["ann/it"].files


def test_a_push_that_was_overtaken_is_refused(hub, folder, monkeypatch):
    made = hub.add("ann/it", OLD)
    preupload = client.HfApi.preupload_lfs_files

    def overtaken(self, *args, **options):
        made.commit("main", {**made.commits[made.head]}, "theirs")
        return preupload(self, *args, **options)

    monkeypatch.setattr(client.HfApi, "preupload_lfs_files", overtaken)
    with pytest.raises(
        MtnlpError, match=r"^ann/it: somebody else has pushed meanwhile, .*same command again"
    ):
        push(folder(NEW))
    assert made.files == OLD and made.messages[-1] == "theirs"
    monkeypatch.undo()


def test_branches_and_pull_requests(hub, folder):
    mine, theirs = hub.add("ann/it", OLD), hub.add("bob/it", OLD)

    on_branch = push(folder(NEW), revision="next")
    asked = push(folder(NEW), "hf://bob/it", create_pr=True)

    assert mine.files == theirs.files == OLD and asked.url.endswith("/bob/it/discussions/1")
    assert read(stores.fetch("ann/it@next")) == read(stores.fetch("hf://bob/it@refs/pr/1")) == NEW
    for address, options in [
        ("ann/it@next", {"create_pr": True}),
        (f"ann/it@{on_branch.commit}", {}),
        ("ann/it", {"private": True}),
    ]:
        with pytest.raises(MtnlpError, match=r"Leave it out|Leave the branch out|leave --private out"):
            push(folder(NEW), address, **options)


def test_a_pinned_commit_is_read_again_without_a_request(hub, folder):
    old = push(folder(OLD, "old")).commit
    push(folder(NEW))
    assert read(stores.fetch("ann/it", revision=old)) == OLD
    asked = len(hub.asked)

    again = stores.fetch(f"ann/it@{old}")

    assert read(again) == OLD and len(hub.asked) == asked
    assert read(stores.fetch("ann/it")) == {**NEW}


def test_a_pinned_commit_of_which_others_have_fetched_a_part_is_completed(hub, folder):
    commit = push(folder({**NEW, "mtnlp_bundle.json": b'{"files": {"tasks/b/head.safetensors": {}}}'})).commit
    client.hf_hub_download("ann/it", "mtnlp_bundle.json", revision=commit)

    assert "tasks/b/head.safetensors" in read(stores.fetch("ann/it", revision=commit))


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_without_a_network_the_cache_is_read(hub, folder, monkeypatch, how):
    push(folder(NEW))
    kept = stores.fetch("ann/it")
    if how == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        reached.reachable.cache_clear()
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)

    assert stores.fetch("ann/it") == kept
    words = "HF_HUB_OFFLINE is set" if how == "HF_HUB_OFFLINE" else "http.* does not answer"
    for act in (lambda: stores.fetch("ann/other"), lambda: push(folder(NEW), "ann/other")):
        with pytest.raises(MtnlpError, match=f"^ann/other: {words}"):
            act()
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "a/../../out",
        "/out",
        "a\\..\\out",
        "c:out",
        "a/./b",
        "a//b",
        "a\tb",
        ".git/hooks/x",
        "x" * 256,
    ],
)
def test_names_that_leave_the_folder_are_refused_before_anything_is_fetched(hub, tmp_path, name):
    hub.add("ann/it", {**NEW, name: b"out"})

    with pytest.raises(MtnlpError, match=r"^ann/it: .* is no name for a file of a bundle"):
        stores.fetch("ann/it")

    assert hub.count("GET", "/resolve/") == 0 and not list(tmp_path.rglob("*out*"))


def test_the_caller_sees_names_and_sizes_before_anything_is_fetched(hub):
    hub.add("ann/it", NEW)
    seen = []

    def check(files):
        seen.extend(files)
        raise MtnlpError("it is too large.")

    with pytest.raises(MtnlpError, match=r"^ann/it: it is too large\.$"):
        stores.fetch("ann/it", check=check)

    assert {name: size for name, size in seen if name != ".gitattributes"} == {
        name: len(content) for name, content in NEW.items()
    }
    assert hub.count("GET", "/resolve/") == hub.count("HEAD") == 0


@pytest.mark.parametrize(
    ("method", "path", "how", "kept"),
    [
        ("POST", "/preupload/", "drop", False),
        ("POST", "/preupload/", 500, False),
        ("POST", "/objects/batch", "drop", False),
        ("PUT", "/lfs/", "cut", False),
        ("PUT", "/lfs/", 503, False),
        ("POST", "/commit/", "drop", True),
        ("POST", "/commit/", 500, True),
    ],
)
def test_a_push_that_breaks_off_has_changed_nothing_and_the_next_one_ends_it(
    hub, folder, impatient, method, path, how, kept
):
    made = hub.add("ann/it", OLD)
    head = made.head
    hub.break_on(method, path, how, times=6, at=100)  # the client tries some requests so often

    with pytest.raises(MtnlpError, match=r"^ann/it: (the connection broke|the hub has a fault).* again"):
        push(folder(NEW))

    assert made.head == head and read(folder({})) == NEW
    hub.breaks.clear()
    sent = hub.count("PUT", "/lfs/")
    assert push(folder(NEW)).changed and made.files == NEW
    assert hub.count("PUT", "/lfs/") == sent + (not kept)  # what has arrived is not sent twice


def test_a_fault_that_passes_is_not_noticed(hub, folder, impatient):
    hub.break_on("PUT", "/lfs/", 500)
    hub.break_on("POST", "/preupload/", "drop")

    assert push(folder(NEW)).changed


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder):
    hub.break_on("POST", "/commit/", "drop after")
    with pytest.raises(MtnlpError, match="broke off"):
        push(folder(NEW))

    assert not push(folder(NEW)).changed
    assert hub.repositories["ann/it"].messages == ["initial commit", "a push"]


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device", "some/file")


# What is wrong -> what is done, and words of the line that tells.
WRONG = {
    "token": ("fetch", "ann/it", "401.*token is wrong.*hf auth login"),
    "no token": ("push", "ann/new", "401.*there is no token.*HF_TOKEN"),
    "unknown": ("fetch", "ann/none", "no such repository.*Check the name.*./ann/none"),
    "closed": ("fetch", "bob/closed", "or a private one"),
    "gated": ("fetch", "bob/gated", "ask for access"),
    "gated push": ("push", "bob/gated", r"\(403\)"),
    "not mine": ("push", "bob/open", r"\(403\).*settings/tokens"),
    "not my name": ("push", "bob/new", r"\(403\)"),
    "revision": ("fetch", "ann/it@none", "no branch, tag or commit.*commits"),
    "429": ("fetch", "ann/it", r"\(429\). Wait 7 seconds"),
    "500": ("fetch", "ann/it", r"fault of its own \(500\)"),
    "dropped": ("fetch", "ann/it", "connection broke off"),
    "cut": ("fetch", "ann/it", "connection broke off|does not answer"),
    "disk": ("fetch", "ann/it", r"the disk is full \(some/file\).*HF_HOME"),
    "card": ("push", "ann/it", "Invalid metadata in README.md"),
    "control character": ("fetch", "ann/it", "."),
    "no letters": ("fetch", "ann/it", "."),
}


def spoil(what, hub, monkeypatch):
    """Make something wrong."""
    tokens = {
        "token": f"{TOKEN}wrong",
        "no token": "",
        "control character": f"{TOKEN}\x01",
        "no letters": f"{TOKEN}é",
    }
    token = tokens.get(what, TOKEN)
    monkeypatch.setenv("HF_TOKEN", token)
    if what == "429":
        hub.break_on("GET", "/api/models/ann/it", 429, Retry_After="7")
    if what == "500":
        hub.break_on("GET", "/api/models/ann/it", 500)
    if what == "dropped":
        hub.break_on("GET", "/api/models/ann/it", "drop")
    if what == "cut":
        hub.break_on("GET", "/resolve/", "cut", times=99)
    if what == "disk":
        monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", full)


@pytest.mark.parametrize("what", WRONG)
def test_what_goes_wrong_is_one_line_without_the_token(
    hub, folder, impatient, monkeypatch, caplog, capfd, tmp_path, what
):
    for name in ("ann/it", "bob/open"):
        hub.add(name, OLD)
    hub.add("bob/closed", OLD, private=True)
    hub.add("bob/gated", OLD, gated=True)
    files = {**NEW, "README.md": b"---\na: [\n---\n"} if what == "card" else NEW
    source, heads = folder(files), {name: found.head for name, found in hub.repositories.items()}
    act, address, words = WRONG[what]
    spoil(what, hub, monkeypatch)
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    logging.getLogger("huggingface_hub").addHandler(caplog.handler)

    with (
        caplog.at_level(logging.DEBUG),
        caplog.at_level(logging.DEBUG, "huggingface_hub"),
        pytest.raises(MtnlpError, match=f"^{address}: .*({words})") as caught,
    ):
        push(source, address) if act == "push" else stores.fetch(address)
    logging.getLogger("huggingface_hub").removeHandler(caplog.handler)

    error = caught.value
    assert "\n" not in str(error) and error.__cause__ is error.__context__ is None
    assert {name: found.head for name, found in hub.repositories.items()} == heads
    assert read(source) == files
    told = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    shown = ["".join(told), caplog.text, str(caplog.records), *capfd.readouterr()]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN in text for text in shown)
    assert not any(TOKEN.encode() in content for content in kept)


def test_a_process_of_its_own_needs_nothing_but_the_variables_of_the_ecosystem(hub, folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from mtnlp.hub import stores\n"
        "assert not {'huggingface_hub', 'fsspec', 'torch'} & set(sys.modules)\n"
        "stores.publish(Path(sys.argv[1]), 'ann/it', message='m', private=True)\n"
        "print(stores.fetch('ann/it'))"
    )
    source, home = folder(NEW), tmp_path / "other"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MTNLP_"))}

    done = subprocess.run(
        [sys.executable, "-c", code, str(source)],
        env={**inherited, **environment(hub, home, TOKEN)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert read(done.stdout.strip()) == NEW == hub.repositories["ann/it"].files
    assert Path(done.stdout.strip()).is_relative_to(home / "hf") and hub.repositories["ann/it"].private
    kept = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    assert TOKEN not in done.stdout + done.stderr and not any(TOKEN.encode() in content for content in kept)
