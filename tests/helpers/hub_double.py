"""A Hub of the tests' own: an HTTP server on this machine that the unmodified huggingface_hub client takes for the Hub.

It keeps repositories as commits, stores large files apart as the real one does (batch API, upload, redirect to another
host), and knows branches, commit hashes, pull requests and private repositories. It writes down every request, and can
break one off: before anything has happened, after it has, halfway through the answer, or by never answering.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import transformers

TOKEN = "hf_TokenOfTheTests"  # not one of the real Hub
USER = "someone"
LARGE = (".safetensors", ".bin")


@dataclass
class Request:
    """What a client asked for, with the token it sent."""

    method: str
    path: str
    query: dict[str, str]
    token: str | None
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    content: Any = b""  # bytes, or what becomes JSON
    headers: dict[str, str] = field(default_factory=dict)
    sent: float = 1.0  # how much of the content, before the connection breaks


class Refused(Exception):
    """An answer that is an error; `code` is what the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, {"error": message}, headers)


@dataclass
class Repository:
    """Commits, {hash: {path: content}}, and what points at them: branches, tags and pull requests."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        text = json.dumps([len(self.messages), message, sorted(files)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.find(revision)]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def object_id(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)


ROUTES: list[tuple[str, str, Callable]] = []
MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable:
    def register(function: Callable) -> Callable:
        ROUTES.append((method, pattern, function))
        return function

    return register


class HubDouble:
    """The server; use it in a `with` block."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._broken: tuple[int, str] | None = None
        self.reached, self.released = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.elsewhere = f"http://localhost:{self.port}"  # another host, as far as a client can tell

    def __enter__(self) -> "HubDouble":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a fresh process that takes this for the Hub and keeps its cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1,localhost",
            **more,
        }

    def serve_this_process(self, monkeypatch: Any, home: Path) -> None:
        """Let the client in this process take this for the Hub, and keep its cache in `home`."""
        constants = huggingface_hub.constants
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(home / "hub"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # made at first use, and kept
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def put(self, repo: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """Make a repository that holds these files, without a client."""
        repository = self.repositories[repo] = Repository(private)
        repository.commit("main", files, "initial commit")
        return repository

    def break_off(self, request: int, how: str) -> None:
        """Let the request of this number, counted from now, fail.

        "before" or "after" its effect, "halfway" through the answer, or "never" answered.
        """
        self.mend()
        self._broken = (request, how)

    def mend(self) -> None:
        """Answer everything again, and forget the requests so far."""
        self.requests.clear()
        self._broken = None

    # ---- answers ----------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            broken = self._broken is not None and len(self.requests) == self._broken[0]
            how = self._broken[1] if self._broken is not None and broken else None
        if how == "never":
            self.reached.set()
            self.released.wait(60)
        if how in ("before", "never"):
            return Answer(410, {"error": "interrupted"})
        try:
            with self._lock:
                answer = self._find_route(request)
        except Refused as refused:
            answer = refused.answer
        answer.sent = 0.5 if how == "halfway" else 1.0
        return Answer(410, {"error": "interrupted"}) if how == "after" else answer

    def _find_route(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        for known, pattern, function in ROUTES:
            if known == method and (match := re.fullmatch(pattern, request.path)):
                return function(self, request, **match.groupdict())
        raise Refused(404, f"The double does not know {request.method} {request.path}")

    def _repository(self, request: Request, name: str, write: bool = False) -> Repository:
        repository = self.repositories.get(name)
        if request.token not in (None, TOKEN):
            raise Refused(401, "Invalid credentials in Authorization header")
        if repository is None or ((repository.private or write) and request.token is None):
            raise Refused(404 if request.token else 401, "Repository not found", "RepoNotFound")
        return repository

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        if request.token != TOKEN:
            raise Refused(401, "Invalid username or password.")
        facts = request.json()
        name = f"{facts.get('organization') or USER}/{facts['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return Answer(409, answer | {"error": "You already created this model repo"})
        private = facts.get("private", facts.get("visibility") == "private")
        self.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        return Answer(200, answer)

    @route("POST", "/api/validate-yaml")
    def _validate_card(self, request: Request) -> Answer:
        found = request.json()["content"].startswith("---\n")
        return Answer(200, {"errors": [], "warnings": [] if found else [{"message": "no metadata in the card"}]})

    @route("GET", "/api/whoami-v2")
    def _who(self, request: Request) -> Answer:
        return Answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {}})

    @route("GET", MODEL + "(/revision/(?P<revision>[^?]+))?")
    def _info(self, request: Request, repo: str, revision: str | None) -> Answer:
        repository = self._repository(request, repo)
        sha = repository.find(unquote(revision or "main"))
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        facts = {"sha": sha, "private": repository.private, "siblings": siblings, "tags": [], "downloads": 0}
        return Answer(200, {"_id": repo, "id": repo, "modelId": repo, **facts})

    @route("GET", MODEL + "/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def _tree(self, request: Request, repo: str, revision: str, folder: str | None) -> Answer:
        files = self._repository(request, repo).files(unquote(revision))
        prefix = f"{unquote(folder)}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(prefix)}
        if not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        entries = [self._entry(path, content) for path, content in sorted(inside.items())]
        parents = {str(parent) for path in inside for parent in Path(path).parents if f"{parent}/" > prefix}
        folders = [{"type": "directory", "path": name, "oid": git_hash(name.encode())} for name in parents - {"."}]
        if request.query.get("recursive", "false").lower() not in ("true", "1"):
            return Answer(200, [one for one in folders + entries if "/" not in one["path"][len(prefix) :]])
        return Answer(200, folders + entries)

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if is_large(path):
            entry["lfs"] = {"oid": object_id(path, content), "size": len(content), "pointerSize": 134}
        return entry

    @route("POST", MODEL + "/preupload/(?P<revision>[^/]+)")
    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        files = self._repository(request, repo, write=True).files(unquote(revision))
        answers = [
            {
                "path": path,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": object_id(path, files[path]) if path in files else None,
            }
            for path in (file["path"] for file in request.json()["files"])
        ]
        return Answer(200, {"files": answers})

    @route("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def _batch(self, request: Request, repo: str) -> Answer:
        self._repository(request, repo, write=True)
        objects = request.json()["objects"]
        for one in objects:
            if one["oid"] not in self.large_files:
                one["actions"] = {"upload": {"href": f"{self.elsewhere}/large/{one['oid']}"}}
        return Answer(200, {"transfer": "basic", "objects": objects})

    @route("PUT", "/large/(?P<oid>[0-9a-f]+)")
    def _store(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refused(400, "The content does not have this hash.")
        self.large_files[oid] = request.body
        return Answer()

    @route("POST", MODEL + "/commit/(?P<revision>[^/]+)")
    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        repository = self._repository(request, repo, write=True)
        opens, ref, message = request.query.get("create_pr") == "1", unquote(revision), ""
        files = dict(repository.files(ref))
        for line in request.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                message, parent = value["summary"], value.get("parentCommit")
                if parent and not opens and parent != repository.find(ref):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
                files = dict(repository.files(parent or ref))
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise Refused(400, f"{value['path']} was not uploaded before the commit.")
                files[value["path"]] = self.large_files[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
        sha = repository.commit(f"refs/pr/{number}" if opens else ref, files, message)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"}
        return Answer(200, answer | ({"pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"} if opens else {}))

    @route("POST", MODEL + "/(?P<kind>branch|tag)/(?P<name>[^/]+)")
    def _add_ref(self, request: Request, repo: str, kind: str, name: str) -> Answer:
        repository, facts = self._repository(request, repo, write=True), json.loads(request.body or b"{}")
        target = facts.get("startingPoint", "main") if kind == "branch" else unquote(name)
        name = unquote(name) if kind == "branch" else facts["tag"]
        if name in repository.refs:
            raise Refused(409, "Reference already exists")
        repository.refs[name] = repository.find(target)
        return Answer()

    @route("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        repository = self._repository(request, repo)
        sha, path = repository.find(unquote(revision)), unquote(path)
        if path not in repository.commits[sha]:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        content = repository.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{object_id(path, content)}"'}
        if not is_large(path):
            return self._part(request, content, headers)
        oid = object_id(path, content)
        self.large_files[oid] = content
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return Answer(302, b"", headers | linked | {"Location": f"{self.elsewhere}/large/{oid}"})

    @route("GET", "/large/(?P<oid>[0-9a-f]+)")
    def _fetch(self, request: Request, oid: str) -> Answer:
        return self._part(request, self.large_files[oid], {"ETag": f'"{oid}"'})

    @staticmethod
    def _part(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            within = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return Answer(206, content[first : last + 1], headers | within)
        return Answer(200, content, headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer's body waits 40 ms for the receipt of its head

    def __init__(self, double: HubDouble, *args: Any) -> None:
        self.double = double
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        pass  # `HubDouble.requests` is the log

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, url.path, query, token, self.headers, b"".join(self._body()))
        answer = self.double.answer(request)
        content = answer.content
        if not isinstance(content, bytes):
            content, answer.headers["Content-Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: int(len(content) * answer.sent)])
        self.close_connection |= answer.sent < 1

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 -- http.server looks these names up

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))


@contextmanager
def hub_in_this_process(monkeypatch: Any, home: Path) -> Iterator[HubDouble]:
    """Start a double and let the client in this process use it."""
    with HubDouble() as double:
        double.serve_this_process(monkeypatch, home)
        yield double
