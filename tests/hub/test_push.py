"""What a push does to a place that is new, and what is built on a place: over HTTP, as a user types it."""

from __future__ import annotations

import errno
import json

import pytest
import tiny_tasks
import torch
from hub.test_commands import run, state, trained  # noqa: F401 - a fixture
from hub.test_stores import NEW, folder, push  # noqa: F401 - a fixture

from mtnlp import assemble
from mtnlp.errors import MtnlpError


@pytest.mark.parametrize(
    ("address", "command"),
    [("ann/it", "hf repos delete ann/it"), ("ann/old@next", "hf repos branch delete ann/old next")],
)
@pytest.mark.parametrize(("method", "path", "how"), [("PUT", "/lfs/", 503), ("POST", "/commit/", "drop")])
def test_a_push_that_breaks_off_at_a_place_it_has_made_says_so_and_the_next_one_goes_on(
    hub,
    folder,  # noqa: F811
    impatient,
    address,
    command,
    method,
    path,
    how,
):
    old = hub.add("ann/old")
    hub.break_on(method, path, how, times=6)

    with pytest.raises(
        MtnlpError, match=rf"^{address}: .* again.*The \w+ is new; `{command}` would"
    ) as caught:
        push(folder(NEW), address)

    assert "\n" not in str(caught.value) and caught.value.__context__ is None
    made = hub.repositories[address.partition("@")[0]]
    assert made.messages == ["initial commit"] and made.files == old.files == {}
    hub.breaks.clear()
    sent = hub.count("PUT", "/lfs/")
    assert push(folder(NEW), address).changed and made.messages == ["initial commit", "a push"]
    assert hub.count("PUT", "/lfs/") == sent + (path == "/lfs/")
    hub.break_on("POST", "/commit/", "drop")
    with pytest.raises(MtnlpError) as caught:
        push(folder({**NEW, "README.md": b"other"}), address)
    assert "is new" not in str(caught.value)


def test_a_new_folder_on_a_full_disk_is_not_left_behind(folder, tmp_path, monkeypatch):  # noqa: F811
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(MtnlpError, match=rf"the disk is full \({tmp_path}/there/\S+\)\. Free some space"):
        push(folder(NEW), str(tmp_path / "there"))

    assert not (tmp_path / "there").exists()


def test_a_task_is_added_to_a_bundle_on_the_hub(hub, trained, tmp_path):  # noqa: F811
    assert run("push", trained("first"), "ann/it") == 0
    task = tiny_tasks.task("own/tags", "tag", rows=6)
    for split, rows in task["source"].items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task["source"][split] = f"{split}.jsonl"
    (tmp_path / "new.yaml").write_text(json.dumps(task))
    words = (
        "finetune",
        "--add",
        "ann/it",
        tmp_path / "new.yaml",
        "train.steps=2",
        "--out",
        tmp_path / "plus",
    )

    assert run(*words) == 2  # its backbone was somebody's folder
    assert run(*words, "--backbone", trained.backbone) == 0

    old, new = state(tmp_path / "first"), state(tmp_path / "plus")
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert {name.split("/", 1)[1][:8] for name in new.keys() - old.keys()} == {"own/tags"}
    assert run("push", tmp_path / "plus", "ann/it") == 0
    assert json.loads(hub.repositories["ann/it"].files["mtnlp_bundle.json"])["tasks"] == [
        "own/classify",
        "own/tags",
    ]


def test_a_push_builds_the_model_once(trained, tmp_path, monkeypatch):  # noqa: F811
    place, built, build = trained("first"), [], assemble.build_backbone
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "empty"))  # no answer is kept
    monkeypatch.setattr(assemble, "build_backbone", lambda *a, **k: built.append(a) or build(*a, **k))

    assert run("push", place, tmp_path / "there") == 0

    assert len(built) == 1
    task = json.loads((tmp_path / "there" / "tasks" / "own--classify" / "mtnlp_task.json").read_text())
    assert task["rows"] == 6
