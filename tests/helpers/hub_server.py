"""A local server with the API of the Hugging Face Hub, and with the faults of real servers.

    with HubServer({"owner/name": {"config.json": b"{}", "model.safetensors": data}}) as server:
        server.use(monkeypatch, tmp_path / "cache")   # HF_ENDPOINT, BEIT_CACHE_DIR, no token, not offline
        fetch("owner/name", ["model.safetensors"])
        assert [request.method for request in server.requests] == ["HEAD", "GET"]

A repository named "datasets/owner/name" is a data set, whose files are listed too.
As on the real Hub, small text files have a git hash as ETag; all others are LFS files with their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

import pytest

TEXT = (".json", ".md", ".txt")


@dataclass(frozen=True)
class Request:
    """A request received; `file` is empty for a listing of files.

    `range` is the Range header, `token` the Authorization header; empty if absent.
    """

    method: str
    repo: str
    file: str
    revision: str
    range: str
    token: str


class HubServer:
    """Serves `repos` (repository -> file -> content) while the `with` block runs.

    Attributes:
        requests: All requests received, in order.
        cut_after: Truncate each body to this many bytes and close the connection; None for never.
        lie: Change the last byte of bodies, so that they do not match the ETag.
        ranges: False to answer a Range with the whole file, as some proxies do.
        status: Answer everything with this HTTP status instead.
        gated: Repositories whose terms must be accepted first.
        branches: (repository, branch) -> the repository whose files that branch has.
        headers: Headers of each file, overriding the proper ones of the same name; None omits one.
        failures: How many of the next requests for a body to answer with HTTP 503.
        sent: Bytes sent of each body.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.requests: list[Request] = []
        self.cut_after: int | None = None
        self.lie = False
        self.ranges = True
        self.status: int | None = None
        self.gated: set[str] = set()
        self.branches: dict[tuple[str, str], str] = {}
        self.headers: dict[str, str | None] = {}
        self.failures = 0
        self.sent: list[int] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Points the environment at this server, and at a cache of the test."""
        monkeypatch.setenv("HF_ENDPOINT", self.url)
        monkeypatch.setenv("BEIT_CACHE_DIR", str(cache))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def commit(self, repo: str) -> str:
        """Returns 40 hex digits that depend on the files."""
        listing = "".join(f"{name} {etag(name, content)}\n" for name, content in sorted(self.repos[repo].items()))
        return hashlib.sha1(listing.encode()).hexdigest()

    def bodies(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET"]


def etag(name: str, content: bytes) -> str:
    if name.endswith(TEXT):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Disables logging."""

    def _answer(self, body: bool) -> None:
        hub = self.hub
        path = unquote(self.path.partition("?")[0])
        match = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listed = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/revision/(.+)()", path)
        found = match or listed
        repo, revision, name = found.groups() if found else ("", "", "")
        branches = {hub.commit(other): other for (own, _), other in hub.branches.items() if own == repo}
        stored = hub.branches.get((repo, revision), branches.get(revision, repo))
        asked, token = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        hub.requests.append(Request(self.command, repo, name, revision, asked, token))
        if hub.status is not None:
            self._refuse(hub.status, "")
        elif repo not in hub.repos:
            self._refuse(404, "RepoNotFound")
        elif repo in hub.gated:
            self._refuse(403, "GatedRepo")
        elif stored == repo and revision not in ("main", hub.commit(repo)):
            self._refuse(404, "RevisionNotFound")
        elif listed:
            self._list(stored)
        elif name not in hub.repos[stored]:
            self._refuse(404, "EntryNotFound", hub.commit(stored))
        else:
            self._serve(stored, name, asked if hub.ranges else "", body)

    def _list(self, repo: str) -> None:
        files = [
            {"rfilename": name, "size": len(content), "blobId": etag(name, content)}
            for name, content in self.hub.repos[repo].items()
        ]
        answer = json.dumps({"id": repo, "sha": self.hub.commit(repo), "siblings": files}).encode()
        self.send_response(200)
        self._finish_headers({"Content-Type": "application/json", "Content-Length": str(len(answer))})
        self.wfile.write(answer)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self._finish_headers({"Content-Length": "0"})

    def _serve(self, repo: str, name: str, asked: str, body: bool) -> None:
        hub, content = self.hub, self.hub.repos[repo][name]
        first, _, last = asked.removeprefix("bytes=").partition("-")
        mark, start, end = etag(name, content), int(first or 0), min(int(last or len(content)) + 1, len(content))
        if body and hub.failures > 0:
            hub.failures -= 1
            return self._refuse(503, "")
        if start > 0 and start >= len(content):
            return self._refuse(416, "")
        headers: dict[str, str | None] = {"ETag": f'"{mark}"', "X-Repo-Commit": hub.commit(repo)}
        if not name.endswith(TEXT):
            headers |= {"X-Linked-Etag": f'"{mark}"', "X-Linked-Size": str(len(content))}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self.send_response(206 if asked else 200)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._finish_headers(headers | hub.headers)
        if body:
            sent = (content[:-1] + bytes([content[-1] ^ 1])) if hub.lie else content
            part = sent[start : end if hub.cut_after is None else min(end, start + hub.cut_after)]
            hub.sent.append(len(part))
            self.wfile.write(part)
        return None

    def _finish_headers(self, headers: Mapping[str, str | None]) -> None:
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        self.send_header("Connection", "close")  # so that a cut body ends its connection, and no thread outlives a test
        self.end_headers()
