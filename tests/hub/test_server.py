"""The hub of these tests, asked by huggingface_hub itself: what it answers is what the real one would."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub as client
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, errors

BIG = bytes(range(256)) * 64


@pytest.fixture
def api(hub):
    return client.HfApi()


def add(name, content=b"content"):
    return CommitOperationAdd(name, content)


def test_it_knows_who_asks(hub, api, monkeypatch):
    assert api.whoami()["name"] == "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(errors.HfHubHTTPError) as caught:
        client.HfApi().whoami()
    assert caught.value.response.status_code == 401


def test_a_repository_is_made_once_filled_and_read_back(hub, api, tmp_path):
    api.create_repo("ann/it", private=True)
    api.create_repo("ann/it", private=True, exist_ok=True)
    with pytest.raises(errors.HfHubHTTPError):
        api.create_repo("ann/it")
    made = api.create_commit("ann/it", [add("a/b.txt"), add("c.safetensors", BIG)], commit_message="first")

    folder = client.snapshot_download("ann/it")

    assert api.model_info("ann/it").private and api.model_info("ann/it").sha == made.oid
    read = {name: Path(folder, name).read_bytes() for name in ("a/b.txt", "c.safetensors")}
    assert read == {"a/b.txt": b"content", "c.safetensors": BIG}
    assert hub.repositories["ann/it"].files == read


def test_every_commit_can_be_read_again(hub, api):
    hub.add("ann/it")
    first = api.create_commit("ann/it", [add("a.txt", b"old")], commit_message="first").oid
    api.create_commit("ann/it", [add("a.txt", b"new"), add("b.txt")], commit_message="second")
    api.create_commit("ann/it", [CommitOperationDelete("b.txt")], commit_message="third")

    texts = [
        Path(client.hf_hub_download("ann/it", "a.txt", revision=rev)).read_text() for rev in (first, "main")
    ]

    assert texts == ["old", "new"]
    assert "b.txt" not in api.list_repo_files("ann/it")
    with pytest.raises(errors.RevisionNotFoundError):
        api.model_info("ann/it", revision="f" * 40)
    with pytest.raises(errors.EntryNotFoundError):
        client.hf_hub_download("ann/it", "none.txt")


def test_a_commit_on_an_old_parent_is_a_conflict(hub, api):
    old = hub.add("ann/it").head
    api.create_commit("ann/it", [add("a.txt")], commit_message="first", parent_commit=old)
    with pytest.raises(errors.HfHubHTTPError) as caught:
        api.create_commit("ann/it", [add("b.txt")], commit_message="second", parent_commit=old)

    assert caught.value.response.status_code == 412
    assert list(hub.repositories["ann/it"].files) == ["a.txt"]


def test_branches_and_pull_requests_leave_main_alone(hub, api):
    hub.add("ann/it")
    hub.add("bob/it")
    api.create_branch("ann/it", branch="next")
    api.create_commit("ann/it", [add("a.txt")], commit_message="m", revision="next")
    asked = api.create_commit("bob/it", [add("a.txt")], commit_message="m", create_pr=True)

    assert asked.pr_url.endswith("/bob/it/discussions/1")
    assert "a.txt" in api.list_repo_files("ann/it", revision="next")
    assert "a.txt" in api.list_repo_files("bob/it", revision="refs/pr/1")
    assert hub.repositories["ann/it"].files == hub.repositories["bob/it"].files == {}
    assert {branch.name for branch in api.list_repo_refs("ann/it").branches} == {"main", "next"}


def test_what_one_may_not_see_or_write_is_refused(hub, api):
    hub.add("bob/open", {"a.txt": b"a"})
    hub.add("bob/closed", private=True)
    hub.add("bob/gated", {"a.txt": b"a"}, gated=True)

    for name in ("bob/closed", "bob/none"):
        with pytest.raises(errors.RepositoryNotFoundError):
            api.model_info(name)
    with pytest.raises(errors.GatedRepoError):
        client.hf_hub_download("bob/gated", "a.txt")
    with pytest.raises(errors.HfHubHTTPError) as caught:
        api.create_commit("bob/open", [add("b.txt")], commit_message="m")
    assert caught.value.response.status_code == 403
    with pytest.raises(errors.HfHubHTTPError) as caught:
        api.create_repo("bob/new")
    assert caught.value.response.status_code == 403


def test_long_listings_come_in_pages_and_broken_downloads_go_on(hub, api, impatient):
    files = {f"f{i:03}/a.txt": b"" for i in range(120)}
    hub.add("ann/it", {**files, "big.safetensors": BIG})
    hub.break_on("GET", "big", "cut", at=1000)

    path = client.hf_hub_download("ann/it", "big.safetensors")

    assert set(files) < set(api.list_repo_files("ann/it")) and hub.count("GET", "/tree/") > 3
    assert Path(path).read_bytes() == BIG and hub.count("GET", "/resolve/.*big") == 2


def test_large_content_must_be_what_its_hash_says(hub):
    session = client.get_session()

    wrong = session.put(f"{hub.endpoint}/lfs/{'0' * 64}", content=b"other")

    assert wrong.status_code == 400 and hub.large == {}
