"""A reward model as the judge of Arena-Hard and MT-Bench: its verdicts, and both benchmarks from end to end."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from preftune.cli.main import main
from preftune.evaluation import arena_judge
from preftune.evaluation.alpaca_judge import annotate_by_reward
from preftune.evaluation.answers import Candidate, changed_preset
from preftune.evaluation.arena_hard import score as score_arena
from preftune.evaluation.bench_answers import ARENA_PRESET, answer_arena_hard, answer_mt_bench
from preftune.evaluation.files import read_rows, write_rows
from preftune.evaluation.mt_pairs import build_matches
from preftune.evaluation.reward_judge import judge_arena_by_reward, label_of, lead, play_by_reward
from preftune.serve.reward import open_reward_model, score_examples
from preftune.types import Example, Message, Origin
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
ARENA = [{"uid": f"u{n}", "prompt": f"Tell {n}."} for n in range(6)]
MT = [{"question_id": 80 + n, "category": "writing", "turns": [f"Say {n}.", "Again."]} for n in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a reward model, and a baseline's answers to both benchmarks."""
    folder = tmp_path_factory.mktemp("judged")
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    reward = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SHAPE, num_labels=1))
    with torch.no_grad():
        for parameter in (*policy.parameters(), *reward.parameters()):
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        build_byte_tokenizer(CHATML).save_pretrained(folder / name)
    write_rows(folder / "arena.jsonl", ARENA)
    write_rows(folder / "mt.jsonl", MT)
    base = Candidate(str(folder / "policy"), "base", seed=1)
    answer_arena_hard(base, ARENA, folder / "arena-base.jsonl", changed_preset(ARENA_PRESET, 8, 1.0))
    answer_mt_bench(base, MT, folder / "mt-base.jsonl", 8)
    return folder


def reward_of(folder, *talk):
    """The score of a conversation, by itself; None where its answer is empty."""
    if not talk[-1].strip():
        return None
    turns = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 2, talk, strict=False))
    example = Example(turns[:-1], (turns[-1].content,), Origin("x", "", 1))
    return score_examples(open_reward_model(str(folder / "reward")), [example]).values[0][0]


@pytest.mark.parametrize(
    ("difference", "label"),
    [(0, "A=B"), (0.05, "A=B"), (-0.05, "A=B"), (0.1, "A>B"), (-1.9, "B>A"), (2, "A>>B"), (-30, "B>>A")],
)
def test_a_difference_of_rewards_is_a_verdict(difference, label):
    assert label_of(difference) == label


def test_an_empty_answer_loses_and_two_of_them_tie(folder):
    def rows(model, *texts):
        return [{"uid": f"u{n}", "model": model, "messages": [
            {"role": "user", "content": "Say."}, {"role": "assistant", "content": {"answer": text}}]}
            for n, text in enumerate(texts)]  # fmt: skip

    matches = arena_judge.build_matches(rows("m", "", "yes", " "), rows("b", "yes", "\n", ""))
    judged = judge_arena_by_reward(str(folder / "reward"), matches)
    assert [[game["score"] for game in row["games"]] for row in judged] == [
        ["A>>B", "B>>A"], ["B>>A", "A>>B"], ["A=B", "A=B"],
    ]  # fmt: skip
    assert judged[0]["rewards"][1] is None and judged[0]["rewards"][0] is not None


def test_an_empty_output_of_alpaca_eval_loses(folder):
    texts = [("", "yes"), ("yes", " "), ("", "\n"), ("yes", "yes")]
    pairs = [{"instruction": "Say.", "output_1": first, "output_2": second} for first, second in texts]
    rows = annotate_by_reward(str(folder / "reward"), pairs)
    assert [row["preference"] for row in rows] == [2.0, 1.0, 1.5, 1.5]
    assert rows[0]["scores"][0] is None and rows[0]["annotator"] == f"reward_model:{folder / 'reward'}"


def test_arena_hard_runs_end_to_end_with_a_reward_model(folder, tmp_path, capsys):
    words = ["eval", "arena-hard", "run", str(folder / "policy"), "--max-new-tokens", "8", "--questions",
             str(folder / "arena.jsonl"), "--baseline", str(folder / "arena-base.jsonl"), "--folder", str(tmp_path),
             "--reward-model", str(folder / "reward"), "--scale", "0.01", "--json"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])
    assert found["judge"] == f"reward_model:{folder / 'reward'}" and found["questions"] == 6
    rows = read_rows(tmp_path / "judgments.jsonl")
    answers = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in read_rows(tmp_path / "answers.jsonl")}
    base = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in read_rows(folder / "arena-base.jsonl")}
    for row, question in zip(rows, ARENA, strict=True):
        texts = [text[question["uid"]] for text in (base, answers)]
        expected = [reward_of(folder, question["prompt"], text) for text in texts]
        for value, wanted in zip(row["rewards"], expected, strict=True):
            assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-5))
        ahead = lead(*expected, 0.01)  # the baseline is assistant A of game 1
        assert [game["score"] for game in row["games"]] == [label_of(ahead), label_of(-ahead)]
    assert found["score"] == pytest.approx(score_arena(rows)["policy"].score)
    assert len({game["score"] for row in rows for game in row["games"]}) > 1
    assert json.loads((tmp_path / "scores.json").read_text()) == found


def test_mt_bench_runs_end_to_end_with_a_reward_model(folder, tmp_path, capsys):
    words = ["eval", "mt-bench", "run", str(folder / "policy"), "--max-new-tokens", "8", "--questions",
             str(folder / "mt.jsonl"), "--against", str(folder / "mt-base.jsonl"), "--folder", str(tmp_path),
             "--reward-model", str(folder / "reward"), "--scale", "0.001", "--json"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    own = next(row for row in json.loads(said[said.index("[") :]) if row["model"] == "policy")
    assert own["judge"] == f"reward_model:{folder / 'reward'}" and own["wins"] + own["losses"] + own["ties"] == 6
    rows = {(row["question_id"], row["turn"]): row for row in read_rows(tmp_path / "judgments.jsonl")}
    for side, path in ((0, tmp_path / "answers.jsonl"), (1, folder / "mt-base.jsonl")):
        for answer, question in zip(read_rows(path), MT, strict=True):
            first, second = answer["choices"][0]["turns"]
            talk = (question["turns"][0], first, question["turns"][1], second)
            for turn, part in ((1, talk[:2]), (2, talk)):
                value = rows[question["question_id"], turn]["rewards"][side]
                wanted = reward_of(folder, *part)
                assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-5))
    for row in rows.values():
        ahead = lead(*row["rewards"], 1.0)
        winner = "tie" if abs(ahead) < 1e-4 else "model_1" if ahead > 0 else "model_2"
        assert row["g1_winner"] == row["g2_winner"] == winner


def test_a_model_beside_itself_is_a_tie_everywhere(folder):
    rows = read_rows(folder / "arena-base.jsonl")
    same = arena_judge.build_matches([row | {"model": "m"} for row in rows], rows)
    judged = judge_arena_by_reward(str(folder / "reward"), same, scale=1e-6)
    assert score_arena(judged)["m"].score == 50 and {g["score"] for row in judged for g in row["games"]} == {"A=B"}
    turns = read_rows(folder / "mt-base.jsonl")
    matches = build_matches(MT, [row | {"model_id": "m"} for row in turns], turns)
    assert {row["g1_winner"] for row in play_by_reward(str(folder / "reward"), matches, 1e-6)} == {"tie"}


def test_figures_of_a_reward_model_and_of_another_judge_are_not_scored_together(tmp_path, capsys):
    for name in ("reward_model:r", "gpt-4"):
        row = {"model_1": "m", "model_2": "b", "g1_winner": "tie", "g2_winner": "tie", "judge": [name, None]}
        write_rows(tmp_path / f"{name[:3]}.jsonl", [row])
    paths = [str(tmp_path / name) for name in ("rew.jsonl", "gpt.jsonl")]
    assert main(["eval", "mt-bench", "score", *paths, "--pairs"]) == 2
    assert "expected one judge, found 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mt-bench", "judge", "a.jsonl", "--questions", "q.jsonl", "--reward-model", "r"], "no ratings of 1 to 10"),
        (["mt-bench", "judge", "a.jsonl", "--questions", "q.jsonl", "--endpoint", "http://x.test/v1", "--judge", "j"],
         "needs --references and --prompts"),
        (["arena-hard", "judge", "a.jsonl", "--baseline", "b.jsonl", "--endpoint", "http://x.test/v1", "--judge", "j"],
         "needs --prompts"),
        (["arena-hard", "judge", "a.jsonl", "--baseline", "b.jsonl"], "Give one judge"),
        (["arena-hard", "judge", "a.jsonl", "--baseline", "b.jsonl", "--reward-model", "r", "--version", "v2.0"],
         "v2.0 needs --categories"),
        (["arena-hard", "judge", "a.jsonl", "--baseline", "b.jsonl", "--reward-model", "r", "--categories", "c.yaml"],
         "--categories needs --questions"),
    ],
)  # fmt: skip
def test_a_judge_that_is_not_said_whole_is_one_line(tmp_path, words, message, capsys):
    assert main(["eval", *words, "--output", str(tmp_path / "o.jsonl")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
