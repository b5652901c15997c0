"""A stand-in for the Hugging Face hub on this machine: repositories of models in memory, behind the hub's HTTP API.

It answers what `huggingface_hub` asks while it creates a repository or a branch, uploads (preupload, LFS, commit),
looks a model up and downloads; with the status and error codes of the hub. Names of owners are names of users; the
token of user U is `hf_U`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 10_000
"""Files of at least this size, and all safetensors, are stored apart from the commits."""


@dataclass
class Repo:
    """A repository: commits and the branches that name them. A commit is its files by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        listing = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        text = json.dumps([branch, sorted(listing.items()), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """The main branch's."""
        return self.commits[self.branches["main"]]


@dataclass
class Hub:
    """The state of the stand-in, for tests to look at and to spoil."""

    url: str = ""
    elsewhere: str = ""
    """The address that large files are downloaded from: another host, as the hub's."""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files, by SHA-256."""
    requests: list[str] = field(default_factory=list)
    """Methods and paths, in order."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Statuses in place of an answer, by a part of "METHOD path"."""

    def new(self, name: str, private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private, gated)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repo

    def asked(self, part: str) -> list[str]:
        """Requests whose "METHOD path" holds `part`."""
        return [request for request in self.requests if part in request]


class Refusal(Exception):
    """An answer of the hub that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """A running stand-in at a free port of the loopback interface."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        hub.elsewhere = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.state.requests.append(request)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for part, status in self.state.refuses.items():
                if part in request:
                    raise Refusal(status, message="refused by the test")
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    getattr(self, method)(*match.groups(), body=body)
                    return
            raise Refusal(404, "EntryNotFound", f"no such route: {request}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            content = json.dumps({"error": refusal.message}).encode()
            self.reply(refusal.status, content, {name: text for name, text in headers.items() if text})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and not token.startswith("hf_"):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return token.removeprefix("hf_") or None

    def repo(self, name: str, *, writes: bool = False) -> Repo:
        user, repo = self.user(), self.state.repos.get(name)
        if repo is None or (repo.private and user != name.split("/")[0]):
            # The hub does not tell a stranger what there is.
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if writes and user != name.split("/")[0]:
            raise Refusal(403, message="You don't have the rights to write to this repository")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def root(self, *, body: bytes) -> None:
        self.reply(200, b"")

    def info(self, name: str, revision: str | None, *, body: bytes) -> None:
        repo = self.repo(name)
        sha = self.commit_of(repo, revision or "main")
        siblings = [{"rfilename": file} for file in repo.commits[sha]]
        gated = "manual" if repo.gated else False
        self.reply_json({"id": name, "sha": sha, "private": repo.private, "gated": gated, "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str | None, *, body: bytes) -> None:
        repo = self.repo(name)
        files = repo.commits[self.commit_of(repo, revision)]
        files = {file: data for file, data in files.items() if file.startswith(f"{folder}/") or not folder}
        if not files:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        self.reply_json([_entry(file, data) for file, data in files.items()])

    def create(self, *, body: bytes) -> None:
        asked, user = json.loads(body), self.user()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        if user != name.split("/")[0]:
            raise Refusal(403, message="You don't have the rights to create a model under this namespace")
        if name in self.state.repos:
            raise Refusal(409, message="You already created this model repo")
        self.state.new(name, private=asked.get("visibility") == "private")
        self.reply_json({"url": f"{self.state.url}/{name}", "name": name})

    def branch(self, name: str, branch: str, *, body: bytes) -> None:
        repo = self.repo(name, writes=True)
        if branch in repo.branches:
            raise Refusal(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.reply_json({})

    def validate_yaml(self, *, body: bytes) -> None:
        self.reply_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, *, body: bytes) -> None:
        files = self.repo(name, writes=True).commits[self.commit_of(self.state.repos[name], revision)]
        modes = []
        for file in json.loads(body)["files"]:
            large = file["size"] >= LFS_BYTES or file["path"].endswith(".safetensors")
            there = files.get(file["path"])
            oid = None if there is None else _oid(file["path"], there)
            modes.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self.reply_json({"files": modes})

    def lfs_batch(self, name: str, *, body: bytes) -> None:
        self.repo(name, writes=True)
        objects: list[dict[str, Any]] = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.state.url}/lfs/{item['oid']}", "header": {}}}
            present = item["oid"] in self.state.objects
            objects.append({"oid": item["oid"], "size": item["size"]} | ({} if present else {"actions": upload}))
        self.reply_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, *, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, message="the content has another SHA-256")
        self.state.objects[oid] = body
        self.reply(200, b"")

    def lfs_get(self, oid: str, *, body: bytes) -> None:
        self.reply(200, self.state.objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, name: str, revision: str, *, body: bytes) -> None:
        repo = self.repo(name, writes=True)
        files = dict(repo.commits[self.commit_of(repo, revision)])
        header, *operations = [json.loads(line) for line in body.splitlines()]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            else:
                del files[value["path"]]
        sha = repo.commit(revision, files, header["value"]["summary"])
        self.reply_json({"commitUrl": f"{self.state.url}/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, name: str, revision: str, file: str, *, body: bytes) -> None:
        repo = self.repo(name)
        if repo.gated and self.user() != name.split("/")[0]:
            raise Refusal(403 if self.user() else 401, "GatedRepo", "Access to this model is restricted")
        sha = self.commit_of(repo, revision)
        data = repo.commits[sha].get(file)
        if data is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(file, data)}"', "Accept-Ranges": "bytes"}
        if _is_large(file, data):
            oid = hashlib.sha256(data).hexdigest()
            self.state.objects.setdefault(oid, data)
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
            self.reply(302, b"", headers | {"Location": f"{self.state.elsewhere}/lfs/{oid}"})
        else:
            self.reply(200, data, headers)


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (r"HEAD /", "root"),
    (rf"GET /api/models/{_NAME}(?:/revision/(.+))?", "info"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.+))?", "tree"),
    (r"POST /api/repos/create", "create"),
    (rf"POST /api/models/{_NAME}/branch/(.+)", "branch"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", "preupload"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (r"(?:GET|HEAD) /lfs/(\w+)", "lfs_get"),
    (rf"POST /api/models/{_NAME}/commit/(.+)", "commit"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
)


def _is_large(file: str, data: bytes) -> bool:
    return len(data) >= LFS_BYTES or file.endswith(".safetensors")


def _oid(file: str, data: bytes) -> str:
    """As git names a blob, or as LFS names an object."""
    return (
        hashlib.sha256(data).hexdigest()
        if _is_large(file, data)
        else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


def _entry(file: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if _is_large(file, data):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
