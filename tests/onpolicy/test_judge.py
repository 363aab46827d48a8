"""Judges over a local server: verdicts, both orders, failures with their reasons, and a budget."""

from __future__ import annotations

import json

import pytest

from preftune.cli.main import main
from preftune.onpolicy.scorers.judge import _pairwise_text
from tests.endpoint import server
from tests.endpoint.server import Script, serving

ROWS = [
    {"prompt": "colour?", "responses": ["red", "a very dark green"]},
    {"prompt": "river?", "responses": ["Po", "{b} Amazon", "Nile"]},
]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def between(text, tag):
    return text.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def rated(body):
    """The length of the answer, but nonsense for one of them."""
    text = body["messages"][-1]["content"].split("[answer]\n")[1].split("\n[end of")[0]
    return {"Po": "I cannot say.", "Nile": "So be it: [[eleven]]"}.get(
        text, f"Such as [[1]]? No. [[{min(len(text), 10)}]]"
    )


def compared(body):
    """The longer answer wins; B before A in reading says B, so a place would show."""
    text = body["messages"][-1]["content"]
    a, b = between(text, "answer_A"), between(text, "answer_B")
    return "[[C]]" if len(a) == len(b) else f"Well. [[{'A' if len(a) > len(b) else 'B'}]]"


@pytest.fixture
def annotate(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def call(address, *words, output="out.jsonl"):
        base = [
            "annotate",
            str(file),
            "--output",
            str(tmp_path / output),
            "--endpoint",
            address,
            "--judge-model",
            "big",
        ]
        return main([*base, *words]), tmp_path / output

    return call


def test_ratings_are_read_and_failures_have_their_reason(annotate, monkeypatch, capsys):
    monkeypatch.setattr(server, "answer_to", rated)
    script = Script()
    with serving(script) as address:
        code, output = annotate(address, "--price-in", "1", "--price-out", "2")
    said = capsys.readouterr()
    assert code == 0 and "5 requests, about " in said.err and "2 without a score" in said.out
    first, second = read(output)
    assert first == {**ROWS[0], "scores": [3, 10]}
    assert second["scores"] == [None, 10, None]
    assert "no verdict in double brackets, it ends with 'I cannot say.'" in second["score_failures"][0]
    assert "'eleven', expected a number from 1 to 10" in second["score_failures"][2]
    assert second["score_failures"][1] is None
    assert script.asked[0]["temperature"] == 0 and script.asked[0]["model"] == "big"


def test_pairs_are_judged_in_both_orders(annotate, monkeypatch):
    monkeypatch.setattr(server, "answer_to", compared)
    script = Script()
    with serving(script) as address:
        code, output = annotate(address, "--judge", "pairwise")
    assert code == 0 and [row["scores"] for row in read(output)] == [[0, 1], [0, 1, 0.5]]
    shown = [body["messages"][-1]["content"] for body in script.asked]
    orders = {(between(text, "answer_A"), between(text, "answer_B")) for text in shown}
    assert len(orders) == len(shown) == 2 + 6 and all((b, a) in orders for a, b in orders)


def test_the_same_question_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[7]]")
    file, script = tmp_path / "same.jsonl", Script()
    file.write_text(json.dumps({"prompt": "p", "responses": ["a", "b", "a"]}) + "\n")
    with serving(script) as address:
        words = ["--output", str(tmp_path / "out.jsonl"), "--endpoint", address, "--judge-model", "big"]
        assert main(["annotate", str(file), *words]) == 0
    assert len(script.asked) == 2 and read(tmp_path / "out.jsonl")[0]["scores"] == [7, 7, 7]


def test_a_judge_that_sees_only_the_place_gives_no_preference(annotate, monkeypatch):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[A]]")
    with serving(Script()) as address:
        _, output = annotate(address, "--judge", "pairwise")
    assert [row["scores"] for row in read(output)] == [[0.5, 0.5], [0.5, 0.5, 0.5]]


def test_a_request_that_is_refused_is_a_failure_and_the_rest_goes_on(annotate, monkeypatch):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[7]]")
    with serving(Script("fail", "refuse")) as address:
        code, output = annotate(address, "--concurrency", "1")
    rows = read(output)
    assert (
        code == 0
        and [row["scores"] for row in rows].count([7, 7]) + [row["scores"] for row in rows].count([7, 7, 7]) == 1
    )
    failures = [reason for row in rows for reason in row.get("score_failures", []) if reason]
    assert failures == ["the request failed: status 400: too long"]


def test_a_budget_stops_the_job_and_it_goes_on_without_asking_twice(annotate, monkeypatch, capsys):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[7]]")
    prices = ["--price-in", "0", "--price-out", "1000", "--judge-tokens", "100", "--concurrency", "1"]
    script = Script()
    with serving(script) as address:
        code, output = annotate(address, *prices, "--budget", "0.111")
        assert code == 1 and "The budget is spent" in capsys.readouterr().err and not output.exists()
        paid = len(script.asked)
        assert 0 < paid < 5
        code, output = annotate(address, *prices, "--budget", "10")
    assert code == 0 and len(script.asked) == 5 and len(read(output)) == 2


def test_a_judge_that_is_down_stops_the_job(annotate, monkeypatch, capsys):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[7]]")
    script = Script(then="fail")
    with serving(script) as address:
        code, output = annotate(address, "--tries", "1")
        assert code == 1 and "No server has answered" in capsys.readouterr().err and not output.exists()
        script.then = "answer"
        code, output = annotate(address)
    assert code == 0 and [row["scores"] for row in read(output)] == [[7, 7], [7, 7, 7]]


def test_each_of_several_processes_has_its_part_of_the_budget(annotate, monkeypatch, capsys):
    monkeypatch.setattr(server, "answer_to", lambda body: "[[7]]")
    prices = ["--price-in", "0", "--price-out", "1000", "--judge-tokens", "100", "--concurrency", "1"]
    script = Script()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with serving(script) as address:
        code, _ = annotate(address, *prices, "--chunk", "2", "--budget", "0.222")
    said = capsys.readouterr().err
    assert code == 1 and "0.0" in said and "of 0.111" in said and 0 < len(script.asked) < 5
    assert "Each of the 2 processes may spend 0.111 of the budget of 0.222" in said


def test_an_answer_that_holds_a_placeholder_is_shown_as_it_is():
    assert "<answer_A>\n{prompt} {b}\n</answer_A>" in _pairwise_text("{a}", "{prompt} {b}", "c")
