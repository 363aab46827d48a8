"""The server through a socket, in this process: OpenAI's own client, and requests that no client would send."""

from __future__ import annotations

import json
import socket
import time

import httpx
import openai
import pytest
import torch

from preftune.api.door import Rules
from preftune.api.service import Limits
from preftune.model.ends import ending_ids
from preftune.serve.chat import Sampling, open_chat
from preftune.types import Message
from tests.serve.api_server import in_thread, save_byte_model

ASK = [{"role": "user", "content": "Say it."}]
LIMITS = Limits(slots=4, waiting=4, max_tokens=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_byte_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=512)


@pytest.fixture(scope="module")
def running(folder):
    with in_thread(folder, rules=Rules(body_bytes=100_000), limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def chat(folder):
    return open_chat(str(folder), sampling=Sampling(temperature=0, max_tokens=40), history=False)


@pytest.fixture
def client(running):
    return running.client()


def asked(**more):
    return {"model": "tiny", "messages": ASK, "max_tokens": 8, **more}


def raw(body):
    """A chat request as bytes of HTTP."""
    text = json.dumps(body)
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*head, f"content-length: {len(text)}", "", text]).encode()


def everything(connection):
    """What the server sends until it closes: its head and its body may come apart."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def pieces(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_greedy_answer_is_that_of_the_chat(client, chat):
    answer = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=40)

    choice = answer.choices[0]
    assert choice.message.content.strip() == chat.ask("Say it.")
    assert choice.message.role == "assistant"
    assert answer.usage.prompt_tokens == len(chat.format.prompt_ids([[chat.turns[0]]])[0])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (choice.finish_reason == "length") == (answer.usage.completion_tokens == 40)


def test_a_stream_is_the_whole_answer_in_pieces(client):
    whole = client.chat.completions.create(**asked(temperature=0, max_tokens=30))
    chunks = list(
        client.chat.completions.create(
            **asked(temperature=0, max_tokens=30), stream=True, stream_options={"include_usage": True}
        )
    )

    assert pieces(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_an_answer_ends_before_a_stop_string_and_its_slot_is_free(client, running):
    whole = client.completions.create(model="tiny", prompt="ab", temperature=0, max_tokens=100).choices[0].text
    stop = whole[20:23]

    cut = client.completions.create(model="tiny", prompt="ab", temperature=0, max_tokens=100, stop=[stop, "\0\0"])

    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 100
    running.wait_for("answers_running", 0)


def test_a_seed_gives_the_same_answers_again(client):
    several = client.chat.completions.create(**asked(seed=5, n=3, max_tokens=20))
    alone = [client.chat.completions.create(**asked(seed=5 + number, max_tokens=20)) for number in range(3)]

    texts = [choice.message.content for choice in several.choices]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts)) == 3
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    other = [client.chat.completions.create(**asked(max_tokens=20)).choices[0].message.content for _ in range(2)]
    assert other[0] != other[1]


def test_log_probs_are_those_of_the_model(client, chat):
    answer = client.chat.completions.create(**asked(temperature=0, logprobs=True, top_logprobs=2))

    told = answer.choices[0].logprobs.content
    prompt = chat.format.prompt_ids([[*_messages()]])[0]
    ids = [chat.format.tokenizer.convert_tokens_to_ids(_name(chat, own)) for own in told]
    with torch.inference_mode():
        logps = chat.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)[len(prompt) - 1 :]
    for own, row in zip(told, logps, strict=False):
        values = row.topk(2).values.tolist()
        assert own.logprob == pytest.approx(values[0], abs=1e-4)
        assert [top.logprob for top in own.top_logprobs] == pytest.approx(values, abs=1e-4)
    assert "".join(own.token for own in told).startswith(answer.choices[0].message.content[:1])


def _messages():
    from preftune.types import Message

    return [Message("user", "Say it.")]


def _name(chat, own):
    """The token of a byte."""
    tokenizer = chat.format.tokenizer
    if own.bytes is None:
        pytest.skip("half a character has no name")
    return tokenizer.tokenize(bytes(own.bytes).decode())[0]


def test_log_probs_of_completions_stand_where_their_text_does(client):
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], temperature=0, max_tokens=12, logprobs=1, n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        told = choice.logprobs
        assert told.text_offset[0] == 0 and len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
        for token, place in zip(told.tokens, told.text_offset, strict=True):
            if "\ufffd" in token:
                break  # from the first half of a character on, tokens and characters do not go together
            assert choice.text[place:].startswith(token)


def test_token_ids_are_a_prompt_too(client, chat):
    ids = chat.format.with_bos(chat.format.encode(["ab"])[0])
    answers = [
        client.completions.create(model="tiny", prompt=prompt, temperature=0).choices[0].text for prompt in ("ab", ids)
    ]
    assert answers[0] == answers[1]


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


SURROGATE = '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}'
MALFORMED = {
    "no json": ('{"model', "not JSON"),
    "not an object": ("[]", "the body"),
    "deep": ("[" * 60_000, "parsing"),
    "a long number": ('{"n": ' + "9" * 50_000 + "}", "parsing"),
    "half a character": (SURROGATE, "lone surrogate"),
    "half a character in a name": ('{"model": "tiny", "messages": [], "\\ud83d": 1}', "unicode"),
    "no messages": (asked(messages=[]), "messages"),
    "a strange role": (asked(messages=[{"role": "judge", "content": "x"}]), "role"),
    "an image": (asked(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]), "content"),
    "tools": (asked(tools=[{"type": "function"}]), "tools"),
    "a penalty": (asked(frequency_penalty=0.5), "frequency_penalty"),
    "a format": (asked(response_format={"type": "json_object"}), "response_format"),
    "unknown": (asked(beam_width=3), "'beam_width' is not understood"),
    "a text for a number": (asked(max_tokens="many"), "max_tokens"),
    "temperature": (asked(temperature=-1), "temperature"),
    "not a number": ('{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temper"),
    "too many tokens": (asked(max_tokens=401), "at most 400"),
    "two limits": (asked(max_completion_tokens=9), "disagree"),
    "too many choices": (asked(n=17), "'n'"),
    "a long prompt": (asked(messages=[{"role": "user", "content": "x" * 600}]), "at most 511"),
    "tops alone": (asked(top_logprobs=3), "logprobs"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_wrong_is_said_in_openais_form(running, name):
    body, said = MALFORMED[name]
    content = body if isinstance(body, str) else json.dumps(body)

    answer = running.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert said in error["message"] + str(error["param"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", asked(model="other"), 404),
        ("/v1/nothing", {}, 404),
        ("/v1/models", {}, 405),
        ("/v1/completions", {"model": "tiny", "prompt": [[300]]}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": []}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "echo": True}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b", "c"], "n": 3}, 400),  # 4 slots and 4 that wait
        ("/v1/score", {"model": "tiny", "messages": ASK, "responses": ["a"]}, 400),
        ("/v1/chat/completions", asked(messages=[{"role": "user", "content": "x" * 200_000}]), 413),
    ],
)
def test_other_refusals_have_the_form_too(running, path, body, status):
    answer = running.post(path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("said", ["\U0010fff0999999\U0010fff2", "<|im_end|>\U0010fff1257\U0010fff2"])
def test_the_code_points_of_masks_are_characters_of_a_prompt(running, chat, said):
    message = asked(messages=[{"role": "user", "content": said}])
    answers = [
        running.post("/v1/chat/completions", message),
        running.post("/v1/completions", {"model": "tiny", "prompt": said, "max_tokens": 8}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    letters = len(said.encode()) + len(chat.format.prompt_ids([[Message("user", "")]])[0])
    assert answers[0].json()["usage"]["prompt_tokens"] == letters


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match=r"There is no model 'gone' here\. This server has 'tiny'"):
        client.chat.completions.create(model="gone", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        client.chat.completions.create(**asked(frequency_penalty=1.0))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(running, stream):
    left = running.gauge("disconnects_total")
    body = asked(max_tokens=400, temperature=0, n=4, stream=stream)
    with socket.create_connection(("127.0.0.1", int(running.root.rpartition(":")[2]))) as connection:
        connection.sendall(raw(body))
        deadline = time.monotonic() + 10
        while running.gauge("answers_open") == 0:
            assert time.monotonic() < deadline

    running.wait_for("answers_open", 0)
    running.wait_for("answers_running", 0)
    assert running.gauge("disconnects_total") == left + 1


def test_more_than_may_wait_is_refused_with_a_time_to_come_again(running, client):
    busy = {"model": "tiny", "prompt": "ab", "max_tokens": 400, "n": 8, "temperature": 0}  # it never stops
    with httpx.stream("POST", f"{running.url}/completions", json={**busy, "stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**{**busy, "max_tokens": 2})

    assert int(refused.value.response.headers["retry-after"]) >= 1
    running.wait_for("answers_open", 0)
    assert client.completions.create(model="tiny", prompt="ab", max_tokens=2).choices


@pytest.fixture(scope="module")
def impatient(folder):
    with in_thread(folder, rules=Rules(patience=0.5), limits=Limits(slots=16, max_tokens=400)) as running:
        yield running


def test_a_slow_body_is_refused_and_the_server_lives(impatient):
    with socket.create_connection(("127.0.0.1", int(impatient.root.rpartition(":")[2])), timeout=10) as connection:
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"model": ')
        answer = everything(connection)

    assert answer.startswith(b"HTTP/1.1 408") and b"within 0.5 seconds" in answer
    assert impatient.client().models.list().data


def test_a_client_that_does_not_read_loses_its_slot(impatient):
    # more than the buffers of both sides hold
    long = asked(max_tokens=400, n=16, temperature=0, stream=True, logprobs=True, top_logprobs=20)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", int(impatient.root.rpartition(":")[2])))
        connection.sendall(raw(long))
        impatient.wait_for("disconnects_total", 1)
        impatient.wait_for("answers_open", 0)


def test_what_is_no_http_is_refused_in_json(running):
    with socket.create_connection(("127.0.0.1", int(running.root.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(b"hello there\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400") and b'"error"' in answer


def test_a_model_that_fails_is_an_error_and_the_next_request_is_answered(running, client, monkeypatch):
    model = running.service.shelf.language["tiny"].model
    head = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    try:
        with pytest.raises(openai.InternalServerError, match="not finite"):
            client.chat.completions.create(**asked())
        with pytest.raises(openai.APIError, match="not finite"):
            pieces(client.chat.completions.create(**asked(), stream=True))
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(head)
    assert client.chat.completions.create(**asked()).choices


def test_the_ends_of_the_model_are_no_text(chat, running):
    assert running.service.shelf.language["tiny"].ends == ending_ids(chat.model, chat.format)


def test_health_and_metrics(running):
    assert httpx.get(f"{running.root}/health").json() == {"status": "ok"}
    running.client().chat.completions.create(model="tiny", messages=ASK, max_tokens=2)
    page = httpx.get(f"{running.root}/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'preftune_requests_total{path="/v1/chat/completions",status="200"}' in page.text
    assert "preftune_slots 4\n" in page.text


def test_a_key_is_needed_but_for_health(folder, caplog):
    with in_thread(folder, rules=Rules(key="right-key"), limits=LIMITS) as running:
        assert httpx.get(f"{running.root}/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert httpx.get(f"{running.root}{path}").status_code == 401
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            running.client("wrong-key").models.list()
        assert running.client("right-key").models.list().data
    assert "key" not in caplog.text


def test_a_server_of_this_machine_answers_to_its_own_names_alone(folder):
    with in_thread(folder, rules=Rules(hosts=frozenset({"127.0.0.1"})), limits=LIMITS) as running:
        assert httpx.get(f"{running.root}/v1/models").status_code == 200
        assert httpx.get(f"{running.root}/v1/models", headers={"host": "evil.example:80"}).status_code == 403
