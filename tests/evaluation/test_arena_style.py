"""Arena-Hard's style control: the fits of both versions as arena-hard-auto makes them, and what they take out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from preftune.cli.main import main
from preftune.errors import DataError
from preftune.evaluation import arena_style
from preftune.evaluation.arena_style import FEATURES, count_markdown, score_with_style, style_counts
from preftune.evaluation.files import write_rows

LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
V01 = {"A>>B": ("a", 3), "A>B": ("a", 1), "A=B": ("tie", 1), "B>A": ("b", 1), "B>>A": ("b", 3)}


def answer(uid, model, tokens, headers=0, lists=0, bold=0):
    metadata = {
        "token_len": tokens, "header_count": {"h1": headers, "h2": 0}, "list_count": {"ordered": lists, "unordered": 0},
        "bold_count": {"**": bold, "__": 0},
    }  # fmt: skip
    talk = [{"role": "user", "content": uid}, {"role": "assistant", "content": {"answer": "x" * tokens}}]
    return {"uid": uid, "model": model, "messages": talk, "metadata": metadata}


def drawn(models=("m", "n"), questions=60, seed=0, pull=1.5):
    """Judgments by a judge that likes what is longer, answers of all, and those of the baseline."""
    random = np.random.RandomState(seed)
    rows, answers, base = [], [], []
    for number in range(questions):
        uid = f"q{number}"
        base.append(answer(uid, "b", int(random.randint(50, 400)), *random.randint(0, 5, 3).tolist()))
        for place, model in enumerate(models):
            own = answer(uid, model, int(random.randint(50, 400) * (1 + place)), *random.randint(0, 9, 3).tolist())
            answers.append(own)
            ahead = pull * math.log(own["metadata"]["token_len"] / base[-1]["metadata"]["token_len"])
            games = []
            for sign in (-1, 1):  # the model is assistant B of game 1
                place_of = int(np.clip(round(2 - sign * ahead + random.normal(0, 1)), 0, 4))
                games.append({"score": LABELS[place_of]})
            rows.append({"uid": uid, "model": model, "judge": "j", "baseline": "b", "games": games})
    return rows, answers, base


def published_v01(rows, answers, base):
    """construct_style_matrices and fit_bt, by scikit-learn: model_a is the baseline, every battle twice."""
    linear = pytest.importorskip("sklearn.linear_model")
    counts = {(row["model"], row["uid"]): [v if isinstance(v, int) else sum(v.values()) for v in
                                           row["metadata"].values()] for row in (*answers, *base)}  # fmt: skip
    battles = []
    for row in rows:
        for game, flip in ((row["games"][0], False), (row["games"][1], True)):
            winner, weight = V01[game["score"]]
            winner = {"a": "b", "b": "a"}.get(winner, winner) if flip else winner
            battles += [(row["model"], row["uid"], winner)] * weight
    models = ["b", *dict.fromkeys(row["model"] for row in rows)]
    twice = battles + battles
    x = np.zeros((len(twice), len(models) + 4))
    for at, (model, uid, _) in enumerate(twice):
        a, b = np.array(counts["b", uid], float), np.array(counts[model, uid], float)
        x[at, 0], x[at, models.index(model)] = math.log(10), -math.log(10)
        x[at, len(models) :] = (a - b) / (a + b + 1)
    style = x[:, len(models) :]
    x[:, len(models) :] = (style - style.mean(axis=0)) / style.std(axis=0)
    y = [winner == "a" or (winner == "tie" and at < len(battles)) for at, (_, _, winner) in enumerate(twice)]
    fit = linear.LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x, y)
    elo = 400 * fit.coef_[0][: len(models)]
    scores = {m: 100 / (1 + 10 ** ((elo[0] - elo[at]) / 400)) for at, m in enumerate(models) if at}
    return scores, fit.coef_[0][len(models) :]


def test_v01_is_the_published_regression():
    rows, answers, base = drawn()
    expected, coefficients = published_v01(rows, answers, base)
    found = score_with_style(rows, answers, base, "v0.1")
    assert {model: one.score for model, one in found.scores.items()} == pytest.approx(expected, abs=1e-4)
    # z-scores of a - b are those of b - a with the other sign, and so is the side that wins
    assert [found.coefficients[name] for name in FEATURES] == pytest.approx(list(coefficients), abs=1e-4)
    assert found.unit == "tokens" and all(one.lower < one.score < one.upper for one in found.scores.values())


def published_v20(rows, answers, base, seed, rounds):
    """print_leaderboard_with_style_features, with all four features; returns the table's medians and bounds."""
    label = {"A>B": [1], "A>>B": [1] * 3, "A=B": [0.5], "B>A": [0], "B>>A": [0] * 3}
    data = {(row["model"], row["uid"]): row["metadata"] for row in (*answers, *base)}
    battles = []
    for row in rows:
        first, second = (label[game["score"]] for game in row["games"])
        battles += [(row["model"], row["uid"], share) for share in [1 - s for s in first] + second]

    def tensor(of):
        return torch.tensor([[v if isinstance(v, int) else sum(v.values()) for v in data[key].values()] for key in of],
                            dtype=torch.float32)  # fmt: skip

    mine, other = tensor([(m, uid) for m, uid, _ in battles]), tensor([("b", uid) for _, uid, _ in battles])
    final = torch.zeros_like(mine)
    final[:, 0] = (mine[:, 0] - other[:, 0]) / (mine[:, 0] + other[:, 0])
    dense, dense_other = (one[:, 1:] / (one[:, :1] + 1) for one in (mine, other))
    final[:, 1:] = (dense - dense_other) / (dense + dense_other + 1)
    final = (final - final.mean(axis=0)) / final.std(axis=0)
    names = sorted({"b", *(m for m, _, _ in battles)})
    hot = torch.zeros(len(battles), len(names))
    for at, (model, _, _) in enumerate(battles):
        hot[at, names.index(model)], hot[at, names.index("b")] = 1, -1
    features, outcomes = torch.cat([hot, final], dim=1), torch.tensor([float(s) for _, _, s in battles])
    random = np.random.RandomState(seed)
    tables = []
    for _ in range(rounds):
        drawn = random.randint(0, len(battles), len(battles))
        logits = torch.nn.Parameter(torch.full((features.shape[1],), 0.5))
        optimizer = torch.optim.LBFGS([logits], lr=0.1, max_iter=50, tolerance_grad=1e-9, tolerance_change=1e-9)

        def closure(drawn=drawn, logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                features[drawn] @ logits, outcomes[drawn], reduction="sum"
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        powers = torch.exp(logits.detach()[: len(names)])
        tables.append((powers / (powers + powers[names.index("b")])).numpy())
    bounds = np.quantile(np.array(tables), (0.5, 0.05, 0.95), axis=0)
    return {model: 100 * bounds[:, names.index(model)] for model in names if model != "b"}


def test_v20_is_the_published_regression_with_its_intervals(monkeypatch):
    monkeypatch.setattr(arena_style, "BOOTSTRAPS", 8)
    rows, answers, base = drawn(questions=30)
    expected = published_v20(rows, answers, base, seed=42, rounds=8)
    found = score_with_style(rows, answers, base, "v2.0")
    for model, one in found.scores.items():
        assert [one.score, one.lower, one.upper] == pytest.approx(
            expected[model].tolist(), abs=0.1
        )  # float32, stopped early


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_wins_that_length_explains_are_taken_out(version, monkeypatch):
    """Two models of one skill, one of them long-winded, and a judge that sees length alone."""
    monkeypatch.setattr(arena_style, "BOOTSTRAPS", 8)
    rows, answers, base = drawn(("same", "long"), questions=150)
    lengths = {(row["model"], row["uid"]): row["metadata"]["token_len"] for row in (*answers, *base)}
    random = np.random.RandomState(1)
    for row in rows:
        share = 1 / (1 + (lengths["b", row["uid"]] / lengths[row["model"], row["uid"]]) ** 2)
        first, second = random.random(2) < share
        row["games"] = [{"score": "B>A" if first else "A>B"}, {"score": "A>B" if second else "B>A"}]
    markdown, length = (score_with_style(rows, answers, base, version, name) for name in ("markdown", "length"))
    apart = [found.scores["long"].score - found.scores["same"].score for found in (markdown, length)]
    assert apart[0] > 15 and abs(apart[1]) < 5
    assert length.coefficients["length"] > 0.5


def test_one_model_by_itself_is_said_to_have_nothing_to_be_held_against(caplog):
    rows, answers, base = drawn(("m",), 20)
    score_with_style(rows, answers, base)
    assert "the average style of the judged models" in caplog.text


def test_markdown_is_counted_outside_of_code():
    text = "# One\n### Three\n#no\n- a\n * b\n1. c\n**x** and __y__ ** z\n```\n# code\n- code\n**code**\n```"
    assert count_markdown(text) == (2, 3, 2)


def test_answers_without_counts_are_measured_in_characters_all_alike():
    _, answers, base = drawn(("m",), 5)
    del answers[0]["metadata"]
    counts, unit = style_counts([*answers, *base])
    assert unit == "characters" and counts["b", "q1"][0] == base[1]["metadata"]["token_len"]
    assert style_counts(base)[1] == "tokens"


def test_the_real_answers_of_v01_are_counted(real_rows):
    mine = real_rows("arena_hard/v0.1_answers/gpt-3.5-turbo-0125.jsonl.gz")
    base = real_rows("arena_hard/v0.1_answers/gpt-4-0314.jsonl.gz")
    counts, unit = style_counts([*mine, *base])
    assert (len(counts), unit) == (1000, "characters")
    random = np.random.RandomState(0)
    rows = [{"question_id": row["uid"], "model": "gpt-3.5-turbo-0125", "games": [
        {"score": LABELS[random.randint(5)]}, {"score": LABELS[random.randint(5)]}]} for row in mine]  # fmt: skip
    found = score_with_style(rows, mine, base, "v0.1").scores["gpt-3.5-turbo-0125"]
    assert found.questions == 500 and 40 < found.lower < found.score < found.upper < 60


def test_the_command_controls_style_and_v20_scores_each_category(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arena_style, "BOOTSTRAPS", 8)
    rows, answers, base = drawn(("m",))
    for number, row in enumerate(rows):
        row["category"] = "hard_prompt" if number % 2 else "creative_writing"
    for name, content in (("judgments", rows), ("answers", answers), ("base", base)):
        write_rows(tmp_path / f"{name}.jsonl", content)
    score = ["eval", "arena-hard", "score", str(tmp_path / "judgments.jsonl"), "--version", "v2.0", "--json"]
    assert main(score) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [(row["category"], row["questions"]) for row in plain] == [("creative_writing", 30), ("hard_prompt", 30)]
    files = ["--answers", str(tmp_path / "answers.jsonl"), "--baseline", str(tmp_path / "base.jsonl")]
    assert main([*score, "--style-control", "length", *files]) == 0
    styled = json.loads(capsys.readouterr().out)
    assert {row["style"] for row in styled} == {"length"} and list(styled[0]["style_coefficients"]) == ["length"]
    assert main([*score, "--style-control", "both"]) == 2
    assert "reads the answers" in capsys.readouterr().err


def test_each_category_is_controlled_against_the_style_of_its_own_baseline(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arena_style, "BOOTSTRAPS", 8)
    rows, answers, base = drawn(("m",), 20)
    other = [answer(row["uid"], "c", 60 + number) for number, row in enumerate(base)]
    mixed = [row | {"category": "b" if number % 2 else "c", "baseline": "b" if number % 2 else "c"}
             for number, row in enumerate(rows)]  # fmt: skip
    for name, content in (("judgments", mixed), ("answers", answers), ("base", base), ("other", other)):
        write_rows(tmp_path / f"{name}.jsonl", content)
    score = ["eval", "arena-hard", "score", str(tmp_path / "judgments.jsonl"), "--version", "v2.0", "--json",
             "--style-control", "length", "--answers", str(tmp_path / "answers.jsonl"), "--baseline",
             str(tmp_path / "base.jsonl")]  # fmt: skip
    assert main(score) == 2
    assert "baseline: expected the answers of 'c'" in capsys.readouterr().err
    assert main([*score, str(tmp_path / "other.jsonl")]) == 0
    found = {row["category"]: row["score"] for row in json.loads(capsys.readouterr().out)}
    for kind, own in (("b", base), ("c", other)):
        alone = score_with_style([row for row in mixed if row["category"] == kind], answers, own, "v2.0", "length")
        assert found[kind] == pytest.approx(alone.scores["m"].score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, answers, base: answers.pop(), "'m' has none to question q4"),
        (lambda rows, answers, base: base.append(base[0] | {"model": "c"}), "answers of one model"),
        (lambda rows, answers, base: answers.append(answers[0]), "a second answer of 'm' to question q0"),
        (lambda rows, answers, base: [row["metadata"].update(header_count=2) for row in (*answers, *base)],
         "headers never differ"),
        (lambda rows, answers, base: base[0]["metadata"].update(token_len="x"), "are no counts"),
        (lambda rows, answers, base: rows.append(rows[3]), "question q3 is there twice, which would count twice"),
        (lambda rows, answers, base: [row.update(games=[None, None]) for row in rows], "none of 10 verdicts"),
    ],
)  # fmt: skip
def test_what_cannot_be_controlled_is_one_line(change, message):
    rows, answers, base = drawn(("m",), 5)
    change(rows, answers, base)
    with pytest.raises(DataError, match=message):
        score_with_style(rows, answers, base)
