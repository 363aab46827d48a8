"""Requests to the judge, byte for byte, and judging by servers that misbehave and by a reward model."""

import json

import pytest

from preftune.cli.main import main
from preftune.endpoint import (
    Budget,
    BudgetSpentError,
    ChatReply,
    Choice,
    Endpoint,
    EndpointError,
    Failure,
    Prices,
    ReplyCache,
)
from preftune.errors import DataError
from preftune.evaluation.alpaca_eval import is_switched, win_rate
from preftune.evaluation.alpaca_judge import annotate, build_requests, load_template, pair_up, render
from preftune.evaluation.arena_hard import score as score_arena
from preftune.evaluation.arena_judge import GO_ON, build_matches, load_judge_prompt
from preftune.evaluation.arena_judge import judge as judge_arena
from preftune.evaluation.files import read_rows, write_rows
from preftune.evaluation.judge import ask_all, open_endpoint
from preftune.evaluation.mt_bench import score as score_mt
from preftune.evaluation.mt_judge import build_judgings, rate
from tests.endpoint.server import Script, serving

TEMPLATE = (
    "<|im_start|>system\nYou judge.\n<|im_end|>\n<|im_start|>user\n"
    'Q: """{instruction}"""\nm: """{output_1}"""\nM: """{output_2}"""\n<|im_end|>'
)
INSTRUCTIONS = [f"question {n}" for n in range(12)]
BASELINE = [{"instruction": text, "output": f"base {text}", "generator": "b"} for text in INSTRUCTIONS]
OUTPUTS = [{"instruction": text, "output": f"mine {text}", "generator": "m"} for text in reversed(INSTRUCTIONS)]


@pytest.fixture
def template(tmp_path):
    (tmp_path / "clf.txt").write_text(TEMPLATE)
    return load_template(tmp_path / "clf.txt")


def endpoint_to(url, **more):
    return Endpoint([url], "judge", patience=0.01, concurrency=2, **more)


def test_fields_are_put_in_by_turn_and_at_their_first_place(template):
    row = {"instruction": "say {output_2}", "output_1": "one", "output_2": "two"}
    system, user = render(template, row)
    assert system == {"role": "system", "content": "You judge."}
    assert user["content"] == 'Q: """say two"""\nm: """one"""\nM: """{output_2}"""'  # as the package does it


def test_a_request_asks_for_one_token_with_log_probs_in_the_order_of_the_instruction(template):
    pairs = pair_up(OUTPUTS, BASELINE)
    requests = build_requests(pairs, template)
    body = requests[0].body("gpt")
    assert {key: body[key] for key in ("max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    for row, request in zip(pairs, requests, strict=True):
        first = request.messages[1]["content"].split('m: """')[1]
        assert first.startswith("mine" if is_switched(row["instruction"]) else "base")


def test_outputs_are_joined_by_instruction_and_a_missing_one_is_named():
    assert [row["output_2"] for row in pair_up(OUTPUTS, BASELINE)] == [f"mine {text}" for text in INSTRUCTIONS]
    with pytest.raises(DataError, match=r"1 of 12 instructions of the baseline have no output.*'question 11'"):
        pair_up(OUTPUTS[1:], BASELINE)
    with pytest.raises(DataError, match="row 13: a second output"):
        pair_up([*OUTPUTS, OUTPUTS[0] | {"output": "x"}], BASELINE)


def test_a_template_that_lacks_a_field_is_refused(tmp_path):
    (tmp_path / "bad.txt").write_text(TEMPLATE.replace("{output_1}", ""))
    with pytest.raises(DataError, match="once each"):
        load_template(tmp_path / "bad.txt")


def test_a_server_that_fails_loses_nothing_and_is_not_asked_twice(template, tmp_path):
    pairs = pair_up(OUTPUTS, BASELINE)
    with serving(Script(*["answer"] * 5, "fail", "fail")) as url:
        cache = ReplyCache(tmp_path / "replies.jsonl")
        with pytest.raises(EndpointError, match=r"2 of 12 requests got no reply.*What came is kept"):
            annotate(endpoint_to(url, tries=1, cache=cache), pairs, template)
        cache.close()
    script = Script("fail", "busy")
    with serving(script) as url:
        rows = annotate(endpoint_to(url, cache=ReplyCache(tmp_path / "replies.jsonl")), pairs, template)
    assert len(script.asked) == 2 + 2
    assert [row["instruction"] for row in rows] == INSTRUCTIONS
    assert {row["annotator"] for row in rows} == {"alpaca_eval_by_text:judge"}
    assert all(row["preference"] is None for row in rows)  # the mock names neither m nor M


def test_a_judge_that_nobody_hears_from_stops_the_judging(template, tmp_path):
    requests = build_requests(pair_up(OUTPUTS, BASELINE), template)[:2]
    with serving(Script(then="fail")) as url:
        judge = open_endpoint([url], "judge", tmp_path / "out.json", tries=1, concurrency=1)
        with pytest.raises(EndpointError, match="No server has answered 2 requests in a row"):
            ask_all(judge, requests)
        judge.close()


def test_what_a_judge_refuses_is_null_and_the_rest_is_written(template, caplog):
    pairs = pair_up(OUTPUTS, BASELINE)
    with serving(Script("refuse", says=lambda body: "m")) as url:
        rows = annotate(endpoint_to(url), pairs, template)
    assert [row["preference"] for row in rows].count(None) == 1
    assert {row["annotator"] for row in rows} == {"alpaca_eval_by_text:judge"} and win_rate(rows).n_total == 11
    assert "1 of 12 requests are refused and have no verdict; row" in caplog.text
    with serving(Script(then="refuse")) as url, pytest.raises(EndpointError, match=r"refuses all of 12 req.*too l"):
        annotate(endpoint_to(url), pairs, template)


def test_a_judge_without_credit_stops_the_judging(template):
    with serving(Script("answer", then="no_credit")) as url, pytest.raises(EndpointError, match="no credit left"):
        annotate(endpoint_to(url), pair_up(OUTPUTS, BASELINE), template)


def test_the_cost_cap_holds(template, tmp_path):
    pairs, prices = pair_up(OUTPUTS, BASELINE), Prices(10.0, 10.0)
    script = Script()
    with serving(script) as url:
        budget = Budget(0.002, prices)
        with pytest.raises(BudgetSpentError):
            annotate(endpoint_to(url, budget=budget), pairs, template, (10.0, 10.0))
    assert budget.spent <= 0.002 and 0 < len(script.asked) < 12


def test_equal_outputs_are_a_tie_that_no_judge_is_asked_about(template):
    """So does the package: in the stored annotations each pair of equal outputs has 1.5, and no completion."""
    outputs = [row | {"output": f"base {row['instruction']}"} if n % 3 == 0 else row for n, row in enumerate(OUTPUTS)]
    script = Script()
    with serving(script) as url:
        rows = annotate(endpoint_to(url), pair_up(outputs, BASELINE), template)
    assert len(script.asked) == 8
    assert [row["preference"] for row in rows].count(1.5) == 4
    assert all((row["preference"] == 1.5) == (row["output_1"] == row["output_2"]) for row in rows)
    assert {row["annotator"] for row in rows} == {"alpaca_eval_by_text:judge"}


def test_stored_annotations_hold_a_tie_for_equal_outputs(real_rows):
    rows = real_rows("alpaca_eval2/annotations/phi-2.json.gz")
    same = [row for row in rows if row["output_1"] == row["output_2"]]
    assert [(row["preference"], row.get("raw_completion")) for row in same] == [(1.5, None)] * 3


def test_a_judge_with_log_probs_gives_weighted_preferences_for_the_model(template):
    class Fake:
        model, cache = "gpt-4-1106-preview", None

        def ask(self, requests):
            for request in requests:
                first = request.messages[1]["content"].split('m: """')[1].startswith("mine")
                top = [
                    {"token": "m" if first else "M", "logprob": -0.1},
                    {"token": "M" if first else "m", "logprob": -3.0},
                ]
                yield request, ChatReply((Choice("m", "length", {"content": [{"top_logprobs": top}]}),), 1, 1)

    rows = annotate(Fake(), pair_up(OUTPUTS, BASELINE), template)
    assert {row["annotator"] for row in rows} == {"weighted_alpaca_eval_gpt4_turbo"}
    assert win_rate(rows).win_rate == pytest.approx(100 / (1 + 2.718281828459045**-2.9))


def test_an_empty_reply_without_log_probs_is_no_other_annotator(template):
    class Fake:
        model, cache = "gpt-4-1106-preview", None

        def ask(self, requests):
            for number, request in enumerate(requests):
                logprobs = {"content": [{"top_logprobs": [{"token": "m", "logprob": -0.1}]}]} if number else None
                yield request, ChatReply((Choice("m" if number else "", "stop", logprobs),), 1, 1)

    outputs = [row | {"output": f"base {row['instruction']}"} if n == 5 else row for n, row in enumerate(OUTPUTS)]
    rows = annotate(Fake(), pair_up(outputs, BASELINE), template)
    assert [row["preference"] for row in rows].count(None) == 1
    assert {row["annotator"] for row in rows} == {"weighted_alpaca_eval_gpt4_turbo"}


def test_mt_bench_requests_are_the_stored_ones_byte_for_byte(real_rows):
    stored = real_rows("mt_bench/judgments/gemini-1.5-flash.jsonl.gz")
    questions, prompts = real_rows("mt_bench/question.jsonl"), real_rows("mt_bench/judge_prompts.jsonl")
    references = real_rows("mt_bench/reference_answer_gpt-4.jsonl")
    answers = [answer_of(row, questions) for row in stored if row["turn"] == 2]
    built = build_judgings(questions, answers, references, prompts)
    expected = {(row["question_id"], row["turn"]): row for row in stored}
    assert len(built) == 160
    for judging in built:
        row = expected[judging.row["question_id"], judging.row["turn"]]
        assert judging.row["user_prompt"] == row["user_prompt"]
        assert judging.row["judge"][1] == row["judge"][1]


def answer_of(row, questions):
    """The two answers inside of a stored request of the second turn."""
    asked = next(q["turns"] for q in questions if q["question_id"] == row["question_id"])
    talk = row["user_prompt"].split("<|The Start of Assistant A's Conversation with User|>\n\n")[1]
    rest = talk.split(f"### User:\n{asked[0]}\n\n### Assistant A:\n", 1)[1]
    first, rest = rest.split(f"\n\n### User:\n{asked[1]}\n\n### Assistant A:\n", 1)
    second = rest.rsplit("\n\n<|The End of Assistant A's Conversation with User|>", 1)[0]
    return {"question_id": row["question_id"], "model_id": row["model"], "choices": [{"turns": [first, second]}]}


def one_question():
    prompts = [{"name": f"single-v1{turn}", "system_prompt": "judge", "prompt_template": "{answer_1}{answer_2}"}
               for turn in ("", "-multi-turn")]  # fmt: skip
    questions = [{"question_id": 1, "category": "writing", "turns": ["a", "b"]}]
    answers = [{"question_id": 1, "model_id": "m", "choices": [{"turns": ["x", "y"]}]}]
    return build_judgings(questions, answers, [], prompts)


def test_a_rating_off_the_scale_is_none_and_can_be_scored(caplog):
    texts = iter(("Rating: [[85]]", "Rating: [[8.5]]"))
    rows = rate(Judge(lambda request: next(texts)), one_question())
    assert [row["score"] for row in rows] == [-1, 8.5] and "1 of 2 judgments hold no rating" in caplog.text
    assert (score_mt(rows)["m"].score, score_mt(rows)["m"].unrated) == (8.5, 1)


def test_a_rating_that_is_refused_is_none(caplog):
    texts = iter((None, "[[4]]"))
    rows = rate(Judge(lambda request: next(texts)), one_question())
    assert [(row["score"], row["judgment"]) for row in rows] == [(-1, None), (4, "[[4]]")]
    assert score_mt(rows)["m"].score == 4 and "1 of 2 requests are refused" in caplog.text


def test_mt_bench_ratings_are_read_and_a_missing_reference_is_named():
    prompts = [
        {"name": f"single-{kind}v1{turn}", "system_prompt": "judge", "prompt_template": text}
        for kind, ref in (("", ""), ("math-", "{ref_answer_1} "))
        for turn, text in (("", ref + "{question} {answer} [[3]]"), ("-multi-turn", ref + "{question_2} {answer_2} no"))
    ]
    questions = [{"question_id": 1, "category": "math", "turns": ["1+1", "2+2"]}]
    answers = [{"question_id": 1, "model_id": "m", "choices": [{"turns": ["{2}", "4"]}]}]
    with pytest.raises(DataError, match=r"references: question 1 .math. has none"):
        build_judgings(questions, answers, [], prompts)
    built = build_judgings(questions, answers, [answers[0] | {"model_id": "r"}], prompts)
    with serving(Script()) as url:
        rows = rate(endpoint_to(url), built)
    assert [(row["turn"], row["score"]) for row in rows] == [(1, 3), (2, -1)]  # the mock repeats the request
    assert rows[0]["judge"] == ["judge", "single-math-v1"]
    assert rows[0]["user_prompt"] == "{2} 1+1 {2} [[3]]"
    json.dumps(rows)


class Judge:
    """Says `say(request)`, and refuses where that is None; `asked` are the requests."""

    model, cache = "judge", None

    def __init__(self, say):
        self.say, self.asked = say, []

    def ask(self, requests):
        for request in requests:
            self.asked.append(request)
            text = self.say(request)
            refused = Failure("status 400: maximum context length", 1, refused=True)
            yield request, refused if text is None else ChatReply((Choice(text, "stop"),), 1, 1)


def arena_answers(model, **answers):
    return [
        {"uid": uid, "model": model, "messages": [{"role": "user", "content": f"q {uid}"},
                                                  {"role": "assistant", "content": {"answer": text}}]}
        for uid, text in answers.items()
    ]  # fmt: skip


@pytest.fixture
def arena_prompt(tmp_path):
    (tmp_path / "judge.yaml").write_text(
        'system_prompt: "Judge."\nprompt_template: ["Q {question_1} A {answer_1} B {answer_2}"]\n'
    )
    return load_judge_prompt(tmp_path / "judge.yaml")


def test_arena_hard_plays_two_games_in_both_orders(arena_prompt):
    mine, base = arena_answers("m", u="mine {answer_2}", v="other"), arena_answers("b", u="base", v="base")
    judge = Judge(lambda request: "[[B>>A]]" if "B mine" in request.messages[1]["content"] else "[[A=B]]")
    rows = judge_arena(judge, build_matches(mine, base), arena_prompt)
    assert [request.messages[1]["content"] for request in judge.asked[:2]] == [
        "Q q u A base B mine {answer_2}", "Q q u A mine {answer_2} B base",
    ]  # fmt: skip
    assert judge.asked[0].body("x")["temperature"] == 0 and judge.asked[0].body("x")["max_tokens"] == 4096
    assert [[game["score"] for game in row["games"]] for row in rows] == [["B>>A", "A=B"], ["A=B", "A=B"]]
    assert score_arena(rows)["m"].score == pytest.approx(100 * (3 + 1.5) / 6)


def test_a_v01_judge_without_a_label_is_asked_once_to_go_on(arena_prompt):
    mine, base = arena_answers("m", u="mine"), arena_answers("b", u="base")

    def say(request):
        if len(request.messages) == 4:
            return "so [[A>B]]"
        return "hm" if "B mine" in request.messages[1]["content"] else "[[A>B]] [[B>A]]"

    judge = Judge(say)
    first, second = judge_arena(judge, build_matches(mine, base), arena_prompt)[0]["games"]
    assert (first["score"], first["judgment"]) == ("A>B", "hm\nso [[A>B]]")
    assert second["score"] is None and len(judge.asked) == 3
    assert judge.asked[2].messages[2:] == ({"role": "assistant", "content": "hm"},
                                           {"role": "user", "content": GO_ON})  # fmt: skip
    again = Judge(say)
    games = judge_arena(again, build_matches(mine, base), arena_prompt, "v2.0")[0]["games"]
    assert [game["score"] for game in games] == [None, "B>A"] and len(again.asked) == 2


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_a_label_that_is_none_is_a_null_verdict_that_can_be_scored(arena_prompt, version):
    mine, base = arena_answers("m", u="mine", v="mine"), arena_answers("b", u="base", v="base")
    judge = Judge(lambda request: "[[A]]" if "q u A mine" in request.messages[1]["content"] else "[[B>A]]")
    rows = judge_arena(judge, build_matches(mine, base), arena_prompt, version)
    assert [[game["score"] for game in row["games"]] for row in rows] == [["B>A", None], ["B>A", "B>A"]]
    assert len(judge.asked) == 4  # there was a label, so none is asked to go on
    assert score_arena(rows, version)["m"].nulls == 1
    rows[0]["games"][1]["score"] = "A"  # what arena-hard-auto writes
    assert score_arena(rows, version)["m"].nulls == 1


def test_a_game_that_is_refused_is_a_null_verdict(arena_prompt, caplog):
    mine, base = arena_answers("m", u="mine", v="mine"), arena_answers("b", u="base", v="base")

    def say(request):
        if len(request.messages) == 4:
            return None  # the judgment and the wish to go on do not fit
        asked = request.messages[1]["content"]
        return None if "q u A mine" in asked else "hm" if "q v A mine" in asked else "[[A=B]]"

    rows = judge_arena(Judge(say), build_matches(mine, base), arena_prompt)
    assert [[game["score"] for game in row["games"]] for row in rows] == [["A=B", None], ["A=B", None]]
    assert [row["games"][1]["judgment"] for row in rows] == [None, "hm"]
    assert score_arena(rows)["m"].nulls == 2 and "2 of 4 verdicts are null" in caplog.text


def test_arena_hard_answers_that_do_not_fit_are_one_line(arena_prompt, tmp_path):
    with pytest.raises(DataError, match="1 of 2 questions have none, the first is v"):
        build_matches(arena_answers("m", u="x"), arena_answers("b", u="x", v="y"))
    with pytest.raises(DataError, match="row 2: expected one answer to each uid"):
        build_matches(arena_answers("m", u="x") * 2, arena_answers("b", u="x"))
    (tmp_path / "bad.yaml").write_text("system_prompt: x\nprompt_template: '{question_1}'\n")
    with pytest.raises(DataError, match="expected a 'prompt_template' with"):
        load_judge_prompt(tmp_path / "bad.yaml")


CATEGORIES = """
hard_prompt: {baseline: b, system_prompt: Solve it first.}
creative_writing: {baseline: c, system_prompt: Judge alone.}
coding: {baseline: b, system_prompt: Unused.}
"""
KINDS = {"u": "hard_prompt", "v": "creative_writing", "w": "hard_prompt"}


def v20_files(folder, **more):
    """The command that judges by categories, with a prompt file of the newer form, which has no system prompt."""
    (folder / "judge.yaml").write_text("prompt_template: Q {QUESTION} A {ANSWER_A} B {ANSWER_B}")
    texts = {"u": "1", "v": "2", "w": "3"}
    rows = {
        "answers": arena_answers("m", **texts),
        "base": arena_answers("b", **texts),
        "other": arena_answers("c", **texts),
        "questions": [{"uid": uid, "category": kind, "prompt": f"q {uid}"} for uid, kind in KINDS.items()],
    } | more
    (folder / "categories.yaml").write_text(rows.pop("categories", CATEGORIES))
    for name, own in rows.items():
        write_rows(folder / f"{name}.jsonl", own)
    given = {"--questions": "questions.jsonl", "--categories": "categories.yaml", "--prompts": "judge.yaml",
             "--output": "judgments.jsonl"}  # fmt: skip
    return ["eval", "arena-hard", "judge", str(folder / "answers.jsonl"), "--version", "v2.0", "--judge", "judge",
            *(word for flag, name in given.items() for word in (flag, str(folder / name))),
            "--baseline", str(folder / "base.jsonl"), str(folder / "other.jsonl")]  # fmt: skip


def test_v20_asks_by_category_against_its_baseline_and_is_scored_by_category(tmp_path, capsys):
    script = Script(says=lambda body: "[[A>B]]" if "q v" in body["messages"][1]["content"] else "[[A=B]]")
    with serving(script) as url:
        assert main([*v20_files(tmp_path), "--endpoint", url]) == 0
    told = {body["messages"][1]["content"][:5]: body["messages"][0]["content"] for body in script.asked}
    assert told == {"Q q u": "Solve it first.", "Q q v": "Judge alone.", "Q q w": "Solve it first."}
    rows = read_rows(tmp_path / "judgments.jsonl")
    assert [(row["uid"], row["category"], row["baseline"]) for row in rows] == [
        ("u", "hard_prompt", "b"), ("v", "creative_writing", "c"), ("w", "hard_prompt", "b"),
    ]  # fmt: skip
    capsys.readouterr()
    score = ["eval", "arena-hard", "score", str(tmp_path / "judgments.jsonl"), "--version", "v2.0", "--json"]
    assert main(score) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["category"], row["questions"]) for row in found] == [("hard_prompt", 2), ("creative_writing", 1)]
    write_rows(tmp_path / "judgments.jsonl", [row | {"category": None} for row in rows])
    assert main(score) == 2
    assert "judgments without a 'category'" in capsys.readouterr().err


def test_one_category_alone_can_be_judged_and_v01_by_its_own_too(tmp_path, caplog):
    words = v20_files(tmp_path, categories="hard_prompt: {baseline: b, system_prompt: x}")
    with serving(Script()) as url:
        assert main([*words, "--endpoint", url]) == 0
        assert "1 of 3 questions are of no category that is given (creative_writing)" in caplog.text
        assert [row["uid"] for row in read_rows(tmp_path / "judgments.jsonl")] == ["u", "w"]
        assert main([*words, "--endpoint", url, "--version", "v0.1"]) == 0
    assert [row["question_id"] for row in read_rows(tmp_path / "judgments.jsonl")] == ["u", "w"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"categories": "hard_prompt: x"}, "'hard_prompt': expected 'baseline', a model's name"),
        ({"categories": "[1]"}, "by category, found none"),
        ({"categories": "coding: {baseline: b}"}, "expected some of coding, found hard_prompt, creative_writing"),
        ({"categories": "hard_prompt: {baseline: b}"}, "question u: the judge has no system prompt for hard_prompt"),
        ({"categories": "hard_prompt: {baseline: o3, system_prompt: x}"}, "expected answers of 'o3'"),
        ({"other": arena_answers("c", u="1")}, "baseline c: 1 of 1 questions have none, the first is v"),
        ({"answers": arena_answers("m", u="1")}, "answers: 2 of 3 questions have none, the first is v"),
        ({"questions": [{"uid": "u", "category": "hard_prompt"}] * 2}, "uid 'u' is there twice"),
    ],
)
def test_categories_that_do_not_fit_are_one_line(tmp_path, capsys, files, message):
    assert main([*v20_files(tmp_path, **files), "--endpoint", "http://x.test/v1"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said.splitlines()[-1]


def test_real_arena_hard_answers_are_put_into_requests(arena_prompt, real_rows):
    mine = real_rows("arena_hard/v0.1_answers/gpt-3.5-turbo-0125.jsonl.gz")
    base = real_rows("arena_hard/v0.1_answers/gpt-4-0314.jsonl.gz")
    judge = Judge(lambda request: "[[A>B]]")
    rows = judge_arena(judge, build_matches(mine, base), arena_prompt)
    assert (len(rows), len(judge.asked)) == (500, 1000)
    assert {(row["model"], row["baseline"]) for row in rows} == {("gpt-3.5-turbo-0125", "gpt-4-0314")}
    assert score_arena(rows)["gpt-3.5-turbo-0125"].score == 50
