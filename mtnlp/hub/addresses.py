"""What a person may write for a place of a bundle, and which names its files may have.

./folder, /a/folder, folder/            a folder of this machine; one that exists wins over all below
owner/name, hf://owner/name[@revision]  a repository of the model hub
s3://..., gs://..., memory://...        whatever fsspec has a reader for
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from mtnlp.errors import MtnlpError, did_you_mean, shown

MANIFEST = "mtnlp_bundle.json"  # what makes files a bundle: written last, read first
_WORD = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB = re.compile(rf"(?:hf://)?(?P<name>{_WORD}/{_WORD})(?:@(?P<revision>.+))?", re.ASCII)
_REVISION = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_PART, _LONGEST = 255, 1000  # bytes of a name: what file systems take


@dataclass(frozen=True)
class Address:
    """A place of a bundle.

    Args:
        kind: "folder", "hub" or "remote", after the store that serves it.
        place: a path, owner/name, or an address for fsspec, credentials and all.
        shown: as messages may show it.
        revision: of a hub repository: a branch, a tag or a commit; None = its main branch.
    """

    kind: str
    place: str = field(repr=False)
    shown: str
    revision: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether it names one commit, whose files can never change."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))


def is_address(text: str) -> bool:
    """Whether a text is a folder that exists, looks like a hub id, or has a scheme; not whether it leads
    anywhere."""
    return os.path.isdir(text) or "://" in text or bool(_HUB.fullmatch(text))


def parse(text: str | os.PathLike[str], revision: str | None = None) -> Address:
    """The place that a text means; see the top of this file.

    Args:
        text: as a person writes it; a path that is no text is always a folder.
        revision: of a hub repository; as good as writing it after an @.

    Raises:
        MtnlpError: a scheme that nobody knows, no name of a repository, a revision where there are none.
    """
    folder = not isinstance(text, str) or os.path.isdir(text)
    text = os.fspath(text)
    if not text or "\0" in text:
        raise MtnlpError(f"{shown(text)} is no address: give a folder, owner/name, or s3://bucket/folder.")
    if folder or not is_address(text):
        found = Address("folder", os.path.expanduser(text), text)
    elif match := _HUB.fullmatch(text):
        found = _hub(text, match, revision)
    else:
        found = _remote(text)
    if revision is not None and found.kind != "hub":
        raise MtnlpError(f"{found.shown}: only a hub repository has revisions. Leave --revision out.")
    return found


def _hub(text: str, match: re.Match[str], revision: str | None) -> Address:
    written = match["revision"]
    if written and revision and written != revision:
        raise MtnlpError(f"{text}: the address says @{written}, and --revision {revision}. Leave one out.")
    revision = revision or written
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise MtnlpError(f"{match['name']}: {shown(revision)} is no name of a branch, a tag or a commit.")
    return Address("hub", match["name"], match["name"] + (f"@{revision}" if revision else ""), revision)


def _remote(text: str) -> Address:
    from fsspec import available_protocols, registry

    scheme = text.split("://")[0]
    masked = re.sub(r"\?.*", "?***", re.sub(r"://[^/@]*@", "://***@", text))
    if scheme == "hf":
        raise MtnlpError(
            f"{masked}: a hub repository is written hf://owner/name, or hf://owner/name@revision."
        )
    if scheme in ("http", "https"):
        raise MtnlpError(
            f"{masked}: a web page is no place of a bundle. For a repository of the hub give owner/name."
        )
    if scheme not in (known := {*available_protocols(), *registry}):
        raise MtnlpError(f"{masked}: there is no scheme {shown(scheme)}. {did_you_mean(scheme, known)}")
    return Address("remote", text, masked)


def credentials(address: Address) -> list[str]:
    """What must not be shown of an address: passwords and keys in it, as written and decoded."""
    if address.kind != "remote":
        return []
    parts = urlsplit(address.place)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    secret = [password, f"{user}:{password}", *(value for _, value in parse_qsl(parts.query)), parts.query]
    secret += [user] if len(user) > 3 else []  # a shorter one is part of too many words
    return [form for value in secret if value.strip(":") for form in (value, unquote(value))]


def masked(text: str, secrets: Iterable[str]) -> str:
    """A text with *** for every secret in it."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def check_name(name: str) -> None:
    """Whether a file of this name, parts divided by /, stays in the folder it is put into.

    Raises:
        MtnlpError: it does not, on this system or another.
    """
    parts = name.split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        longest = _LONGEST
    if (
        any(part in ("", ".", "..", ".git") for part in parts)
        or any(sign in "\\:" or ord(sign) < 32 for sign in name)
        or longest > _LONGEST_PART
        or len(name) > _LONGEST
        or PurePosixPath(name).is_absolute()
    ):
        raise MtnlpError(f"{shown(name, 120)} is no name for a file of a bundle, so nothing was taken.")
