"""MT-Bench's games: requests in both orders, winners after the swap, and the published counts."""

from __future__ import annotations

import pytest

from preftune.endpoint import ChatReply, Choice, Failure
from preftune.errors import DataError
from preftune.evaluation.mt_bench import score_pairs
from preftune.evaluation.mt_pairs import build_matches, play

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {a}.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "2 + 2?"]},
]
TEMPLATES = [
    {"name": f"pair-{kind}{turn}", "system_prompt": f"Judge {kind}{turn}.", "prompt_template": text}
    for kind, ref in (("v2", ""), ("math-v1", "R {ref_answer_1} "))
    for turn, text in (
        ("", ref + "Q {question} A {answer_a} B {answer_b}"),
        ("-multi-turn", ref + "Q {question_1} {question_2} A {answer_a_1} {answer_a_2} B {answer_b_1} {answer_b_2}"),
    )
]

OTHER = {"choices": [{"turns": ["other", "words"]}]}


def answers(model, numbers=(81, 111)):
    return [{"question_id": n, "model_id": model, "choices": [{"turns": [f"{model}{n}.1", f"{model}{n}.2"]}]}
            for n in numbers]  # fmt: skip


class Judge:
    model, cache = "judge", None

    def __init__(self, say):
        self.say, self.asked = say, []

    def ask(self, requests):
        for request in requests:
            self.asked.append(request)
            text = self.say(request.messages[1]["content"])
            refused = Failure("status 400: maximum context length", 1, refused=True)
            yield request, refused if text is None else ChatReply((Choice(text, "stop"),), 1, 1)


def played(say, questions=QUESTIONS):
    judge = Judge(say)
    return judge, play(judge, build_matches(questions, answers("m"), answers("b")), answers("ref"), TEMPLATES)


def test_each_turn_is_two_games_and_the_prompt_is_that_of_turn_and_category():
    judge, rows = played(lambda text: "[[C]]")
    assert [request.messages[1]["content"] for request in judge.asked] == [
        "Q Write {a}. A m81.1 B b81.1",
        "Q Write {a}. A b81.1 B m81.1",
        "R ref111.1 Q 1 + 1? A m111.1 B b111.1",
        "R ref111.1 Q 1 + 1? A b111.1 B m111.1",
        "Q Write {a}. Shorter. A m81.1 m81.2 B b81.1 b81.2",
        "Q Write {a}. Shorter. A b81.1 b81.2 B m81.1 m81.2",
        "R ref111.1 Q 1 + 1? 2 + 2? A m111.1 m111.2 B b111.1 b111.2",
        "R ref111.1 Q 1 + 1? 2 + 2? A b111.1 b111.2 B m111.1 m111.2",
    ]
    assert judge.asked[0].messages[0] == {"role": "system", "content": "Judge v2."}
    assert judge.asked[0].body("x")["temperature"] == 0 and judge.asked[0].body("x")["max_tokens"] == 2048
    assert [row["judge"] for row in rows] == [["judge", name] for name in (
        "pair-v2", "pair-math-v1", "pair-v2-multi-turn", "pair-math-v1-multi-turn")]  # fmt: skip
    assert [(row["question_id"], row["turn"]) for row in rows] == [(81, 1), (111, 1), (81, 2), (111, 2)]


@pytest.mark.parametrize(
    ("say", "winners", "counts"),
    [
        (lambda text: "[[A]]" if "A m" in text else "[[B]]", ("model_1", "model_1"), (4, 0, 0, 0)),
        (lambda text: "[[A]]" if "A b" in text else "[[B]]", ("model_2", "model_2"), (0, 4, 0, 0)),
        (lambda text: "[[A]]", ("model_1", "model_2"), (0, 0, 4, 0)),  # whoever comes first: no win
        (lambda text: "[[A]]" if "A m" in text else "[[C]]", ("model_1", "tie"), (0, 0, 4, 0)),
    ],
)
def test_a_win_is_one_in_both_orders(say, winners, counts):
    _, rows = played(say)
    assert {(row["g1_winner"], row["g2_winner"]) for row in rows} == {winners}
    games = score_pairs(rows)["m"]
    assert (games.wins, games.losses, games.ties, games.errors) == counts
    assert games.win_rate + games.loss_rate + 100 * games.ties / games.played == pytest.approx(100)


def test_a_judge_that_names_no_winner_is_an_error_that_counts_for_nobody():
    _, rows = played(lambda text: "[[A]]" if "A m" in text and "R " in text else "[[B]]" if "R " in text else "hm")
    games = score_pairs(rows)["m"]
    assert (games.wins, games.errors, games.win_rate) == (2, 2, 100)


def test_a_game_that_is_refused_is_an_error():
    _, rows = played(lambda text: None if text.endswith("A b111.1 B m111.1") else "[[A]]" if "A m" in text else "[[B]]")
    assert [(row["g1_winner"], row["g2_winner"]) for row in rows[:2]] == [("model_1",) * 2, ("model_1", "error")]
    assert rows[1]["g2_judgment"] is None and score_pairs(rows)["m"].errors == 1


def test_the_real_prompts_hold_both_answers_in_their_places(real_rows):
    prompts = {row["name"]: row for row in real_rows("mt_bench/judge_prompts.jsonl")}
    questions = real_rows("mt_bench/question.jsonl")
    numbers = [row["question_id"] for row in questions]
    judge = Judge(lambda text: "[[B]]")
    matches = build_matches(questions, answers("m", numbers), answers("b", numbers))
    rows = play(judge, matches, real_rows("mt_bench/reference_answer_gpt-4.jsonl"), list(prompts.values()))
    assert len(rows) == 160 and len(judge.asked) == 320
    first = questions[0]["turns"][0]
    assert rows[0]["g2_user_prompt"] == (
        f"[User Question]\n{first}\n\n[The Start of Assistant A's Answer]\nb81.1\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\nm81.1\n[The End of Assistant B's Answer]"
    )
    for row in rows:
        for game, order in ((1, "mb"), (2, "bm")):
            text = row[f"g{game}_user_prompt"]
            places = [text.index(f"{name}{row['question_id']}.{row['turn']}") for name in order]
            assert places == sorted(places)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_matches(QUESTIONS, answers("b"), answers("b")), "the baseline itself"),
        (lambda: build_matches(QUESTIONS, answers("m"), answers("b") + answers("c")), "answers of one model, found 2"),
        (lambda: build_matches(QUESTIONS, answers("m"), answers("b", (81,))), "answers of 'b': question 111 has none"),
        (lambda: build_matches(QUESTIONS, answers("m") + [answers("m")[0] | OTHER], answers("b")),
         "answers of 'm': question 81 is answered twice"),
        (lambda: build_matches([QUESTIONS[0] | {"turns": "text"}], answers("m"), answers("b")),
         "question 81: expected two turns, found 'text'"),
        (lambda: build_matches([QUESTIONS[0] | {"turns": ["one"]}], answers("m"), answers("b")), "expected two turns"),
        (lambda: play(Judge(str), build_matches(QUESTIONS, answers("m"), answers("b")), [], TEMPLATES),
         r"references: question 111 \(math\)"),
        (lambda: play(Judge(str), build_matches(QUESTIONS, answers("m"), answers("b")), answers("r"), TEMPLATES[:1]),
         "'pair-math-v1' is missing"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(make, message):
    with pytest.raises(DataError, match=message):
        make()
