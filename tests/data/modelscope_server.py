"""A stand-in for ModelScope: serves the folders `owner/name` below a root as data sets, on this machine.

A file named `lost.jsonl` is listed and not served. Paths and answers are those that modelscope 1.40 asks for and reads.
"""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qs, unquote, urlsplit

from tests.data.hub_server import Hub


class ModelScope(Hub):
    def do_GET(self):
        url = urlsplit(self.path)
        asked = {key: values[-1] for key, values in parse_qs(url.query).items()}
        match unquote(url.path).strip("/").split("/"):
            case ["api", "v1", "datasets", owner, name, *_] if not (self.root / owner / name).is_dir():
                self.answer_json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
            case ["api", "v1", "datasets", owner, name, "repo", "tree"]:
                files = tree(self.root / owner / name) if asked.get("PageNumber", "1") == "1" else []
                self.answer_json({"Code": 200, "Success": True, "Data": {"Files": files}})
            case ["api", "v1", "datasets", owner, name, "repo"]:
                self.answer_file(self.root / owner / name / asked["FilePath"])
            case ["api", "v1", "datasets", _, _]:
                self.answer_json({"Code": 200, "Success": True, "Data": {"Id": 1, "Type": 1}})
            case _:
                self.answer(404)

    do_HEAD = do_GET

    def answer_file(self, file):
        if not file.is_file() or file.name == "lost.jsonl":
            return self.answer(404)
        return self.answer(200, file.read_bytes())


def tree(folder):
    items = sorted(folder.rglob("*"))
    return [entry(item, str(item.relative_to(folder))) for item in items]


def entry(item, path):
    if item.is_dir():
        return {"Type": "tree", "Path": path, "Name": item.name, "Size": 0}
    content = item.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"Type": "blob", "Path": path, "Name": item.name, "Size": len(content), "Sha256": digest}
