"""`snapshot_download` with the signature, requests, cache and kinds of errors of modelscope 1.40, and no more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.parse import quote_plus
from urllib.request import urlopen


class StatusError(OSError):
    """As requests' HTTPError: `response` has the status."""

    def __init__(self, message, status):
        super().__init__(message)
        self.response = SimpleNamespace(status_code=status)


class FileDownloadError(Exception):
    """As modelscope_hub's: `failed_files` has the error of each path that did not arrive."""

    def __init__(self, message, failed_files):
        super().__init__(message)
        self.failed_files = failed_files


def snapshot_download(
    model_id=None,
    revision=None,
    cache_dir=None,
    user_agent=None,
    local_files_only=False,
    cookies=None,
    ignore_file_pattern=None,
    allow_file_pattern=None,
    local_dir=None,
    allow_patterns=None,
    ignore_patterns=None,
    max_workers=None,
    repo_id=None,
    repo_type=None,
    progress_callbacks=None,
    token=None,
    endpoint=None,
):
    assert repo_type == "dataset"
    folder = Path(os.environ["MODELSCOPE_CACHE"]) / "datasets" / repo_id.replace("/", "--") / "snapshots" / "master"
    if local_files_only:
        if not folder.is_dir() or not any(folder.iterdir()):
            raise ValueError("Cannot find cached snapshot")
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{os.environ['MODELSCOPE_ENDPOINT']}/api/v1/datasets/{repo_id}/repo"
    listed = json.loads(get(f"{address}/tree?Revision=master&Recursive=True&PageNumber=1&PageSize=200"))
    paths = [file["Path"] for file in listed["Data"]["Files"] if file["Type"] != "tree"]
    failed = {}
    for path in paths:
        try:
            content = get(f"{address}?Revision=master&FilePath={quote_plus(path)}")
        except OSError as error:
            failed[path] = error
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if failed:
        raise FileDownloadError(f"{len(failed)} of {len(paths)} file(s) failed to download\nfrom {repo_id}", failed)
    return str(folder)


def get(url):
    try:
        with urlopen(url) as answer:
            return answer.read()
    except HTTPError as error:
        raise StatusError(f"HTTP {error.code}\n  Request: GET {url}", error.code) from error
    except URLError as error:
        raise ConnectionError(f"[E1020] Connection failed: {error.reason}") from error
