"""Servers that tests fetch artifacts from: an S3 store, a web server of a folder, and a hub of one repository."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from free_ports import free_port
from programs import program

#: Status, headers and body.
Answer = tuple[int, dict[str, str], bytes]
MODIFIED = "Sat, 28 Nov 2026 08:00:00 GMT"


@contextmanager
def object_server(bucket: str) -> Iterator[dict[str, str]]:
    """Run a real S3 server with one bucket; yield the environment of its clients."""
    if (server := program("moto_server")) is None:
        pytest.skip("moto_server not installed: pip install 'moto[server]' in an environment of its own")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [server, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # for a minute
                assert client.put(f"{url}/{bucket}", timeout=30).status_code == 200
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "unmistakable",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.terminate()


@dataclass
class Web:
    """A web server of a folder on this machine.

    Attributes:
        asked: paths with their queries, in order.
        before: called with the path of each request before it is answered; it may change files, or wait.
        needs: query that each request must have, None: any; others get 403.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda _path: None
    needs: str | None = None


@contextmanager
def web_server(folder: Path) -> Iterator[Web]:
    """Run a server of a folder's files."""
    web = Web()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            web.before(self.path)
            if web.needs not in (None, urlsplit(self.path).query):
                self.send_error(403)
                return
            super().do_GET()

        def log_message(self, *_arguments: object) -> None:
            pass

    with running(functools.partial(Handler, directory=str(folder))) as web.url:
        yield web


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server on a free port; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answering(answer: Callable[[str, str, bytes, str | None], Answer]) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests by a function of method, path, body and the key that the client sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = unquote(urlsplit(self.path).path)
            status, headers, content = answer(self.command, path, body, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


@contextmanager
def bucket_server(objects: dict[str, bytes]) -> Iterator[str]:
    """Run a server that gives, takes and removes objects by their path, as Google Cloud Storage's does in XML."""

    def answer(method: str, path: str, body: bytes, _key: str | None) -> Answer:
        content = b"" if method == "PUT" else objects.get(path, b"")
        headers = {"ETag": f'"{hashlib.md5(content or body).hexdigest()}"', "Last-Modified": MODIFIED}
        if method == "PUT":
            objects[path] = body
        elif path not in objects:
            return 404, headers, b""
        elif method == "DELETE":
            del objects[path]
            return 204, headers, b""
        return 200, headers, content

    with running(answering(answer)) as url:
        yield url


@dataclass
class Hub:
    """A hub with one repository of models, as far as huggingface_hub asks it to read and to commit.

    Attributes:
        commits: by hash, the files; branches: by name, a commit's hash. token: that it needs, empty: none.
    """

    repository: str
    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    token: str = ""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        name = hashlib.sha1(repr((sorted(whole.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = whole, name
        return name

    def answer(self, path: str, body: bytes) -> Answer:
        """Return status, headers and body for a request."""
        if (match := re.fullmatch(rf"/{self.repository}/resolve/([^/]+)/(.+)", path)) is not None:
            commit = self.branches.get(match[1], match[1])
            content = self.commits.get(commit, {}).get(match[2])
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return 200, {"X-Repo-Commit": commit, "ETag": etag}, content
        match = re.fullmatch(rf"/api/models/{self.repository}(?:/([a-z-]+)/([^/]+)(?:/.*)?)?", path)
        if match is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        what, revision = match[1] or "revision", match[2] or "main"
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[commit]
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": self.repository, "sha": commit, "siblings": siblings}).encode()
        if what == "tree":
            return 200, {}, json.dumps(entries).encode()
        if what == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return 200, {}, json.dumps([entry for entry in entries if entry["path"] in wanted]).encode()
        if what == "preupload":
            told = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return 200, {}, json.dumps({"files": told}).encode()
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            added = [line["value"] for line in lines if line["key"] == "file"]
            new = self.commit({file["path"]: base64.b64decode(file["content"]) for file in added}, revision)
            told = {"commitOid": new, "commitUrl": f"{self.url}/{self.repository}/commit/{new}", "success": True}
            return 200, {}, json.dumps(told).encode()
        return 404, {}, b"{}"


@contextmanager
def hub_server(repository: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub, and let this process's huggingface_hub ask it."""
    hub = Hub(repository)

    def answer(method: str, path: str, body: bytes, key: str | None) -> Answer:
        hub.asked.append(f"{method} {path}")
        if hub.token and key != f"Bearer {hub.token}":
            return 401, {"X-Error-Message": "Invalid credentials"}, b"{}"
        return hub.answer(path, body)

    with running(answering(answer)) as hub.url:
        # What HF_ENDPOINT sets, which is read once in a process.
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
