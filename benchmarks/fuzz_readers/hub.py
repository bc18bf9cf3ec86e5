"""Targets: what a hub answers, over loopback."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fuzz_readers.mutators import json_mutation
from fuzz_readers.target import Place, Prepared, Target

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = "data/train-00000-of-00001.parquet"


class _Hub:
    """Answers every request alike.

    Attributes:
        body, headers: Of the answers.
    """

    def __init__(self) -> None:
        self.body, self.headers = b"", {}  # type: bytes, dict[str, str]
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "/api/" not in self.path and not hub.headers:
                    self.send_error(404)
                    return
                self.send_response(200)
                for name, value in hub.headers.items():
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name in hub.headers):
                    self.send_header("Content-Length", str(len(hub.body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(hub.body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"


def _listing(place: Place) -> Prepared:
    """The list of a data set's files, as it comes and as it was kept."""
    from beitcli.data.sources.open_data import open_data

    hub = _Hub()
    lfs = {"sha256": "a" * 64, "size": 9_000_000, "pointerSize": 1}
    files = [{"rfilename": _FILE, "size": 9_000_000, "blobId": "b", "lfs": lfs}, {"rfilename": "README.md", "size": 5}]
    document = {"id": "o/n", "sha": _COMMIT, "siblings": files, "tags": [], "lastModified": "2024-01-01T00:00:00.000Z"}
    kept = place.folder / "cache" / "listings" / "datasets--o--n--main.json"
    kept.parent.mkdir(parents=True)
    cached = {"commit": _COMMIT, "sizes": {_FILE: 9_000_000}, "marks": {_FILE: "a" * 64}}

    def use(data: bytes) -> None:
        is_cached, hub.body = data[:1] == b"c", data[1:]
        os.environ["HF_HUB_OFFLINE"] = "1" if is_cached else "0"
        if is_cached:
            kept.write_bytes(data[1:])
        open_data(["hf://datasets/o/n"], split="train")

    def mutate(content: bytes, seed: int) -> bytes:
        return content[:1] + json_mutation(content[1:], seed)

    seeds = [b"n" + json.dumps(document).encode(), b"c" + json.dumps(cached).encode()]
    return Prepared(use, seeds, mutate)


def _file(place: Place) -> Prepared:
    """The headers that name a file's commit, hash and size, as a JSON object; and the file."""
    from beitcli.runtime.hub.client import fetch

    hub = _Hub()
    headers = {"X-Repo-Commit": _COMMIT, "ETag": '"abc"', "X-Linked-Size": "2", "X-Linked-Etag": '"abc"'}

    def use(data: bytes) -> None:
        import shutil

        shutil.rmtree(place.folder / "cache", ignore_errors=True)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = {}
        given = document if isinstance(document, dict) else {}
        hub.headers = {
            name: "".join(char for char in str(value) if " " <= char < "\x7f")[:200]
            for name, value in given.items()
            if name.replace("-", "").isascii() and name.replace("-", "").isalnum()
        } or {"X-Nothing": "1"}
        hub.body = b"{}"
        fetch("o/n", ["config.json"])

    return Prepared(use, [json.dumps(headers).encode()], json_mutation)


TARGETS = [
    Target("hub listing", "the hub's list of files, and the kept one", _listing, 4096),
    Target("hub file", "the hub's headers of a file", _file, 2048),
]
