"""Tokens a second of `preftune serve` with clients at once, beside a loop that answers one request after the other.

    PREFTUNE_TEST_DATA=path/to/data python benchmarks/serving.py              into benchmarks/results/serving.*
    PREFTUNE_TEST_DATA=path/to/data python benchmarks/serving.py --size tiny --requests 8 --out FOLDER

The loop is what people write: `model.generate` for each request as it comes, in a process of its own. The server is a
process too, asked over HTTP by `--clients` threads. Both have the same weights (a random model with Llama 2's
vocabulary, in float32), the same prompts and lengths, greedy, and take turns. Random weights hardly ever end an answer
before its limit; what is counted are the tokens that were written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import report
from step import RESULTS, say
from weights import save_model
from workload import ModelSize

SIZES = {
    "22M": ModelSize(hidden=320, layers=6, heads=5, mlp=880, vocab=32_000),
    "58M": ModelSize(hidden=512, layers=8, heads=8, mlp=1408, vocab=32_000),
    "tiny": ModelSize(hidden=32, layers=2, heads=2, mlp=64, vocab=32_000),
}
LOOP = """
import json, sys, torch, transformers
transformers.utils.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    prompt, tokens = json.loads(line)
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    print(out.shape[1] - ids["input_ids"].shape[1], flush=True)
"""
WORDS = "the model answers many people at once and every one of them waits for a different length of text".split()


def draw_requests(count: int) -> list[tuple[str, int]]:
    """Prompts of 8 to 120 words with 16 to 128 tokens to write."""
    draw = random.Random(0)
    return [(" ".join(draw.choices(WORDS, k=draw.randint(8, 120))), draw.randint(16, 128)) for _ in range(count)]


@contextmanager
def server(folder: Path, slots: int) -> Iterator[str]:
    """A running server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "preftune", "serve", str(folder), "--port", str(port), "--slots", str(slots)]
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(url, process)
            yield url
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("serving.py: the server did not start")


def ask_server(url: str, name: str, clients: int, requests: list[tuple[str, int]]) -> int:
    """Tokens written, by all requests."""

    def ask(request: tuple[str, int]) -> int:
        body = {"model": name, "prompt": request[0], "max_tokens": request[1], "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=600).raise_for_status().json()
        return int(answer["usage"]["completion_tokens"])

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(ask, requests))


def ask_loop(process: subprocess.Popen[str], requests: list[tuple[str, int]]) -> int:
    """Tokens written, one request after the other."""
    assert process.stdin is not None
    assert process.stdout is not None
    tokens = 0
    for request in requests:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        tokens += int(process.stdout.readline())
    return tokens


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Tokens a second of each side's turns."""
    requests = draw_requests(asked.requests)
    words = [sys.executable, "-c", LOOP, str(folder)]
    rates: dict[str, list[float]] = {"loop": [], "server": []}
    with (
        server(folder, asked.clients) as url,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop,
    ):
        assert loop.stdout is not None
        while loop.stdout.readline() != "ready\n":
            if loop.poll() is not None:
                raise SystemExit("serving.py: the loop did not start")
        sides: dict[str, Callable[[list[tuple[str, int]]], int]] = {
            "loop": lambda some: ask_loop(loop, some),
            "server": lambda some: ask_server(url, folder.name, asked.clients, some),
        }
        for side in sides.values():
            side(requests[:2])
        for turn in range(asked.repeats):
            for name in sorted(sides, reverse=turn % 2 == 1):
                started = time.perf_counter()
                tokens = sides[name](requests)
                rates[name].append(tokens / (time.perf_counter() - started))
                say(f"{name}: {tokens} tokens, {rates[name][-1]:.0f} a second")
        loop.stdin.close()  # type: ignore[union-attr]
    return rates


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="22M")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    data = os.environ.get("PREFTUNE_TEST_DATA")
    if not data:
        print("serving.py: set PREFTUNE_TEST_DATA to the folder that holds tokenizers/", file=sys.stderr)
        return 2
    context = report.describe_run("serving.py", argv)
    with tempfile.TemporaryDirectory(prefix="serving-bench-") as scratch:
        folder = Path(scratch) / "random"
        save_model(SIZES[asked.size], folder)
        for file in (Path(data) / "tokenizers" / "llama2" / "hf").iterdir():
            shutil.copy(file, folder / file.name)
        rates = measure(asked, folder)
    context["load_after"] = report.load_average()
    write(asked, context, rates)
    return 0


def write(asked: argparse.Namespace, context: dict[str, Any], rates: dict[str, list[float]]) -> None:
    ratios = [ours / theirs for ours, theirs in zip(rates["server"], rates["loop"], strict=True)]
    shown = [f"{statistics.median(rates[side]):.0f}" for side in ("loop", "server")]
    row = [asked.size, *shown, f"{statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})"]
    page = [
        "# Serving",
        "",
        *report.heading(context, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))),
        "",
        f"{asked.requests} requests of mixed lengths, greedy, in float32: `preftune serve` asked by {asked.clients} "
        "clients at once, and `model.generate` one request after the other. The sides take turns.",
        "",
        report.markdown_table(["model", "loop, tokens/s", "server, tokens/s", "speed-up"], [row]),
        "",
    ]
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "serving.md").write_text("\n".join(page), encoding="utf-8")
    record = json.dumps({**context, "rates": rates}, indent=1) + "\n"
    (asked.out / "serving.json").write_text(record, encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    sys.exit(main())
