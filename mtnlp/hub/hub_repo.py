"""Repositories of the model hub, through huggingface_hub: its cache, its variables, its login.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import __version__
from mtnlp.data import hub
from mtnlp.errors import MtnlpError
from mtnlp.hub import folder as local
from mtnlp.hub.addresses import MANIFEST, Address, check_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class Unfinished(Exception):
    """A push that broke off after it had made its place: the cause says why, the text what is new."""


def fetch(address: Address, check: Callable[[dict[str, int]], None]) -> Path:
    """A snapshot in the hub's cache; from the cache alone without a network, and for a commit that is whole
    there."""
    from huggingface_hub import constants

    found = _kept(address) if address.pinned else None
    if not found or not _whole(found):
        with hub.at_once():
            if not constants.HF_HUB_OFFLINE:
                return _download(address, check)
            found = found or _kept(address)
    if not found:
        raise MtnlpError(_out_of_reach())
    check(local.listed(found))
    return found


def _kept(address: Address) -> Path | None:
    """The snapshot in the cache; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(address.place, revision=address.revision, local_files_only=True))
    return None


def _whole(snapshot: Path) -> bool:
    """Whether all files of a bundle are there: others may have fetched some of them."""
    try:
        names = json.loads((snapshot / MANIFEST).read_text("utf-8"))["files"]
        return all((snapshot / name).is_file() for name in names)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _download(address: Address, check: Callable[[dict[str, int]], None]) -> Path:
    from huggingface_hub import snapshot_download

    info = _api().model_info(address.place, revision=address.revision, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    for name in files:
        check_name(name)
    check(files)
    # By its commit, so that what arrives is what was checked, whatever is pushed meanwhile.
    found = Path(snapshot_download(address.place, revision=info.sha))
    if not address.pinned:  # what the branch was, for who is offline later; kept as the client keeps it
        ref = found.parents[1] / "refs" / (address.revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(info.sha, "utf-8")
    return found


def publish(
    folder: Path,
    address: Address,
    owned: Callable[[str], bool],
    *,
    message: str,
    private: bool,
    create_pr: bool,
) -> tuple[str, str, bool]:
    """One commit that makes the files below `folder` those of the repository, on top of what was looked at.

    Returns:
        The commit, its page, and whether it had to be made. The repository, and the branch that the address
        names, are made where there is none; large files of a push that broke off are not sent twice.

    Raises:
        MtnlpError: a branch that cannot be pushed to, a public repository where a private one is asked for.
        Unfinished: a place was made, and then the push broke off. It stays: what has arrived is in there.
        What huggingface_hub raises: see `reason`.
    """
    if address.pinned:
        raise MtnlpError(f"{address.shown}: a push goes to a branch, and this is a commit. Leave it out.")
    if create_pr and address.revision not in (None, "main"):
        raise MtnlpError(f"{address.shown}: a pull request is made against main. Leave the branch out.")
    files = local.listed(folder)
    made: list[str] = []
    with hub.at_once():
        api = _api()
        try:
            head = _head(api, address, private, made)
            operations = _operations(api, address, head, folder, files, owned)
            if not operations:
                return head, f"{api.endpoint}/{address.place}/commit/{head}", False
            commit = api.create_commit(
                address.place,
                operations,
                commit_message=message,
                revision=address.revision,
                parent_commit=head,
                create_pr=create_pr,
            )
        except failures() as error:
            if not made:
                raise
            raise Unfinished(made[0]) from error
    return commit.oid, commit.pr_url or commit.commit_url, True


def _operations(
    api: HfApi,
    address: Address,
    head: str,
    folder: Path,
    files: Iterable[str],
    owned: Callable[[str], bool],
) -> list[Any]:
    """What makes the files of a commit those of a folder."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile

    entries = api.list_repo_tree(address.place, recursive=True, revision=head)
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    new = [
        CommitOperationAdd(name, folder / name)
        for name in files
        if name not in there or not _same(folder / name, there[name])
    ]
    return [*new, *(CommitOperationDelete(name) for name in there if name not in files and owned(name))]


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="mtnlp", library_version=__version__)


def _head(api: HfApi, address: Address, private: bool, made: list[str]) -> str:
    """The commit to build on; of a repository or branch that is made if need be, which `made` is told of."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, branch = address.place, address.revision
    try:
        info = api.model_info(name, revision=branch)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(name, private=private or None, exist_ok=True)
        made.append(f"The repository is new; `hf repos delete {name}` would take it away again.")
        info = api.model_info(name)
        if branch not in (None, "main"):
            api.create_branch(name, branch=branch, exist_ok=True)
    except RevisionNotFoundError:
        api.create_branch(name, branch=branch, exist_ok=True)
        made.append(f"The branch is new; `hf repos branch delete {name} {branch}` would take it away again.")
        info = api.model_info(name, revision=branch)
    if private and not info.private:
        raise MtnlpError(
            f"{address.shown}: this repository is public. Make it private in its settings "
            f"({api.endpoint}/{name}/settings), or leave --private out."
        )
    return info.sha


def _same(path: Path, there: RepoFile) -> bool:
    """Whether the hub has this content: git's hash of small files, SHA-256 of large ones."""
    size = path.stat().st_size
    if size != there.size:
        return False
    if there.lfs:
        return local.digest(path, hashlib.sha256()) == there.lfs.sha256
    return local.digest(path, hashlib.sha1(b"blob %d\0" % size)) == there.blob_id


def secrets() -> list[str]:
    """The token that the hub's client sends."""
    from huggingface_hub import get_token

    with suppress(Exception):  # some ways to log in ask the network
        return [get_token() or ""]
    return []


def failures() -> tuple[type[Exception], ...]:
    """What its client raises for reasons outside this program."""
    from huggingface_hub.errors import HTTPError

    return (OSError, HTTPError, ValueError, RuntimeError, Unfinished)


def reason(error: BaseException, address: Address) -> str | None:
    """What went wrong on the hub, and what to do, in one line; None if it was not the hub."""
    from huggingface_hub import constants, errors

    name, site, again = address.place, constants.ENDPOINT, "then run the same command again"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"one must ask for access to it. Do so at {site}/{name}, {again}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{site} has no such repository, or a private one that you may not see. Check the name; for a "
            f"private one {LOGIN}. If a folder is meant: ./{name}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit of this name. Leave it out, or see {site}/{name}/commits."
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return _out_of_reach()
    if status == 401:
        why = f"the hub lets nobody in without a login (401), and {_login_state()}"
        return f"{why}. So {LOGIN}, {again}. If a folder is meant: ./{name}."
    if status == 403:
        fix = f"Get one that may at {site}/settings/tokens; {LOGIN}, {again}"
        return f"your token may not (403). {fix}. If a folder is meant: ./{name}."
    if status == 412:
        return (
            "somebody else has pushed meanwhile, so nothing of this push was written (412). Look at what "
            f"they changed, {again}: it then goes on top of theirs."
        )
    if status == 429:
        seconds = error.response.headers.get("Retry-After", "")
        wait = f"{seconds} seconds" if seconds.isdecimal() else "some minutes"
        return f"the hub takes no more requests for now (429). Wait {wait}, {again}."
    if status is not None and status >= 500:
        return f"the hub has a fault of its own ({status}). Wait, {again}."
    if status is None and isinstance(error, errors.HTTPError):  # its text may quote what was sent
        return (
            f"the connection broke off ({type(error).__name__}). Check the network, {again}: what has "
            "arrived is not sent twice."
        )
    return None


def _out_of_reach() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the cache lacks this. Unset it, then run the same command again."
    return f"{constants.ENDPOINT} does not answer. Check the network, then run the same command again."


def _login_state() -> str:
    from huggingface_hub import get_token

    with suppress(Exception):
        if not get_token():
            return "there is no token"
    return "the token is wrong, or no longer valid"
