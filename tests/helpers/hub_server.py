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
XET = "/xet"
XET_CHUNK = 65_536  # bytes


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
        cuts: How many of the next bodies to truncate; None for all.
        lie: Change the last byte of bodies, so that they do not match the ETag.
        ranges: False to answer a Range with the whole file, as some proxies do.
        status: Answer everything with this HTTP status instead.
        gated: Repositories whose terms must be accepted first.
        branches: (repository, branch) -> the repository whose files that branch has.
        headers: Headers of each file, overriding the proper ones of the same name; None omits one.
        failures: How many of the next requests for a body to answer with HTTP 503.
        sent: Bytes sent of each body.
        xet: Offer large files over Xet too, from a store that this server is.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.requests: list[Request] = []
        self.cut_after: int | None = None
        self.cuts: int | None = None
        self.lie = False
        self.ranges = True
        self.status: int | None = None
        self.gated: set[str] = set()
        self.branches: dict[tuple[str, str], str] = {}
        self.headers: dict[str, str | None] = {}
        self.failures = 0
        self.sent: list[int] = []
        self.xet = False
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

    def take_cut(self) -> int | None:
        """After how many bytes the next body stops."""
        if self.cuts is None:
            return self.cut_after
        self.cuts -= 1
        return self.cut_after if self.cuts >= 0 else None

    def body(self, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if self.lie else content


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
        if path.startswith(XET):
            return self._serve_xet(path.removeprefix(XET))
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
        return None

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
            if hub.xet:  # a file's hash and the hash of its chunks are one here; the client compares neither
                headers |= {"X-Xet-Hash": mark, "X-Xet-Refresh-Route": f"{hub.url}{XET}/token"}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self.send_response(206 if asked else 200)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._finish_headers(headers | hub.headers)
        if body:
            cut = hub.take_cut()
            part = hub.body(content)[start : end if cut is None else min(end, start + cut)]
            hub.sent.append(len(part))
            self.wfile.write(part)
        return None

    def _serve_xet(self, path: str) -> None:
        """A token, the plan of a file's reconstruction, or its chunks: 8 bytes of header and the bytes as they are."""
        hub, asked = self.hub, self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        hub.requests.append(Request(self.command, "", f"{XET}{path}", "", self.headers.get("Range", ""), ""))
        if path == "/token":
            names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
            self.send_response(200)
            return self._finish_headers(
                dict(zip(names, (hub.url + XET, "token", "9999999999"), strict=True)) | {"Content-Length": "0"}
            )
        files = {etag(name, content): content for files in hub.repos.values() for name, content in files.items()}
        mark = path.rpartition("/")[2]
        if mark not in files:
            return self._refuse(404, "")
        content = hub.body(files[mark])
        lengths = [len(content[start : start + XET_CHUNK]) for start in range(0, len(content), XET_CHUNK)]
        starts = [n * XET_CHUNK for n in range(len(lengths))]
        sizes = [length.to_bytes(3, "little") for length in lengths]
        chunks = b"".join(
            b"\0" + size + b"\0" + size + content[start : start + XET_CHUNK]
            for start, size in zip(starts, sizes, strict=True)
        )
        if path.startswith("/v1/reconstructions/"):
            every = {"range": {"start": 0, "end": len(lengths)}}
            where = every | {"url": f"{hub.url}{XET}/{mark}", "url_range": {"start": 0, "end": len(chunks) - 1}}
            terms = [every | {"hash": mark, "unpacked_length": len(content)}]
            plan = {"offset_into_first_range": 0, "terms": terms, "fetch_info": {mark: [where]}}
            self.send_response(200)
            answer, headers = json.dumps(plan).encode(), {"Content-Type": "application/json"}
        elif path == f"/{mark}":
            start, end = int(asked[0]), int(asked[2]) + 1
            self.send_response(206)
            answer, headers = chunks[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(chunks)}"}
        else:  # a later version of the protocol
            return self._refuse(404, "")
        self._finish_headers(headers | {"Content-Length": str(len(answer))})
        self.wfile.write(answer)
        return None

    def _finish_headers(self, headers: Mapping[str, str | None]) -> None:
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        self.send_header("Connection", "close")  # so that a cut body ends its connection, and no thread outlives a test
        self.end_headers()
