"""MT-Bench: ratings and winners, and stored judgments with their published averages."""

import pytest

from preftune.errors import DataError
from preftune.evaluation.mt_bench import read_rating, read_winner, score, score_pairs


def rated(value, turn=1, question=81, model="m"):
    return {"question_id": question, "model": model, "turn": turn, "score": value}


@pytest.mark.parametrize(
    ("judgment", "rating"),
    [
        ("Rating: [[7]]", 7), ("[[8.5]] then [[2]]", 8.5), ("Rating: [6]", 6), ("see [1]; Rating: [[9]]", 9),
        ("Rating: 7", -1), ("[[rating]]", -1), ("", -1), ("[[10.]]", 10),
        ("Rating: [[85]]", -1), ("as [12] says, well done", -1), ("[[0]]", 0),
    ],
)  # fmt: skip
def test_the_first_number_in_brackets_is_the_rating(judgment, rating):
    assert read_rating(judgment) == rating


def test_a_winner_is_read_in_the_published_order():
    texts = ("[[A]]", "[[B]]", "[[C]]", "[[B]] and [[A]]", "A is better")
    assert [read_winner(text) for text in texts] == ["A", "B", "tie", "A", "error"]


def test_turns_are_weighted_by_the_ratings_that_they_have():
    rows = [rated(8), rated(6, question=101), rated(4, turn=2), rated(-1, turn=2, question=101)]
    found = score(rows, {81: "writing", 101: "reasoning"})["m"]
    assert (found.score, found.rated, found.unrated) == (6, 3, 1)
    assert found.by_turn == {1: 7, 2: 4}
    assert found.by_category == {"writing": 6, "reasoning": 6}


def test_a_model_wins_only_where_both_orders_agree():
    outcomes = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "tie"), ("model_2", "model_2"),
                ("model_1", "model_1"), ("error", "model_1")]  # fmt: skip
    rows = [{"model_1": "x", "model_2": "y", "g1_winner": one, "g2_winner": two} for one, two in outcomes]
    found = score_pairs(rows)
    assert (found["x"].wins, found["x"].losses, found["x"].ties, found["x"].errors) == (2, 1, 2, 1)
    assert (found["x"].win_rate, found["x"].win_rate_adjusted) == (40, 60)
    assert found["y"].win_rate_adjusted == 40


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: score([rated(11)]), "row 1: expected a score of 1 to 10, or -1 for none, found 11"),
        (lambda: score([rated(None)]), "found None"),
        (lambda: score([rated(-1)]), "none of 1 has a rating"),
        (lambda: score([rated(5)], {82: "writing"}), "question 81 is not among"),
        (lambda: score_pairs([{"model_1": "x", "model_2": "y", "g1_winner": "A", "g2_winner": "B"}]), "found 'A', 'B'"),
    ],
)
def test_wrong_judgments_are_one_line(run, message):
    with pytest.raises(DataError, match=message):
        run()


def test_stored_judgments_read_again_give_their_stored_scores_and_published_averages(real_rows):
    rows = real_rows("mt_bench/judgments/gemini-1.5-flash.jsonl.gz")
    assert len(rows) == 160
    assert [read_rating(row["judgment"]) for row in rows] == [row["score"] for row in rows]
    categories = {row["question_id"]: row["category"] for row in real_rows("mt_bench/question.jsonl")}
    found = score(rows, categories)["gemini-1.5-flash"]
    assert (found.by_turn, found.score) == ({1: 9.075, 2: 8.4625}, 8.76875)
    assert list(found.by_category) == [
        "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
    ]  # fmt: skip
