"""What fsspec reaches: buckets, servers, and anything with a scheme.

Such places cannot change several files at once. So a push is first sent to a folder of its own inside the
place. When all of it is there, the old manifest is taken away, the files are moved to where they belong, and
the manifest last: without one nothing loads, so no mix of two pushes ever does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp.data.kept import cache_dir
from mtnlp.errors import MtnlpError, shown
from mtnlp.hub import folder as local
from mtnlp.hub.addresses import MANIFEST, Address, check_name

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SMALL = 1 << 20  # bytes; files up to this are compared, larger ones are vouched for by an equal manifest


def fetch(address: Address, check: Callable[[dict[str, int]], None]) -> Path:
    """A copy below mtnlp's cache, made anew whenever what the file system tells of a file has changed."""
    files, root = _opened(address)
    there = _there(files, root)
    if not there:
        raise MtnlpError(f"{address.shown}: nothing is there. Check the address.")
    for name in there:
        check_name(name)
    sizes = {name: int(info["size"] or 0) for name, info in there.items()}
    check(sizes)
    told = json.dumps([files.protocol, root, sorted(there.items())], default=str, sort_keys=True)
    kept = cache_dir() / "hub" / hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    if not kept.is_dir():
        _download(files, root, sizes, kept)
    return kept


def _download(files: AbstractFileSystem, root: str, sizes: Mapping[str, int], kept: Path) -> None:
    part = kept.with_name(f"{kept.name}.part-{os.getpid()}")
    try:
        for name, size in sizes.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(path))
            if path.stat().st_size != size:
                raise MtnlpError(
                    f"{shown(name)} arrived with {path.stat().st_size:,} of {size:,} bytes. Somebody may be "
                    "pushing there: run the same command again."
                )
        with suppress(OSError):  # another process was faster
            os.rename(part, kept)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if not kept.is_dir():
        raise MtnlpError(f"{kept} cannot be made. Is something else of this name there?")


def publish(folder: Path, address: Address, owned: Callable[[str], bool]) -> bool:
    """Make the files below `folder` those of the place; whether anything had to be changed."""
    files, root = _opened(address)
    names = local.listed(folder)
    there = _there(files, root)
    gone = [name for name in there if name not in names and owned(name)]
    if not gone and _same(files, root, folder, names, there):
        return False
    push = f"{root}/{local.PUSH}"
    _remove(files, push)  # of a push that was killed
    try:
        for name in names:
            files.makedirs(files._parent(f"{push}/{name}"), exist_ok=True)
            files.put_file(str(folder / name), f"{push}/{name}")
        _move(files, root, names, gone, has_manifest=MANIFEST in there)
    finally:
        with suppress(Exception):  # where it failed, this will too; the next push tries again
            _remove(files, push)
    return True


def _move(
    files: AbstractFileSystem, root: str, names: Mapping[str, int], gone: list[str], *, has_manifest: bool
) -> None:
    """The files of a push that is there, to where they belong."""
    if has_manifest:
        files.rm_file(f"{root}/{MANIFEST}")
    for name in gone:
        if name != MANIFEST:
            files.rm_file(f"{root}/{name}")
    for name in sorted(names, key=lambda name: name == MANIFEST):
        files.makedirs(files._parent(f"{root}/{name}"), exist_ok=True)
        files.mv(f"{root}/{local.PUSH}/{name}", f"{root}/{name}")


def _opened(address: Address) -> tuple[AbstractFileSystem, str]:
    """The file system and the place in it; MtnlpError if a package is missing."""
    from fsspec import url_to_fs
    from fsspec.registry import known_implementations

    scheme = address.place.split("://")[0]
    try:
        files, root = url_to_fs(address.place)
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get("class", "fsspec").split(".")[0]
        lacking = f"pip install {package}" if package != "fsspec" else str(error)
    else:
        files.invalidate_cache()
        return files, root.rstrip("/")
    raise MtnlpError(f"{scheme}:// needs a package that is not installed. To get it: {lacking}")


def _there(files: AbstractFileSystem, root: str) -> dict[str, Any]:
    """Name -> what the file system tells of it, without what is left of a push."""
    found = {}
    with suppress(FileNotFoundError):
        for path, info in files.find(root, detail=True).items():
            name = path.removeprefix(root).lstrip("/")
            if info["type"] == "file" and not name.startswith(f"{local.PUSH}/"):
                found[name] = info
    return found


def _same(
    files: AbstractFileSystem, root: str, folder: Path, names: Mapping[str, int], there: Mapping[str, Any]
) -> bool:
    """Whether the place holds these files; a manifest that is there says that its push was finished."""
    if MANIFEST not in names or any(name not in there for name in names):
        return False
    if any(there[name]["size"] != size for name, size in names.items()):
        return False
    return all(
        files.cat_file(f"{root}/{name}") == (folder / name).read_bytes()
        for name, size in names.items()
        if size <= SMALL or name == MANIFEST
    )


def _remove(files: AbstractFileSystem, place: str) -> None:
    if files.exists(place):
        files.rm(place, recursive=True)
