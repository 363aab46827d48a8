"""The plain figures of AlpacaEval 2, by hand and against the leaderboard."""

import math

import pytest

from preftune.errors import DataError
from preftune.evaluation.alpaca_eval import (
    average_length,
    is_switched,
    preferences,
    read_preference,
    read_preference_text,
    unswitched,
    win_rate,
)
from preftune.evaluation.files import read_rows, read_table, write_rows

ANNOTATED = {
    "FuseChat-Gemma-2-9B-Instruct": "FuseChat-Gemma-2-9B-Instruct",
    "OpenHermes-2.5-Mistral-7B": "OpenHermes-2.5-Mistral-7B",
    "phi-2": "phi-2",
    "vicuna-7b-v1.5": "vicuna-7b-v1.5.with_glm_preference",
}


def choice(**logps):
    top = [{"token": token, "logprob": logp} for token, logp in logps.items()]
    return {"logprobs": {"content": [{"top_logprobs": top}]}}


@pytest.fixture(scope="session")
def leaderboard(eval_folder):
    return {row[""]: row for row in read_table(eval_folder / "alpaca_eval2/leaderboard.csv", ("win_rate",))}


def test_the_plain_figures_of_four_rows_are_those_worked_out_by_hand():
    rows = [{"preference": value} for value in (2, 1.25, 1.5, 0, None)]
    figures = win_rate(rows)
    assert figures.win_rate == pytest.approx(100 * (1 + 0.25 + 0.5 + 0.5) / 4)
    assert (figures.n_wins, figures.n_wins_base, figures.n_draws, figures.n_total) == (1, 1, 2, 4)
    assert figures.discrete_win_rate == 50
    assert figures.standard_error == pytest.approx(
        100 * math.sqrt(0.296875 / 3) / 2
    )  # deviations .4375 -.3125 2x-.0625


def test_the_log_prob_parser_takes_the_two_answers_alone():
    assert read_preference(choice(m=math.log(0.3), M=math.log(0.1), The=-0.5)) == pytest.approx(1.25)
    assert read_preference(choice(M=-0.1)) == 2
    assert read_preference(choice(m=-700.0)) == 1
    for unreadable in (choice(The=-0.1), {"logprobs": None}, {"logprobs": {"content": []}}, {}, None, choice(m=None)):
        assert read_preference(unreadable) is None
    assert [read_preference_text(text) for text in ("m", " M\n", "Model m", "")] == [1, 2, None, None]
    assert (unswitched(1.2, True), unswitched(1.2, False), unswitched(None, True)) == (1.8, 1.2, None)


@pytest.mark.parametrize("value", [0.5, 2.1, "1", True, float("inf")])
def test_a_preference_outside_of_its_range_is_named_with_its_row(value):
    with pytest.raises(DataError, match="mine row 2: expected a preference of 1"):
        preferences([{"preference": 1}, {"preference": value}], "mine")


def test_rows_without_any_judgment_are_refused():
    with pytest.raises(DataError, match="none of the 2 rows has a preference"):
        win_rate([{"preference": None}, {"preference": float("nan")}])


def test_lengths_are_cut_to_a_whole_number_and_must_be_of_texts():
    assert average_length([{"output": "abc"}, {"output": "äöüß"}]) == 3
    with pytest.raises(DataError, match="row 1: expected 'output' to be a text, found None"):
        average_length([{"output": None}])


@pytest.mark.parametrize("model", ANNOTATED)
def test_win_rate_standard_error_and_discrete_win_rate_are_the_leaderboards(model, real_rows, leaderboard):
    figures = win_rate(real_rows(f"alpaca_eval2/annotations/{ANNOTATED[model]}.json.gz"))
    published = leaderboard[model]
    for name in ("win_rate", "standard_error", "discrete_win_rate"):
        assert getattr(figures, name) == pytest.approx(float(published[name]), abs=1e-6), name
    for name in ("n_wins", "n_wins_base", "n_draws", "n_total"):
        assert getattr(figures, name) == int(float(published[name])), name


def test_average_lengths_are_the_leaderboards(real_rows, leaderboard):
    for model in ("gemma-2-9b-it-SimPO", "gpt4_1106_preview", "zephyr-7b-beta"):
        found = average_length(real_rows(f"alpaca_eval2/model_outputs/{model}.json.gz"))
        assert found == int(leaderboard[model]["avg_length"]), model


def test_order_rule_and_parser_give_the_stored_preference_of_every_stored_completion(real_rows):
    rows = [row for row in real_rows("alpaca_eval2/annotations/vicuna-7b-v1.5.with_glm_preference.json.gz")
            if row["raw_completion"]]  # fmt: skip
    orders = [is_switched(row["instruction"]) for row in rows]
    assert (len(rows), sum(orders)) == (802, 404)
    for row, switched in zip(rows, orders, strict=True):
        found = unswitched(read_preference(row["raw_completion"]), switched)
        assert found == pytest.approx(row["preference"], abs=5e-11)


def test_official_files_come_back_as_they_were_written(tmp_path, real_rows):
    rows = real_rows("alpaca_eval2/annotations/vicuna-7b-v1.5.with_glm_preference.json.gz")
    write_rows(tmp_path / "annotations.json", rows)
    assert read_rows(tmp_path / "annotations.json") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{]", "the file is not JSON"),
        ("a.jsonl", '{"preference": 1}\n{', "line 2 is not JSON"),
        ("a.json", "[]", "at least one object"),
        ("a.json", "[1]", "row 1: expected an object, found int"),
        ("a.json", '[{"x": 1}]', "'preference' is missing .found x."),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name, ("preference",))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "absent.json")
