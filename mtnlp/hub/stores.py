"""How the files of a bundle get to a place and back; what is in them is none of this file's business.

A place is a folder, a repository of the model hub, or whatever fsspec reaches: mtnlp.hub.addresses says how
they are written. After a push, or a push that failed, a place holds the old files or the new ones, or, at an
fsspec address only, something without a manifest; never a mix that loads.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mtnlp.errors import MtnlpError
from mtnlp.hub import addresses, hub_repo, remote
from mtnlp.hub import folder as local
from mtnlp.hub.addresses import Address, is_address

__all__ = ["Published", "fetch", "is_address", "publish"]

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """What a push did.

    Args:
        address: where to, as it may be shown.
        commit: of a hub repository; None elsewhere.
        url: the page of the commit or the pull request; None elsewhere.
        changed: False if everything was there already, so that nothing was written.
    """

    address: str
    commit: str | None
    url: str | None
    changed: bool


def fetch(
    address: str | Path,
    *,
    revision: str | None = None,
    check: Callable[[Sequence[tuple[str, int]]], None] = lambda files: None,
) -> Path:
    """A folder of this machine with the files of a place. It is a cache or the place itself: only read it.

    Args:
        address: see mtnlp.hub.addresses; a Path is always a folder.
        revision: branch, tag or commit of a hub repository.
        check: is called with (name, bytes) of all files before any of them is fetched, and refuses them by
            raising MtnlpError, which is told with the address before it.

    Raises:
        MtnlpError: the place cannot be reached or read, holds names that leave a folder, or was refused.
    """
    place = addresses.parse(address, revision)
    store = {"folder": local, "hub": hub_repo, "remote": remote}[place.kind]
    return _told(place, lambda: store.fetch(place, lambda sizes: check(list(sizes.items()))))


def publish(
    folder: Path,
    address: str | Path,
    *,
    message: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    owned: Callable[[str], bool] = lambda name: False,
) -> Published:
    """Make the files below a folder those of a place. Where they are that already, nothing is written.

    Args:
        address: as for `fetch`.
        message: of the commit, on a hub.
        private: make the hub repository private if it has to be made; refused for one that is public.
        revision: branch of the hub repository; made if need be.
        create_pr: ask the owner of the hub repository to take the commit, instead of writing to its branch.
        owned: says of a file of the place, by name, whether it is of an earlier push and may be removed.

    Raises:
        MtnlpError: the place cannot be reached or written, or somebody else has pushed meanwhile.
    """
    place = addresses.parse(address, revision)
    if place.kind != "hub" and (private or create_pr):
        option = "--private" if private else "--create-pr"
        raise MtnlpError(f"{place.shown}: {option} is for hub repositories. Leave it out.")

    def act() -> Published:
        if place.kind == "hub":
            options = {"message": message, "private": private, "create_pr": create_pr}
            return Published(place.shown, *hub_repo.publish(folder, place, owned, **options))
        store = local if place.kind == "folder" else remote
        return Published(place.shown, None, None, store.publish(folder, place, owned))

    return _told(place, act)


def _told(place: Address, act: Callable[[], T]) -> T:
    """What `act` returns; its failures as one line without secrets.

    The line is raised when the failure is over and done with, so that no traceback leads to what a client
    held in its hands.
    """
    try:
        return act()
    except MtnlpError as error:
        reason = str(error)
    except _failures(place) as error:
        reason = _reason(error, place)
    reason = addresses.masked(reason, _secrets(place))
    raise MtnlpError(reason if reason.startswith(place.shown) else f"{place.shown}: {reason}")


def _failures(place: Address) -> tuple[type[Exception], ...]:
    """What a store raises for reasons outside this program; behind fsspec, clients raise what they like."""
    if place.kind == "hub":
        return hub_repo.failures()
    return (OSError,) if place.kind == "folder" else (Exception,)


def _secrets(place: Address) -> list[str]:
    return hub_repo.secrets() if place.kind == "hub" else addresses.credentials(place)


def _reason(error: Exception, place: Address) -> str:
    """What went wrong and what to do, in one line."""
    if isinstance(error, hub_repo.Unfinished):
        return f"{_reason(error.__cause__, place)} {error}"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of a thread that sent a file
    if place.kind == "hub" and (known := hub_repo.reason(error, place)):
        return known
    again = "then run the same command again"
    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename  # of a copy, where to
        where = f" ({path})" if path else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{where}. Free some space, {again}. HF_HOME, MTNLP_CACHE move the caches."
        return f"{error.strerror}{where}. Mend that, {again}."
    text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return f"{text}. Mend that, {again}."
