"""A stand-in for the hub that takes models: makes repositories and keeps the commits, in memory."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import load_file

TOKEN = "hf_of_the_test"


class ModelHub(ThreadingHTTPServer):
    """repos: name -> path -> content; commits: (name, branch, summary); private: names."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.commits, self.private = {}, [], set()
        self.refuses_commits = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


def put_in_cache(cache, name, folder):
    """A folder as the newest snapshot of a hub name; returns that snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / ".no_exist" / ("a" * 40)).mkdir(parents=True)
    if not (folder / "config.json").exists():  # an adapter: it was asked for and is not there
        (repository / ".no_exist" / ("a" * 40) / "config.json").touch()
    return shutil.copytree(folder, repository / "snapshots" / ("a" * 40))


def pickled(folder):
    """The folder with its weights as a pickle alone."""
    for file in folder.glob("*model.safetensors"):
        weights = {"model": "pytorch_model.bin"}.get(file.stem, f"{file.stem}.bin")
        torch.save(load_file(file), folder / weights)
        file.unlink()
    return folder


@contextmanager
def serving_models():
    server = ModelHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"})
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                return self.answer(200, {"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", _]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            case ["api", "models", owner, name, "commit", branch]:
                return self.commit(f"{owner}/{name}", branch, [json.loads(line) for line in body.splitlines()])
        return self.answer(404, {})

    def do_GET(self):
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", "models", owner, name, "tree", *_]:
                files = self.server.repos.get(f"{owner}/{name}", {})
                items = [{"type": "file", "path": path, "size": 1, "oid": "a" * 40} for path in files]
                return self.answer(200, items)
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" in self.server.repos:
                files = [{"rfilename": path} for path in self.server.repos[f"{owner}/{name}"]]
                return self.answer(200, {"id": f"{owner}/{name}", "sha": "a" * 40, "siblings": files, "tags": []})
        return self.answer(404, {})

    def create(self, asked):
        owner, server = asked.get("organization") or "me", self.server
        name = f"{owner}/{asked['name']}"
        if owner not in ("me", "team"):
            return self.answer(403, {"error": f"You don't have the rights to create a model under {owner}"})
        known = name in server.repos
        server.repos.setdefault(name, {})
        if asked.get("visibility") == "private" or asked.get("private"):
            server.private.add(name)
        return self.answer(409 if known else 200, {"url": f"{server.address}/{name}", "name": name})

    def commit(self, name, branch, lines):
        if self.server.refuses_commits:
            return self.answer(403, {"error": "read-only"})
        files = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
        self.server.repos[name] |= {path: base64.b64decode(value["content"]) for path, value in files.items()}
        header = next(line["value"] for line in lines if line["key"] == "header")
        self.server.commits.append((name, branch, header["summary"]))
        address = f"{self.server.address}/{name}/commit/{len(self.server.commits)}"
        return self.answer(200, {"commitUrl": address, "commitOid": "b" * 40, "success": True})

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
