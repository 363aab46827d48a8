"""`preftune serve` as a process: OpenAI's client, many at once, signals, and whatever schemathesis tries."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import httpx
import openai
import pytest
import torch

from preftune.export.write import export_model
from preftune.model.load import load_model, load_tokenizer
from preftune.serve.chat import Sampling, open_chat
from tests.data.conftest import find_data_folder
from tests.serve.api_server import ROOT, in_process, save_byte_model
from tests.serve.test_api_models import save_adapter

pytestmark = pytest.mark.slow
STORIES = ["Once upon a time", "Lily", "The big dog", "One day, a little girl named Sue", "Tom and Sam", "It was"]


@pytest.fixture(scope="module")
def stories():
    return find_data_folder() / "models" / "stories260K-llama"


@pytest.fixture(scope="module")
def served(stories):
    with in_process(stories, "--slots", "8", "--patience", "2", "--max-body-mib", "1") as (running, process):
        yield running, process


@pytest.fixture
def running(served):
    return served[0]


def test_32_at_once_get_the_answers_that_one_at_a_time_gets(running, stories):
    draw = random.Random(0)
    jobs = [(" ".join(draw.choices(STORIES, k=draw.randint(1, 12))), draw.randint(1, 120)) for _ in range(32)]
    client = running.client()

    def ask(job):
        prompt, tokens = job
        return client.completions.create(model="stories260K-llama", prompt=prompt, max_tokens=tokens, temperature=0)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, jobs))

    model, tokenizer = load_model(str(stories)).eval(), load_tokenizer(str(stories))
    for (prompt, tokens), answer in zip(jobs, found, strict=True):
        assert_greedy(model, tokenizer, prompt, tokens, answer.choices[0].text)
        assert answer.usage.completion_tokens <= tokens


def assert_greedy(model, tokenizer, prompt, tokens, found):
    """The text of `model.generate`, or that of a token within 1e-4 of the likeliest where it first differs."""
    ids = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    own = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            own, attention_mask=torch.ones_like(own), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )[0]
        lead = tokenizer.decode(ids, skip_special_tokens=True)
        texts = [
            tokenizer.decode(out[:end], skip_special_tokens=True)[len(lead) :] for end in range(len(ids), len(out) + 1)
        ]
        if texts[-1] == found:
            return
        place = next(i for i, text in enumerate(texts) if not found.startswith(text.rstrip("\ufffd")))
        first, second = model(out[None, : len(ids) + place - 1]).logits[0, -1].topk(2).values.tolist()
    assert first - second < 1e-4, f"{prompt!r}: differs at token {place}: {found!r}, {texts[-1]!r}"


def test_a_stream_comes_while_it_is_written(running):
    started = time.monotonic()
    stream = running.client().completions.create(
        model="stories260K-llama", prompt=STORIES[0], max_tokens=400, temperature=1, seed=1, stream=True
    )
    times = [time.monotonic() - started for _ in stream]
    assert len(times) > 20
    assert times[0] < times[-1] / 2


def test_malformed_huge_and_slow_requests_leave_it_alive(running):
    port = int(running.root.rpartition(":")[2])
    huge = running.post("/v1/completions", {"model": "x", "prompt": "x" * 2_000_000})
    assert huge.status_code == 413
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 403")  # a name that is not this machine's
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:  # headers that never end
        silent.sendall(b"GET /v1/models HTTP/1.1\r\nhost: loc")
        assert silent.recv(4096) == b""
    junk = random.Random(3).randbytes(4000)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as noise:
        noise.sendall(junk + b"\r\n\r\n")
        assert noise.recv(4096).startswith(b"HTTP/1.1 400")

    assert running.client().completions.create(model="stories260K-llama", prompt="a", max_tokens=2).choices


def test_clients_that_leave_free_their_slots(running):
    def leave(number):
        body = {"model": "stories260K-llama", "prompt": "Once", "max_tokens": 500, "stream": True, "seed": number}
        with httpx.stream("POST", f"{running.url}/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, range(20)))

    running.wait_for("answers_open", 0)
    running.wait_for("answers_running", 0)


def test_nothing_that_schemathesis_tries_makes_it_fail(running, tmp_path):
    """Requests made from its own OpenAPI document, right and wrong ones."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.root}/openapi.json", "--max-examples", "20"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    more = ["--checks", f"{checks},negative_data_rejection", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert running.client().models.list().data


def test_a_checkpoint_with_lora_and_the_merged_model_answer_alike(tmp_path):
    base = save_byte_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "run" / "checkpoint-8", 1)
    export_model(str(adapter), tmp_path / "merged")
    wanted = open_chat(str(adapter), sampling=Sampling(temperature=0, max_tokens=24)).ask("Who?")
    ask = {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "max_tokens": 24}

    for place, name in ((tmp_path / "run", "run"), (tmp_path / "merged", "merged")):
        with in_process(place, "--api-key-env", "SERVE_KEY", env={"SERVE_KEY": "s3cret"}) as (running, process):
            client = running.client("s3cret")
            assert client.chat.completions.create(model=name, **ask).choices[0].message.content.strip() == wanted
            with pytest.raises(openai.AuthenticationError):
                running.client("guess").models.list()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert "s3cret" not in "".join(running.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_come_to_their_end(stories, number):
    with in_process(stories, "--slots", "2") as (running, process):
        parts, refused = [], []
        body = {"model": "stories260K-llama", "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0}

        def read():
            with httpx.stream("POST", f"{running.url}/completions", json={**body, "stream": True, "n": 2}) as stream:
                parts.extend(stream.iter_lines())

        def wait():
            refused.append(running.post("/v1/completions", body).status_code)

        threads = [Thread(target=read), Thread(target=wait)]
        threads[0].start()
        running.wait_for("answers_running", 2)
        threads[1].start()
        running.wait_for("answers_open", 3)
        process.send_signal(number)
        for thread in threads:
            thread.join(60)

        assert process.wait(30) == 0
        assert parts[-2] == "data: [DONE]" or parts[-1] == "data: [DONE]"
        assert refused == [503]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.root}/health")


def test_when_the_grace_is_over_an_answer_is_broken_off_with_an_error(stories):
    with in_process(stories, "--grace", "0") as (running, process):
        body = {"model": "stories260K-llama", "prompt": "Once", "max_tokens": 500, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{running.url}/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(stories):
    with in_process(stories) as (running, process):
        body = {"model": "stories260K-llama", "prompt": "Once", "max_tokens": 500, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{running.url}/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 143


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ImportError('no fastapi')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "preftune.cli.main", "serve", "model"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("MissingExtraError: preftune serve needs the 'serve' extra")
