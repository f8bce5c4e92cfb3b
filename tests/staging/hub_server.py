"""A hub on 127.0.0.1: the part of the Hugging Face hub's API that its own client uses to download a model.

Large files are answered as the hub does, by a redirect to another host (here `localhost`), with the size and sha256 in
`X-Linked-*` headers. Faults can be switched on.
"""

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

LARGE = (".bin", ".safetensors")


class HubServer:
    """Serves `folder` as repository `repo_id`, branch `main` at `commit`. Use as a context manager."""

    def __init__(self, folder: Path, repo_id: str, commit: str) -> None:
        self.folder = folder
        self.repo_id = repo_id
        self.commit = commit
        self.token: str | None = None  # when set, only requests that carry it are served
        self.status: int | None = None  # when set, the answer to every request
        self.cut_after: dict[str, int] = {}  # file name -> bytes after which its next download breaks off
        self.corrupt: set[str] = set()  # file names served with one byte changed
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.tokens_at_cdn: list[str] = []

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloads(self) -> Counter[str]:
        """How often each file's bytes were asked for."""
        names = (Path(path).name for method, path, _ in self.requests if method == "GET" and "/api/" not in path)
        return Counter(names)

    def entries(self) -> list[dict[str, object]]:
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        return [{"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)} for path in files]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.server_state, urlsplit(self.path).path
        hub.requests.append((self.command, path, self.headers.get("Range")))
        token = self.headers.get("Authorization")
        if path.startswith("/cdn/"):
            if token:
                hub.tokens_at_cdn.append(token)
            return self.send_file(hub.folder / Path(path).name)
        if hub.status is not None:
            return self.send(hub.status, b"{}")
        if not (path.startswith(f"/api/models/{hub.repo_id}") or path.startswith(f"/{hub.repo_id}/resolve/")):
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if hub.token is not None and token != f"Bearer {hub.token}":
            return self.send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        return self.api(path) if path.startswith("/api/") else self.resolve(path)

    def api(self, path: str) -> None:
        hub = self.server_state
        rest = path.removeprefix(f"/api/models/{hub.repo_id}").strip("/").split("/")
        if rest[-1] not in ("", "main", hub.commit):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest[0] == "tree":
            return self.send_json([tree_entry(entry) for entry in hub.entries()])
        siblings = [sibling(entry) for entry in hub.entries()]
        return self.send_json({"id": hub.repo_id, "sha": hub.commit, "siblings": siblings})

    def resolve(self, path: str) -> None:
        hub = self.server_state
        revision, name = path.removeprefix(f"/{hub.repo_id}/resolve/").split("/", 1)
        file = hub.folder / name
        if revision not in ("main", hub.commit) or not file.is_file():
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if file.suffix in LARGE:
            linked = {"X-Linked-ETag": f'"{sha256(file)}"', "X-Linked-Size": str(file.stat().st_size)}
            location = {"Location": f"http://localhost:{hub.port}/cdn/{name}", "X-Repo-Commit": hub.commit}
            return self.send(302, b"", {**linked, **location})
        return self.send_file(file)

    def send_file(self, file: Path) -> None:
        hub, data = self.server_state, file.read_bytes()
        if file.name in hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{sha256(file)}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        status, total = 200, len(data)
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            status, data = 206, data[begin:]
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        cut = hub.cut_after.pop(file.name, None) if self.command == "GET" else None
        self.send(status, data, headers, cut)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def sibling(entry: dict[str, object]) -> dict[str, object]:
    plain = {"rfilename": entry["name"], "size": entry["size"], "blobId": "0" * 40}
    if not str(entry["name"]).endswith(LARGE):
        return plain
    return {**plain, "lfs": {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": 134}}


def tree_entry(entry: dict[str, object]) -> dict[str, object]:
    plain = {"type": "file", "path": entry["name"], "size": entry["size"], "oid": "0" * 40}
    if not str(entry["name"]).endswith(LARGE):
        return plain
    return {**plain, "lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}}
