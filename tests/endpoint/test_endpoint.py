"""Every request has its reply or its failure, whatever the servers do; nothing is asked, or paid, twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from preftune.endpoint import (
    Budget,
    BudgetSpentError,
    ChatReply,
    ChatRequest,
    Choice,
    Endpoint,
    EndpointError,
    Failure,
    Prices,
    ReplyCache,
    estimate,
)
from preftune.endpoint.servers import Servers
from preftune.errors import CheckpointError, DataError, RecipeError
from tests.endpoint.server import Script, serving


def ask(key, **more):
    return ChatRequest(key, messages=[{"role": "user", "content": f"question {key}"}], **more)


def endpoint(*urls, **more):
    return Endpoint(list(urls), "m", **{"patience": 0.02, "timeout": 0.7, **more})


def test_every_reply_comes_once_and_requests_run_at_the_same_time():
    script = Script(delay=0.05)
    with serving(script) as url:
        found = {
            request.key: reply.text
            for request, reply in endpoint(url, concurrency=8).ask(ask(str(n)) for n in range(40))
        }
    assert found == {str(n): f"re: question {n}" for n in range(40)}
    assert len(script.asked) == 40 and 4 <= script.most_under_way <= 8


def test_a_reply_has_its_choices_in_order_its_counts_and_the_request_its_settings():
    script = Script()
    with serving(script) as url:
        request = ask("a", n=3, temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=["\n"], more={"min_p": 0.1})
        (reply,) = endpoint(url).ask_in_order([request])
    assert isinstance(reply, ChatReply) and len(reply.choices) == 3 and reply.model == "there"
    assert (reply.prompt_tokens, reply.completion_tokens, reply.choices[0].finish) == (10, 5, "stop")
    assert script.asked[0] == {
        "model": "m", "messages": [{"role": "user", "content": "question a"}], "n": 3, "temperature": 0.5,
        "top_p": 0.9, "max_tokens": 7, "seed": 3, "stop": ["\n"], "min_p": 0.1,
    }  # fmt: skip


def test_token_ids_are_sent_as_they_stand():
    script = Script()
    with serving(script) as url:
        (reply,) = endpoint(url).ask_in_order([ChatRequest("a", prompt=[1, 2, 3])])
    assert script.asked[0]["prompt"] == [1, 2, 3] and reply.text == "re: [1, 2, 3]"


@pytest.mark.parametrize("trouble", ["fail", "busy", "page", "empty", "number", "silent", "cut"])
def test_what_passes_is_tried_again(trouble):
    script = Script(trouble, trouble)
    with serving(script) as url:
        found = endpoint(url, concurrency=2).ask_in_order([ask(str(n)) for n in range(6)])
    assert [reply.text for reply in found] == [f"re: question {n}" for n in range(6)]
    assert len(script.asked) == 8


def test_a_server_that_is_busy_rests_as_long_as_it_says():
    script = Script("busy")
    with serving(script) as url:
        endpoint(url).ask_in_order([ask("a")])
    assert script.times[1] - script.times[0] >= 0.4


@pytest.mark.parametrize(
    "trouble, reason",
    [
        ("fail", "status 500: out of luck"),
        ("page", "expected JSON, found '<html>Welcome"),
        ("empty", "with 1 choices, found 0"),
        ("silent", "no reply within 0.7 s"),
        ("cut", "the connection failed"),
    ],
)
def test_what_does_not_pass_is_a_failure_with_its_reason(trouble, reason):
    with serving(Script(then=trouble)) as url:
        (found,) = endpoint(url, tries=2).ask_in_order([ask("a")])
    assert isinstance(found, Failure) and reason in found.reason and found.tries == 2


def test_a_request_that_is_refused_is_not_repeated_and_the_others_go_on():
    script = Script("refuse")
    with serving(script) as url:
        found = endpoint(url, concurrency=1).ask_in_order([ask("a"), ask("b")])
    assert found[0] == Failure("status 400: too long", 1, refused=True) and found[1].text == "re: question b"
    assert len(script.asked) == 2


def test_a_key_that_is_refused_stops_with_one_line(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-7")
    script = Script(then="forbid")
    with serving(script) as url, pytest.raises(EndpointError) as error:
        endpoint(url, key_from="MY_KEY").ask_in_order([ask(str(n)) for n in range(20)])
    assert "environment variable MY_KEY" in str(error.value) and "secret-7" not in str(error.value)
    assert script.headers[0]["Authorization"] == "Bearer secret-7"


def test_the_newline_behind_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-7\n")
    script = Script()
    with serving(script) as url:
        (reply,) = endpoint(url, key_from="MY_KEY").ask_in_order([ask("a")])
    assert reply.text == "re: question a" and script.headers[0]["Authorization"] == "Bearer secret-7"


@pytest.mark.parametrize("key", ["sécret-7", "secret\n7"])
def test_a_key_that_can_be_none_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    script = Script()
    with serving(script) as url, pytest.raises(EndpointError, match="MY_KEY holds a character") as error:
        endpoint(url, key_from="MY_KEY").ask_in_order([ask("a")])
    assert "cret" not in str(error.value) and not script.asked


def test_half_a_surrogate_pair_is_sent_as_it_stands():
    script = Script()
    with serving(script) as url:
        (reply,) = endpoint(url).ask_in_order([ChatRequest("a", messages=[{"role": "user", "content": "x\ud800"}])])
    assert isinstance(reply, ChatReply) and script.asked[0]["messages"][0]["content"] == "x\ud800"


@pytest.mark.parametrize("trouble", ["echo", "echo_page", "echo_answer"])
def test_a_key_that_a_server_says_again_is_kept_nowhere(monkeypatch, tmp_path, trouble):
    key = "sk-0123456789/abcdef"
    monkeypatch.setenv("MY_KEY", key)
    cache = ReplyCache(tmp_path / "replies.jsonl")
    with serving(Script(then=trouble)) as url:
        (found,) = endpoint(url, key_from="MY_KEY", tries=1, cache=cache).ask_in_order([ask("a")])
    said = found.reason if isinstance(found, Failure) else found.text
    assert "sk-" not in said + cache.path.read_text() and said.endswith(("Bearer [key]", "Bearer [key]'", "..."))


def test_a_word_that_stands_for_no_key_stays_in_answers(monkeypatch):
    monkeypatch.setenv("MY_KEY", "EMPTY")
    with serving(Script("echo_answer")) as url:
        (found,) = endpoint(url, key_from="MY_KEY").ask_in_order([ask("a")])
    assert found.text == "EMPTY Bearer EMPTY"


def test_an_answer_without_a_text_that_has_ended_is_empty():
    script = Script(then="thought")
    with serving(script) as url:
        (found,) = endpoint(url).ask_in_order([ask("a")])
    assert found.choices == (Choice("", "length"),) and len(script.asked) == 1


def test_a_job_stops_where_nobody_answers_any_more():
    """With the failures of a few it goes on; what came before is given."""
    script, came = Script(*["answer"] * 5, *["fail"] * 3, *["answer"] * 2, then="fail"), []
    with serving(script) as url, pytest.raises(EndpointError, match=r"No server has answered 4 requests in a row; the"):
        for _, outcome in endpoint(url, tries=1, concurrency=1, stop_after=4).ask(ask(str(n)) for n in range(99)):
            came.append(outcome)
    assert len(script.asked) == 14 and [isinstance(one, Failure) for one in came] == [
        *[False] * 5, *[True] * 3, *[False] * 2, *[True] * 3
    ]  # fmt: skip


def test_a_job_stops_where_nobody_has_answered_at_all_but_not_where_all_is_refused():
    with serving(Script(then="fail")) as url, pytest.raises(EndpointError, match=r"2 requests in a row; .*luck"):
        endpoint(url, tries=1, concurrency=1, stop_after=9).ask_in_order([ask("a"), ask("b")])
    with serving(Script("fail", then="refuse")) as url:
        found = endpoint(url, tries=1, concurrency=1, stop_after=1 + 1).ask_in_order([ask("a"), ask("b"), ask("c")])
    assert [one.refused for one in found] == [False, True, True]


def test_a_server_may_fail_for_ever():
    """Its rests have a longest one, and the numbers that they come from stay numbers."""
    servers = Servers(["http://a", "http://b"])
    for _ in range(1200):
        for server in servers.all:
            server.since[threading.get_ident()] = 0.0
            servers.failed(server, None)
            server.rest_until = 0.0
    assert servers.take(threading.Event()) is not None


def test_nobody_listens():
    (found,) = endpoint("http://127.0.0.1:9/v1", tries=2).ask_in_order([ask("a")])
    assert isinstance(found, Failure) and "connection failed" in found.reason


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "gopher://user:secret@there:1"), ("SSL_CERT_FILE", "/nonexistent/ca.pem")]
)
def test_an_environment_that_no_connection_can_be_made_with_is_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    said = []

    def call():
        try:
            endpoint("http://127.0.0.1:9/v1").ask_in_order([ask("a")])
        except EndpointError as error:
            said.append(str(error))

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(30)  # seconds; it once waited for ever
    assert said and name in said[0] and "secret" not in said[0] and "\n" not in said[0]


def test_requests_are_spread_and_a_broken_server_is_left_alone():
    good, slow, broken = Script(delay=0.02), Script(delay=0.2), Script(then="fail")
    with serving(good) as one, serving(slow) as two, serving(broken) as three:
        found = endpoint(one, two, three, concurrency=6, tries=20).ask_in_order([ask(str(n)) for n in range(60)])
    assert [reply.text for reply in found] == [f"re: question {n}" for n in range(60)]
    assert len(good.asked) > 2 * len(slow.asked) > 0


def test_a_server_that_stalls_gets_no_more_while_it_has_not_answered():
    """Long before its requests reach their time limit."""
    good, stalled = Script(delay=0.01), Script(then="stall")
    with serving(good) as one, serving(stalled) as two:
        asking = endpoint(two, one, concurrency=4, timeout=5.0).ask(ask(str(n)) for n in range(99))
        found = [next(asking) for _ in range(90)]
    assert len({request.key for request, _ in found}) == 90 and len(stalled.asked) <= 3


def test_servers_that_are_alike_share_the_requests():
    scripts = [Script(delay=0.02) for _ in range(3)]
    with serving(scripts[0]) as one, serving(scripts[1]) as two, serving(scripts[2]) as three:
        endpoint(one, two, three, concurrency=6).ask_in_order([ask(str(n)) for n in range(90)])
    assert all(15 <= len(script.asked) <= 45 for script in scripts)


def test_a_server_that_refuses_the_key_is_dropped_and_the_other_answers_all():
    good, closed = Script(), Script(then="forbid")
    with serving(good) as one, serving(closed) as two:
        found = endpoint(two, one, concurrency=2).ask_in_order([ask(str(n)) for n in range(10)])
    assert all(isinstance(reply, ChatReply) for reply in found) and len(closed.asked) <= 2


def test_what_is_in_the_cache_is_not_asked_again(tmp_path):
    script = Script()
    with serving(script) as url:
        for _ in range(2):
            with closing(ReplyCache(tmp_path / "replies.jsonl")) as cache:
                found = endpoint(url, cache=cache).ask_in_order([ask("a"), ask("b")])
            assert [reply.text for reply in found] == ["re: question a", "re: question b"]
    assert len(script.asked) == 2
    cache = ReplyCache(tmp_path / "replies.jsonl")
    assert cache.get(ask("a", variant=1), "m") is None and cache.get(ask("a"), "other") is None


def test_two_at_one_cache_are_refused(tmp_path):
    cache = ReplyCache(tmp_path / "replies.jsonl")
    with pytest.raises(CheckpointError, match=rf"replies.jsonl: process {os.getpid()} on .* is writing it"):
        ReplyCache(tmp_path / "replies.jsonl")
    cache.close()
    with pytest.raises(DataError, match="closed already"):
        cache.put(ask("a"), "m", ChatReply((Choice("yes", "stop"),), 1, 1))
    assert len(ReplyCache(tmp_path / "replies.jsonl")) == 0


@pytest.mark.parametrize("then", ["answer", "refuse"])
def test_the_same_question_at_the_same_time_is_asked_once(tmp_path, then):
    """Each of them has its outcome."""
    script = Script(then=then, delay=0.05)
    with serving(script) as url:
        same = [ChatRequest(str(n), messages=[{"role": "user", "content": "one"}]) for n in range(6)]
        asking = endpoint(url, cache=ReplyCache(tmp_path / "replies.jsonl"), concurrency=4)
        found = asking.ask_in_order([*same, ask("a")])
    assert len(script.asked) == 2 and None not in found and len(set(found[:6])) == 1
    assert isinstance(found[0], ChatReply if then == "answer" else Failure)


def test_a_reply_that_finds_no_room_leaves_no_part_in_the_cache(tmp_path, monkeypatch):
    cache, reply = ReplyCache(tmp_path / "replies.jsonl"), ChatReply((Choice("yes", "stop"),), 1, 1)
    cache.put(ask("a"), "m", reply)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
    with pytest.raises(DataError, match="Make room on the disk"):
        cache.put(ask("b"), "m", reply)
    monkeypatch.undo()
    cache.put(ask("c"), "m", reply)
    cache.close()
    again = ReplyCache(tmp_path / "replies.jsonl")
    assert [again.get(ask(key), "m") for key in "abc"] == [reply, None, reply]


def test_a_torn_last_line_of_the_cache_is_asked_again(tmp_path):
    file, script = tmp_path / "replies.jsonl", Script()
    with serving(script) as url:
        with closing(endpoint(url, cache=ReplyCache(file), concurrency=1)) as asking:
            asking.ask_in_order([ask("a"), ask("b")])
        os.truncate(file, file.stat().st_size - 9)
        with closing(endpoint(url, cache=ReplyCache(file))) as asking:
            asking.ask_in_order([ask("a"), ask("b")])
    assert len(script.asked) == 3 and len(ReplyCache(file)) == 2
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_cache_that_is_something_else_is_refused(tmp_path):
    file = tmp_path / "replies.jsonl"
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"replies.jsonl line 1: expected a kept reply"):
        ReplyCache(file)


def test_a_kill_loses_no_reply_that_was_given(tmp_path):
    """kill -9 in the middle; what the process had said it had is in the cache, and is not asked again."""
    script = Script(delay=0.03)
    program = """
import sys
from preftune.endpoint import ChatRequest, Endpoint, ReplyCache
requests = [ChatRequest(str(n), messages=[{"role": "user", "content": f"question {n}"}]) for n in range(60)]
for request, reply in Endpoint(sys.argv[1], "m", concurrency=4, cache=ReplyCache(sys.argv[2])).ask(requests):
    print(request.key, flush=True)
"""
    file = tmp_path / "replies.jsonl"
    with serving(script) as url:
        child = subprocess.Popen([sys.executable, "-c", program, url, file], stdout=subprocess.PIPE, text=True)
        said = [child.stdout.readline().strip() for _ in range(17)]
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = endpoint(url, cache=ReplyCache(file)).ask_in_order([ask(str(n)) for n in range(60)])
    assert [reply.text for reply in found] == [f"re: question {n}" for n in range(60)]
    twice = [body for body, count in script.counts.items() if count > 1]
    assert len(twice) <= 4, "only what was under way at the kill is asked again"
    assert not any(json.dumps(f"question {key}") in body for key in said for body in twice)


class TestBudget:
    PRICES = Prices(prompt=1e6, completion=1e6)  # a token costs 1

    def test_it_holds_at_any_concurrency_and_says_so(self):
        """A reply costs 15; a request could cost at most some 140."""
        budget, script = Budget(400, self.PRICES), Script(delay=0.01)
        replies = []
        with serving(script) as url, pytest.raises(BudgetSpentError, match="raise the budget and start again"):
            for _, reply in endpoint(url, budget=budget, concurrency=16, timeout=30.0).ask(
                ask(str(n), max_tokens=60) for n in range(99)
            ):
                replies.append(reply)
        assert budget.spent == 15 * len(replies) == 15 * len(script.asked) and 250 < budget.spent <= 400

    def test_a_lost_reply_counts_as_the_most(self):
        budget = Budget(10_000, self.PRICES)
        with serving(Script("cut", "busy")) as url:
            endpoint(url, budget=budget).ask_in_order([ask("a", max_tokens=60)])
        assert budget.spent == budget.most(ask("a", max_tokens=60)) + 15

    def test_a_server_that_does_not_count_costs_the_most(self):
        budget = Budget(10_000, self.PRICES)
        with serving(Script(usage=False)) as url:
            endpoint(url, budget=budget).ask_in_order([ask("a", max_tokens=60)])
        assert budget.spent == budget.most(ask("a", max_tokens=60))

    def test_a_request_that_got_no_connection_costs_nothing(self):
        budget = Budget(10_000, self.PRICES)
        with socket.socket() as full:  # it takes no connection: its queue holds one, which is there
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            with socket.create_connection(full.getsockname()), socket.socket() as second:
                second.setblocking(False)
                second.connect_ex(full.getsockname())
                url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
                (found,) = endpoint(url, budget=budget, tries=1, timeout=0.3).ask_in_order([ask("a", max_tokens=60)])
        assert found.reason == "no connection in time" and budget.spent == 0

    def test_what_floats_leave_over_keeps_nobody_waiting(self):
        budget, said = Budget(1e6, Prices(0.0, 1e9 / 7)), []  # large sums leave more than small ones
        reserved = [budget.reserve(ask("a", max_tokens=tokens)) for tokens in (1730, 789, 1553)]
        for one in reserved:
            budget.settle(one, None)

        def reserve():
            with pytest.raises(BudgetSpentError) as error:
                budget.reserve(ask("a", max_tokens=9000))
            said.append(str(error.value))

        thread = threading.Thread(target=reserve, daemon=True)
        thread.start()
        thread.join(5)
        assert said and budget.spent == 0

    def test_it_needs_a_limit_on_the_answer(self):
        with serving(Script()) as url, pytest.raises(RecipeError, match="limit on the tokens"):
            endpoint(url, budget=Budget(1, self.PRICES)).ask_in_order([ask("a")])

    def test_an_estimate_counts_before_anything_is_sent(self):
        found = estimate(
            [ask("a", max_tokens=100, n=2), ChatRequest("b", prompt=[1] * 50, max_tokens=10)], Prices(10, 30)
        )
        assert (found.requests, found.completion_tokens) == (2, 210) and 55 < found.prompt_tokens < 75
        assert found.cost == pytest.approx((found.prompt_tokens * 10 + 210 * 30) / 1e6)
        assert estimate([ask("a")]).completion_tokens is None


def test_an_address_that_is_none_is_refused():
    for address in ("localhost:8000", "http://", "http://here:port/v1", "http://here:99999/v1", "ftp://here/v1"):
        with pytest.raises(RecipeError, match=f"'{address}' is no address of an endpoint"):
            Endpoint(address, "m")


def test_an_address_holds_no_password_and_ends_with_its_path():
    with pytest.raises(RecipeError, match=r"at 'here' has a user or a password in it") as error:
        Endpoint("https://me:pass-7@here/v1", "m")
    assert "pass-7" not in str(error.value)
    with pytest.raises(RecipeError, match=r"'http://here:8000/v1\?\.\.\.': .* Leave out what follows") as error:
        Endpoint("http://here:8000/v1?api-key=pass-7", "m")
    assert "pass-7" not in str(error.value)


def test_who_stops_early_does_not_wait_for_a_silent_server():
    with serving(Script("answer", then="silent")) as url:
        started = time.monotonic()
        for _ in endpoint(url, timeout=30.0, concurrency=4).ask(ask(str(n)) for n in range(9)):
            break
    assert time.monotonic() - started < 1.4
