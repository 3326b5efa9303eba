"""A model hub on this machine: a real HTTP server that huggingface_hub's own client talks to.

It keeps repositories with their whole history in memory, knows who may do what, and fails when it is told to.
What it does not have is Xet, a storage protocol of its own; with HF_HUB_DISABLE_XET the client sends large
files by Git LFS, as it does to every hub without it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

PAGE = 50  # entries of a listing in one answer
LFS = (".safetensors", ".bin")


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(status)
        self.status, self.told = status, {"error": message or code, "errors": [{"message": message or code}]}
        self.headers = {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": " ".join(message.split())} if message else {}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Dropped(Exception):
    """The connection ends here."""


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """What git calls it: of a large file, its pointer's name."""
        content = f"pointer to {self.sha256}".encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def told(self, name: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        entry = {"type": "file", "path": name, "size": len(self.content), "oid": self.blob}
        return entry | ({"lfs": lfs} if self.large else {})


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # every state, by commit
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # branch or pull request -> its commit

    def commit(self, ref: str, files: Mapping[str, File], message: str) -> str:
        oid = hashlib.sha1(f"{ref} {message} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.messages.append(message)
        self.refs[ref] = oid
        return oid

    def at(self, revision: str) -> str:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """Those on main, without what the hub puts there itself."""
        found = self.commits[self.head].items()
        return {name: file.content for name, file in found if name != ".gitattributes"}


@dataclass
class Break:
    method: str
    path: str  # a pattern
    how: int | str  # a status, "drop" before anything is done, "drop after" all is done, or "cut" the content
    times: int
    at: int = 0  # bytes after which content is cut
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The hub. `users` are token -> name; what one may write starts with the name."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []  # method and path of every request
        self.breaks: list[Break] = []
        self.endpoint = ""
        self.lock = threading.RLock()

    def add(self, name: str, files: Mapping[str, bytes] | None = None, **options: Any) -> Repository:
        """A repository, and in it files that were pushed earlier."""
        found = self.repositories[name] = Repository(**options)
        start = {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}
        found.commit("main", start, "initial commit")
        if files:
            given = {path: File(content, path.endswith(LFS)) for path, content in files.items()}
            found.commit("main", start | given, "earlier")
        return found

    def break_on(self, method: str, path: str, how: int | str, times: int = 1, at: int = 0, **headers: str):
        """Fail the next requests of this kind."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.breaks.append(Break(method, path, how, times, at, headers))

    def broken(self, method: str, path: str) -> Break | None:
        with self.lock:
            for found in self.breaks:
                if found.times and found.method == method and re.search(found.path, path):
                    found.times -= 1
                    return found
        return None

    def count(self, method: str, path: str = "") -> int:
        """How many requests of this kind there were."""
        return sum(m == method and bool(re.search(path, p)) for m, p in self.asked)

    def user(self, header: str | None) -> str | None:
        if header is None:
            return None
        user = self.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return user

    def repository(self, name: str, user: str | None, *, write: bool = False) -> Repository:
        found = self.repositories.get(name)
        owner = user == name.split("/")[0]
        if found is None or (found.private and not owner):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise Refused(401, "", "Invalid username or password.")
        if write and not owner:
            raise Refused(403, "", "You don't have the required permissions")
        return found


# What can be asked: (method, pattern of the path) -> answer(hub, user, groups, query, body, headers)
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
REPO = r"(?P<repo>[^/]+/[^/]+?)"


def route(method: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, re.compile(path), function))
        return function

    return add


@route("GET", "/api/whoami-v2")
def whoami(hub, user, **_):
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    return {"name": user, "type": "user", "auth": {"type": "access_token"}}


@route("POST", "/api/validate-yaml")
def validate_yaml(body, **_):
    front = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
    try:
        yaml.safe_load(front[1] if front else "")
    except yaml.YAMLError as error:
        raise Refused(400, "", f"Invalid YAML: {error}") from None
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create(hub, user, body, **_):
    asked = json.loads(body)
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    name = f"{asked.get('organization') or user}/{asked['name']}"
    if not name.startswith(f"{user}/"):
        raise Refused(403, "", f"You don't have the rights to create a model under {name}")
    if name in hub.repositories:
        taken = Refused(409, "", "You already created this model repo")
        taken.told["url"] = f"{hub.endpoint}/{name}"
        raise taken
    hub.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    return {"url": f"{hub.endpoint}/{name}", "name": name}


@route("GET", f"/api/models/{REPO}(?:/revision/(?P<rev>[^/]+))?")
def info(hub, user, repo, rev, query, **_):
    found = hub.repository(repo, user)
    oid = found.at(unquote(rev or "main"))
    siblings = []
    for name, file in found.commits[oid].items():
        entry = {"rfilename": name}
        if "blobs" in query:
            told = file.told(name)
            entry |= {"size": told["size"], "blobId": told["oid"]}
            entry |= {"lfs": {"sha256": file.sha256, **told["lfs"]}} if file.large else {}
        siblings.append(entry)
    return {"id": repo, "modelId": repo, "sha": oid, "private": found.private, "siblings": siblings}


@route("GET", f"/api/models/{REPO}/tree/(?P<rev>[^/]+)")
def tree(hub, user, repo, rev, query, **_):
    found = hub.repository(repo, user)
    entries = [file.told(name) for name, file in sorted(found.commits[found.at(unquote(rev))].items())]
    entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in _folders(entries)]
    start = int(query.get("cursor", ["0"])[0])
    headers = {}
    if start + PAGE < len(entries):
        more = f"{hub.endpoint}/api/models/{repo}/tree/{rev}?recursive=true&cursor={start + PAGE}"
        headers["Link"] = f'<{more}>; rel="next"'
    return json.dumps(entries[start : start + PAGE]).encode(), headers


def _folders(entries):
    return sorted({e["path"].rsplit("/", 1)[0] for e in entries if "/" in e["path"]})


@route("GET", f"/api/models/{REPO}/refs")
def refs(hub, user, repo, **_):
    found = hub.repository(repo, user)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
        for name, oid in found.refs.items()
        if not name.startswith("refs/")
    ]
    return {"branches": branches, "tags": [], "converts": []}


@route("POST", f"/api/models/{REPO}/branch/(?P<rev>[^/]+)")
def branch(hub, user, repo, rev, body, **_):
    found = hub.repository(repo, user, write=True)
    if unquote(rev) in found.refs:
        raise Refused(409, "", "Reference already exists")
    found.refs[unquote(rev)] = found.at(json.loads(body or b"{}").get("startingPoint", "main"))
    return {}


@route("POST", f"/api/models/{REPO}/preupload/(?P<rev>[^/]+)")
def preupload(hub, user, repo, rev, query, body, **_):
    found = hub.repository(repo, user, write="create_pr" not in query)
    there = found.commits[found.at(unquote(rev))]
    return {
        "files": [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": (file.sha256 if file.large else file.blob) if file else None,
            }
            for asked in json.loads(body)["files"]
            for file in [there.get(asked["path"])]
        ]
    }


@route("POST", f"/{REPO}\\.git/info/lfs/objects/batch")
def batch(hub, user, repo, body, **_):
    hub.repository(repo, user)
    objects = []
    for asked in json.loads(body)["objects"]:
        if asked["oid"] not in hub.large:
            upload = {"href": f"{hub.endpoint}/lfs/{asked['oid']}"}
            verify = {"href": f"{hub.endpoint}/lfs/{asked['oid']}/verify"}
            asked = asked | {"actions": {"upload": upload, "verify": verify}}
        objects.append(asked)
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def upload(hub, oid, body, **_):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "", "The content is not what its hash says")
    hub.large[oid] = body
    return {}


@route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
def verify(hub, user, oid, body, **_):
    if user is None or len(hub.large.get(oid, b"")) != json.loads(body)["size"]:
        raise Refused(404, "", "Not uploaded")
    return {}


@route("POST", f"/api/models/{REPO}/commit/(?P<rev>[^/]+)")
def commit(hub, user, repo, rev, query, body, **_):
    asks = "create_pr" in query
    found = hub.repository(repo, user, write=not asks)
    lines = [json.loads(line) for line in body.splitlines()]
    head = found.at(unquote(rev))
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, head):
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(found.commits[head])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.large:
                raise Refused(400, "", f"{value['path']} was not uploaded")
            files[value["path"]] = File(hub.large[value["oid"]], True)
        elif files.pop(value["path"], None) is None:
            raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
    number = sum(name.startswith("refs/pr/") for name in found.refs) + 1
    oid = found.commit(f"refs/pr/{number}" if asks else unquote(rev), files, header["summary"])
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}"}
    return answer | ({"pullRequestUrl": f"{hub.endpoint}/{repo}/discussions/{number}"} if asks else {})


@route("GET", f"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(hub, user, repo, rev, path, headers, **_):
    found = hub.repository(repo, user)
    if found.gated:
        raise Refused(403, "GatedRepo", f"Access to model {repo} is restricted")
    oid = found.at(unquote(rev))
    file = found.commits[oid].get(unquote(path))
    if file is None:
        raise Refused(404, "EntryNotFound", "Entry not found")
    told = {
        "ETag": f'"{file.sha256 if file.large else file.blob}"',
        "X-Repo-Commit": oid,
        "Accept-Ranges": "bytes",
    }
    content, asked = file.content, re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
    if asked:
        start, stop = int(asked[1]), int(asked[2]) + 1 if asked[2] else len(content)
        told |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}", "status": "206"}
        content = content[start:stop]
    return content, told


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def handle_any(self):
        url = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        fault = self.hub.broken(self.command, url.path)
        self.hub.asked.append((self.command, url.path))
        try:
            body = self.body(fault)
            if fault and fault.how == "drop":
                raise Dropped
            try:
                if fault and isinstance(fault.how, int):
                    raise Refused(fault.how, "", "Planted", **fault.headers)
                self.answer(200, *self.found(method, url, body), fault=fault)
            except Refused as error:
                self.answer(error.status, json.dumps(error.told).encode(), error.headers)
        except (Dropped, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def body(self, fault: Break | None) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.how == "cut" and length:
            self.rfile.read(min(fault.at, length))
            raise Dropped
        return self.rfile.read(length)

    def found(self, method: str, url: Any, body: bytes) -> tuple[bytes, dict[str, str]]:
        hub = self.hub
        for known, pattern, function in ROUTES:
            match = pattern.fullmatch(url.path)
            if known == method and match:
                with hub.lock:
                    user = hub.user(self.headers.get("Authorization"))
                    query = parse_qs(url.query, keep_blank_values=True)
                    answer = function(
                        hub=hub, user=user, query=query, body=body, headers=self.headers, **match.groupdict()
                    )
                return answer if isinstance(answer, tuple) else (json.dumps(answer).encode(), {})
        raise Refused(404, "", f"No such place: {method} {url.path}")

    def answer(self, status: int, content: bytes, headers: dict[str, str], fault: Break | None = None):
        if fault and fault.how == "drop after":
            raise Dropped
        self.send_response(int(headers.pop("status", status)))
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.how == "cut":
            self.wfile.write(content[: fault.at])
            raise Dropped
        self.wfile.write(content)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfOneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path, token: str = "") -> dict[str, str]:
    """What a process needs to have this hub for its own, and nothing of any other."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MTNLP_CACHE": str(home / "mtnlp"),
    }


def connect(hub: Hub, home: Path, monkeypatch: Any, token: str = "") -> None:
    """The same for this process, where the client has read most of these variables already."""
    from huggingface_hub import close_session, constants
    from transformers.utils import hub as asking

    from mtnlp.data import hub as reached

    told = environment(hub, home, token)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    cache = str(home / "hf" / "hub")
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": told["HF_HOME"],
        "HF_HUB_CACHE": cache,
        "HUGGINGFACE_HUB_CACHE": cache,
        "HF_TOKEN_PATH": f"{told['HF_HOME']}/token",
        "HF_STORED_TOKENS_PATH": f"{told['HF_HOME']}/stored_tokens",
        "AGENT_HARNESSES_PATH": f"{told['HF_HOME']}/.agent_harnesses.json",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    # Once made, the client of transformers asks the hub of that time: in a later test, one that is gone.
    monkeypatch.setattr(asking, "_hf_api", None, raising=False)
    reached.reachable.cache_clear()
    close_session()
