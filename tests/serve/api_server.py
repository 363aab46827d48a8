"""A server of `preftune.api` on a free loopback port: in a thread of the test, or as a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from openai import OpenAI

from preftune.api.door import Rules
from preftune.api.served import open_shelf
from preftune.api.server import bind, build_server
from preftune.api.service import Limits, Service
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

ROOT = Path(__file__).parents[2]


def save_byte_model(folder: Path, **changes) -> Path:
    """A small random model that writes bytes, and ends an answer now and then."""
    tokenizer = build_byte_tokenizer(CHATML)
    ids = {"bos_token_id": 256, "eos_token_id": 259, "pad_token_id": 257}
    model = build_model(vocab_size=len(tokenizer), num_hidden_layers=2, **ids, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Running:
    """`url` ends in /v1."""

    def __init__(self, url: str, service: Service | None = None) -> None:
        self.url, self.root, self.service = url, url.removesuffix("/v1"), service
        self.names = service.shelf.names if service else []

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body=None, **more) -> httpx.Response:
        more = {"json": body, **more} if body is not None else more
        return httpx.post(f"{self.root}{path}", timeout=30, **more)

    def gauge(self, name: str, headers=None) -> float:
        page = httpx.get(f"{self.root}/metrics", headers=headers, timeout=30).text
        return float(next(line.split()[1] for line in page.splitlines() if line.startswith(f"preftune_{name} ")))

    def wait_for(self, name: str, value: float, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.gauge(name) != value:
            assert time.monotonic() < end, f"{name} is {self.gauge(name)}, not {value}"
            time.sleep(0.02)


@contextmanager
def in_thread(place, *, rules: Rules | None = None, limits: Limits | None = None, **more):
    """A server in a thread."""
    service = Service(open_shelf(str(place), **more), limits or Limits())
    listener = bind("127.0.0.1", 0)
    server = build_server(service, rules or Rules(), grace=1)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", service)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def in_process(*arguments, env=None):
    """`preftune serve ARGUMENTS --port 0`; gives what runs, and its process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    command = [sys.executable, "-m", "preftune.cli.main", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        line = process.stdout.readline()
        assert " at http://" in line, line + process.stderr.read()
        running = Running(line.split(" at ")[1].split(",")[0])
        end = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{running.root}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)
        running.log = drain(process)
        yield running, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def drain(process) -> list[str]:
    """The lines of its log as they come, so that its pipe never fills."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True).start()
    return lines


def greedy_text(model, tokenizer, ids, tokens, ends):
    """`model.generate` on one prompt: text, and ids of the answer."""
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
            eos_token_id=list(ends), pad_token_id=0,
        )  # fmt: skip
    answer = out[0, len(ids) :].tolist()
    return tokenizer.decode(answer, skip_special_tokens=True), answer
