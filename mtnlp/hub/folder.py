"""Folders of this machine: what is in them, and how a bundle gets into one whole or not at all.

A push is first written into a folder of its own inside the place. Renaming that one to `.mtnlp-push` decides
it: what is killed before has changed nothing, and what is killed after is finished by the next reader or
writer, who moves the rest into place, the manifest last.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtnlp.data.kept import cache_dir
from mtnlp.errors import MtnlpError, shown
from mtnlp.hub.addresses import MANIFEST, Address, check_name

PUSH = ".mtnlp-push"  # a push that is decided, and the start of names of those that are not
_PART, _REMOVED = f"{PUSH}.part", "removed.json"
_NOT_OURS = (".git", ".cache")  # folders that git and the hub's client keep


def listed(folder: Path) -> dict[str, int]:
    """Name, parts divided by /, of every file below a folder -> its bytes; in the order of the names.

    Raises:
        MtnlpError: a link that leads out of the folder, or what is no file.
    """
    home = folder.resolve()
    # A snapshot in the hub's cache is made of links to the store of its repository, or on to that of all.
    stores = [home.parents[1] / "blobs", home.parents[2] / "blobs"] if home.parent.name == "snapshots" else []
    found = {}
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NOT_OURS and not name.startswith(PUSH)]
        for path in [Path(here, name) for name in [*names, *folders]]:
            if path.is_dir() and not path.is_symlink():
                continue
            name, real = path.relative_to(folder).as_posix(), path.resolve()
            if not any(real.is_relative_to(place) for place in [home, *stores]):
                raise MtnlpError(f"{folder}: {shown(name)} is a link that leads out of it. Put a copy there.")
            if not real.is_file():
                raise MtnlpError(f"{folder}: {shown(name)} is no file. Take it away.")
            found[name] = real.stat().st_size
    return dict(sorted(found.items()))


def digest(path: Path, state: hashlib._Hash) -> str:
    """Hex hash of what `state` has seen and then the file, read piece by piece."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def fetch(address: Address, check: Callable[[dict[str, int]], None]) -> Path:
    """The folder itself, after a push that was killed in it has been finished."""
    folder = Path(address.place)
    if not folder.is_dir():
        raise MtnlpError(
            f"{address.shown}: no such folder. For a repository of the model hub give owner/name, for other "
            "places an address such as s3://bucket/folder."
        )
    finish(folder)
    check(listed(folder))
    return folder


def publish(folder: Path, address: Address, owned: Callable[[str], bool]) -> bool:
    """Make the files below `folder` those of the place; whether anything had to be changed."""
    place = Path(address.place)
    files = listed(folder)
    with _alone(place), _made(place):
        finish(place)
        there = listed(place)
        new = [
            name
            for name in files
            if name not in there or not filecmp.cmp(folder / name, place / name, shallow=False)
        ]
        gone = [name for name in there if name not in files and owned(name)]
        if not new and not gone:
            return False
        if MANIFEST not in there and (foreign := [name for name in new if name in there]):
            raise MtnlpError(
                f"{address.shown}: {foreign[0]} is there already, and of no bundle. Give another folder."
            )
        for name in new:
            _place_of(place, name)
        _decide(folder, place, new, gone)
        finish(place)
    return True


@contextmanager
def _made(place: Path) -> Iterator[None]:
    """Inside, the folder is there; one that is new and still empty when something fails goes again."""
    new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # it is not empty: the push was decided
                place.rmdir()
        raise


def finish(place: Path) -> None:
    """Move the files of a push that was decided to where they belong; nothing where there is none."""
    push = place / PUSH
    if not push.is_dir():
        return
    files = push / "files"
    names = listed(files) if files.is_dir() else {}
    for name in names:
        if name != MANIFEST:
            _move(files, place, name)
    for name in _removed(push):
        path = _place_of(place, name)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # until one is not empty
            for parent in path.relative_to(place).parents[:-1]:
                (place / parent).rmdir()
    if MANIFEST in names:
        _move(files, place, MANIFEST)
    shutil.rmtree(push, ignore_errors=True)


def _move(files: Path, place: Path, name: str) -> None:
    path = _place_of(place, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another reader was faster
        os.replace(files / name, path)


def _removed(push: Path) -> list[str]:
    """Names that a decided push takes away."""
    try:
        names = json.loads((push / _REMOVED).read_text("utf-8"))
    except FileNotFoundError:  # killed while it was tidying up
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _decide(folder: Path, place: Path, new: list[str], gone: list[str]) -> None:
    """Write a push beside what is there, then give it the name that decides it."""
    part = place / _PART
    shutil.rmtree(part, ignore_errors=True)  # of a push that was killed
    try:
        for name in new:
            path = part / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, path)
        part.mkdir(exist_ok=True)
        (part / _REMOVED).write_text(json.dumps(gone), "utf-8")
        os.rename(part, place / PUSH)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _place_of(place: Path, name: str) -> Path:
    """Where a file belongs; MtnlpError where a link or another file is in its way."""
    check_name(name)
    path = place / name
    if not path.parent.resolve().is_relative_to(place.resolve()):
        raise MtnlpError(f"{place}: {shown(name)} would be written out of it, through a link. Take it away.")
    ways = [parent for parent in path.parents if parent.is_relative_to(place)]
    if path.is_dir() or any(parent.exists() and not parent.is_dir() for parent in ways):
        raise MtnlpError(f"{place}: {shown(name)} has something in its way. Give another folder.")
    return path


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Inside, no other process of this user pushes to the place."""
    from filelock import FileLock, Timeout

    key = hashlib.blake2b(str(place.resolve()).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    lock = FileLock(cache_dir() / "hub" / f"{key}.lock", timeout=0)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise MtnlpError(
            f"{place}: another push to it is running. Wait for it, then run this again."
        ) from None
    try:
        yield
    finally:
        lock.release()
