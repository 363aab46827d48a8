"""The driver's end of protocol.py: starts workers, asks them one thing at a time, ends them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent


class WorkerError(Exception):
    """A worker failed or ended; the message carries what it said."""


class Worker:
    """One worker process. Requests block, so that only one worker computes at a time."""

    def __init__(self, name: str, python: Path, script: str, arguments: list[str], threads: int) -> None:
        self.name = name
        # Open as long as the worker is; a file, because a full pipe would stop it.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",  # everything is local
        }
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    @cached_property
    def hello(self) -> dict:
        """Its first answer: "versions" and "notes". Waits until it is ready to work."""
        return self._read()

    def ask(self, operation: str, **fields: object) -> dict:
        """Send one request, wait for its answer."""
        assert self.hello and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._explain("ended early")) from error
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # gone already, which is all we want
            self._process.stdin.close()  # the end of its requests is the end of a worker
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._explain(f"ended early with status {self._process.wait()}"))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(self._explain("failed", answer["error"]))
        return answer

    def _explain(self, what: str, detail: str = "") -> str:
        self._log.seek(0)
        said = "".join(self._log.readlines()[-30:])
        return f"worker '{self.name}' {what}\n{detail}\n{said}".rstrip()
