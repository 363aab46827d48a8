"""A stand-in for the hub: serves the folders `owner/name` below a root as data set repositories, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@contextmanager
def serving(root: Path, handler: type | None = None):
    """The address of the server, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler or Hub, root))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Hub(BaseHTTPRequestHandler):
    def __init__(self, root, *args):
        self.root = root
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", "datasets", owner, name, *_] if not (self.root / owner / name).is_dir():
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            case ["api", "datasets", owner, name] | ["api", "datasets", owner, name, "revision", _]:
                self.answer_json(self.describe(self.root / owner / name, f"{owner}/{name}"))
            case ["api", "datasets", owner, name, "tree", _, *under]:
                self.answer_tree(self.root / owner / name, "/".join(under))
            case ["datasets", owner, name, "resolve", _, *path]:
                self.answer_file(self.root / owner / name / "/".join(path))
            case _:
                self.answer(404)

    do_HEAD = do_GET

    def describe(self, folder, name):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
        return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0, "tags": []}

    def answer_tree(self, folder, under):
        if not (folder / under).is_dir():
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        every = "recursive=true" in self.path.lower()
        items = sorted((folder / under).rglob("*") if every else (folder / under).iterdir())
        return self.answer_json([entry(item, folder) for item in items])

    def answer_file(self, file):
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        return self.answer(200, content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})

    def answer_json(self, value, status=200):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content=b"", headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def entry(item, folder):
    path = str(item.relative_to(folder))
    if item.is_dir():
        return {"type": "directory", "path": path, "size": 0, "oid": digest(path.encode())}
    content = item.read_bytes()
    return {"type": "file", "path": path, "size": len(content), "oid": digest(content)}


def digest(content):
    return hashlib.sha1(content).hexdigest()
