"""A local Hub: the HTTP interface that huggingface-hub uses, served from folders."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Answering(BaseHTTPRequestHandler):
    """A handler of requests that logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        """Send an answer."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve_hub(
    repositories: dict[str, Path], gated: frozenset[str] = frozenset(), uploads: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories with one commit; yield the address and the list of downloaded files.

    Files that a client commits are written to `uploads`.
    """
    downloads: list[str] = []

    class Handler(Answering):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            home = f"http://{self.headers['Host']}/somebody"
            answered = receive(urlparse(self.path).path, body, home, uploads) if uploads else None
            self.send(403 if answered is None else 200, json.dumps(answered).encode(), {}, True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlparse(self.path).path).strip("/")
            name = next((each for each in repositories if f"{each}/" in f"{path}/"), None)
            if name is None:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                return
            if name in gated:
                self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
                return
            folder = repositories[name]
            rest = path.removeprefix("api/models/").removeprefix(f"{name}").strip("/").split("/")
            files = sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())
            if len(rest) > 1 and rest[1] not in ("main", COMMIT):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            elif rest[0] == "tree":
                listed = [{"type": "file", "path": each, "size": 1, "oid": "0" * 40} for each in files]
                self.send(200, json.dumps(listed).encode(), {}, body)
            elif rest[0] in ("revision", ""):
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in files]}
                self.send(200, json.dumps(info).encode(), {}, body)
            elif rest[0] == "resolve" and "/".join(rest[2:]) in files:
                data = (folder / "/".join(rest[2:])).read_bytes()
                if body:
                    downloads.append("/".join(rest[2:]))
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.send(200, data, {"ETag": tag, "X-Repo-Commit": COMMIT}, body)
            else:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloads
    finally:
        server.shutdown()
        server.server_close()


def receive(path: str, body: bytes, home: str, uploads: Path) -> dict[str, object]:
    """Answer a request that creates a repository or commits files; the files are written to `uploads`."""
    if path == "/api/repos/create":
        name = json.loads(body)["name"]
        return {"url": f"{home}/{name}", "id": f"somebody/{name}"}
    if "/preupload/" in path:
        mode = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": each["path"], **mode} for each in json.loads(body)["files"]]}
    if "/commit/" in path:
        for row in map(json.loads, body.splitlines()):
            if row["key"] == "file":
                target = uploads / row["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(row["value"]["content"]))
        return {"commitUrl": f"{home}/x/commit/{COMMIT}", "commitOid": COMMIT}
    return {}
