"""Arena-Hard: verdicts, both scores, and the published table from stored Bradley-Terry ratings."""

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.evaluation.arena_hard import read_verdict, read_verdict_v2, score
from preftune.evaluation.bradley_terry import ratings, win_percentage
from preftune.evaluation.files import read_table


def row(first, second, question=1, model="m"):
    return {"question_id": question, "model": model, "games": [{"score": first}, {"score": second}]}


@pytest.mark.parametrize("label", ["A>>B", "A>B", "A=B", "B>A", "B>>A"])
def test_every_label_is_read_where_the_judge_says_one_thing(label):
    assert read_verdict(f"so: [[{label}]], that is [[{label}]]") == (label, False)
    assert read_verdict_v2(f"[[A=B]] no: [[{label}]]") == label


def test_v01_reads_no_verdict_from_two_labels_and_asks_again_where_there_is_none():
    assert read_verdict("[[A>B]] or [[B>A]]") == (None, False)
    assert read_verdict("I cannot say. [A>B]") == (None, True)


@pytest.mark.parametrize("label", ["A<B", "A<<B", "B=A", "B<A", "B<<A"])
def test_v2_knows_the_mirrored_labels_lower_case_and_single_brackets(label):
    assert read_verdict_v2(f"my verdict: [[{label.lower()}]]") == label
    assert read_verdict_v2(f"my verdict: [{label}]") == label
    assert read_verdict_v2("none") is None


def test_strong_verdicts_count_three_times_and_ties_half():
    found = score([row("B>>A", "A=B"), row("A>B", None, 2)])["m"]  # won 3, tied 1, lost 1; one null
    assert found.score == pytest.approx(100 * 3.5 / 5)
    assert (found.battles, found.questions, found.nulls) == (5, 2, 1)
    assert found.lower <= found.score <= found.upper


def test_v2_leaves_out_a_question_with_a_null_and_takes_mirrored_labels():
    rows = [row("A<<B", "B<A"), row("A>>B", None, 2)]
    found = score(rows, "v2.0")["m"]
    assert (found.score, found.battles, found.questions, found.nulls) == (100, 4, 1, 1)
    old = score([row("A<B", "A>B")])["m"]
    assert (old.battles, old.nulls) == (1, 1)  # v0.1 gives no weight to a label that it does not know


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(None, None)], "none of 2 verdicts counts"),
        ([row("A wins", "A>B")], "question 1: the verdict 'A wins' is none of"),
        ([{"question_id": 7, "model": "m", "games": [{}]}], "question 7: expected two games, found 1"),
    ],
)
def test_wrong_judgments_are_one_line(rows, message):
    with pytest.raises(DataError, match=message):
        score(rows)


def test_with_one_opponent_the_bradley_terry_win_rate_is_the_share_of_battles():
    shares = {"x": (7, 2, 3), "y": (1, 1, 8)}  # won, tied, lost against the baseline
    battles = [
        {"model_a": "base", "model_b": model, "winner": winner}
        for model, counts in shares.items()
        for winner, count in zip(("model_b", "tie", "model_a"), counts, strict=True)
        for _ in range(count)
    ]
    found = ratings(battles, anchor="base")
    assert found["base"] == pytest.approx(1000)
    for model, (won, tied, lost) in shares.items():
        expected = 100 * (won + tied / 2) / (won + tied + lost)
        assert win_percentage(found[model], found["base"]) == pytest.approx(expected, abs=1e-7)


def test_models_that_no_win_connects_have_no_rating():
    with pytest.raises(DataError, match="infinitely apart"):
        ratings([{"model_a": "a", "model_b": "b", "winner": "model_a"}])
    with pytest.raises(DataError, match="row 1: 'winner' is 'a'"):
        ratings([{"model_a": "a", "model_b": "b", "winner": "a"}])


def test_ratings_of_real_battles_are_the_published_regressions(real_rows):
    linear = pytest.importorskip("sklearn.linear_model")
    battles = real_rows("arena_hard/battles_2024-09-07.jsonl.gz")
    found = ratings(battles)
    models = sorted(found)
    design = np.zeros((len(battles), len(models)))
    for number, battle in enumerate(battles):
        design[number, models.index(battle["model_a"])] = np.log(10)
        design[number, models.index(battle["model_b"])] = -np.log(10)
    twice = np.concatenate([design, design])
    won = np.array([battle["winner"] == "model_a" for battle in battles])
    tied = np.array(["tie" in battle["winner"] for battle in battles])
    labels = np.concatenate([won | tied, won])  # a tie is one win each way
    fitted = linear.LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000).fit(twice, labels)
    expected = 400 * fitted.coef_[0]
    assert [found[model] for model in models] == pytest.approx((expected - expected.mean() + 1000).tolist(), abs=0.01)


def test_the_published_table_comes_from_the_stored_ratings(real_rows, eval_folder):
    stored = {row["model"]: row for row in real_rows("arena_hard/bootstrap_stats_arena_hard_bt.jsonl.gz")}
    table = read_table(eval_folder / "arena_hard/leaderboard_20240731.csv", ("model", "score"))
    published = {row["model"]: float(row["score"]) for row in table}
    base = stored["gpt-4-0314"]["score"]
    shared = [model for model in stored if model in published]
    assert len(shared) == 23
    for model in shared:
        assert win_percentage(stored[model]["score"], base) == pytest.approx(published[model], abs=0.011), model
    for row in stored.values():
        assert np.percentile(row["results"], (2.5, 97.5)) == pytest.approx([row["lower"], row["upper"]], abs=1e-9)
