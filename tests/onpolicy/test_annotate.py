"""Scores of every scorer against what they must be, and a job that is killed against one that is not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import transformers

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.errors import CheckpointError, DataError, ModelError, TrainingError
from preftune.onpolicy.annotate import annotate_file
from preftune.onpolicy.journal import journal_folder
from preftune.onpolicy.score_cache import CachedScorer
from preftune.onpolicy.scorers.base import Score
from preftune.onpolicy.scorers.custom_model import CustomModelScorer
from preftune.onpolicy.scorers.function import LengthScorer
from preftune.onpolicy.scorers.games import all_games, scores_of
from preftune.onpolicy.scorers.ranker import RankerScorer
from preftune.onpolicy.scorers.reward_model import RewardModelScorer
from preftune.serve.score import score_file
from preftune.types import Layout
from tests.data.conftest import CHATML, build_byte_tokenizer, build_example
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "num_labels": 1, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
ROWS = [
    {"prompt": "colour?", "responses": ["red", "dark green", "red"], "sampled": {"seeds": [1, 2, 3]}},
    {"prompt": "river?", "responses": ["Po", "Amazon"]},
    {"prompt": [{"role": "user", "content": "sea?"}], "responses": ["Kara", "é"]},
]
CUSTOM = """
from dataclasses import dataclass
import torch
from transformers import LlamaConfig, PreTrainedModel

class Config(LlamaConfig):
    model_type = "own-llama"

@dataclass
class Output:
    score: torch.Tensor

class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask=None):
        return Output(self.weight[input_ids].sum(1) if self.config.vocab_size == 260 else self.weight[:2])
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "in.jsonl", ROWS)


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)
    build_byte_tokenizer(CHATML).save_pretrained(folder)
    return folder


@pytest.fixture
def custom(tmp_path, monkeypatch):
    """A model whose own code adds up a number a token, which is its id."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "custom"
    folder.mkdir()
    build_byte_tokenizer(CHATML).save_pretrained(folder)
    (folder / "own.py").write_text(CUSTOM)
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own-llama", **SHAPE, "auto_map": auto}))
    from safetensors.torch import save_file

    save_file({"weight": torch.arange(260.0)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Counting:
    """Scores by length, and remembers what it was asked."""

    def __init__(self, fail=()):
        self.asked, self.fail = [], fail

    def settings(self):
        return {"rule": "counting"}

    def score(self, examples):
        self.asked += [example.prompt[-1].content for example in examples]
        return [
            [Score(None, "no") if text in self.fail else Score(float(len(text))) for text in example.responses]
            for example in examples
        ]


def test_a_reward_model_gives_what_score_gives_and_all_columns_stay(reward, rows, tmp_path):
    summary = annotate_file(rows, RewardModelScorer(str(reward)), tmp_path / "out.jsonl", chunk=2)
    score_file(str(reward), rows, output=tmp_path / "score.jsonl")
    found, wanted = read(tmp_path / "out.jsonl"), read(tmp_path / "score.jsonl")
    assert [row["scores"] for row in found] == [pytest.approx(row["scores"], abs=1e-5) for row in wanted]
    assert [{**row, "scores": None} for row in found] == [{**row, "scores": None} for row in ROWS]
    assert (summary["rows"], summary["answers"], summary["failed"]) == (3, 7, 0)


def test_a_model_with_its_own_code_scores_by_its_own_output_and_only_with_consent(custom, rows, tmp_path, capsys):
    assert main(["annotate", str(rows), "--output", str(tmp_path / "out.jsonl"), "--custom-model", str(custom)]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
    words = ["--custom-model", str(custom), "--trust-remote-code"]
    assert main(["annotate", str(rows), "--output", str(tmp_path / "out.jsonl"), *words]) == 0
    tokenizer = build_byte_tokenizer(CHATML)
    for row in read(tmp_path / "out.jsonl"):
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        for text, score in zip(row["responses"], row["scores"], strict=True):
            turns = [*prompt, {"role": "assistant", "content": text}]
            whole = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
            assert score == sum(tokenizer(whole, add_special_tokens=False)["input_ids"])


def test_a_model_without_a_score_of_each_sequence_is_refused(reward):
    scorer = CustomModelScorer(str(reward), trust_remote_code=True)
    with pytest.raises(ModelError, match="must return a 'score' with one number a sequence, found NoneType for 1"):
        scorer.score([build_example("p", "a", "bb")])


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    """A classifier trained here on the rule that the answer with more 'z' wins."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ranker")
    tokenizer = build_byte_tokenizer(CHATML)
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}))
    texts = ["zzzz", "zzxz", "zxxz", "xzxx", "xxxx"]
    games = [(i, j) for i in range(5) for j in range(5) if i != j]
    shown = [f"q|{texts[i]}|{texts[j]}" for i, j in games]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in shown])
    wanted = torch.tensor([float(texts[i].count("z") > texts[j].count("z")) for i, j in games])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(input_ids=ids).logits[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_ranker_orders_answers_by_the_rule_it_was_trained_on(ranker):
    scorer = RankerScorer(str(ranker), "{prompt}|{a}|{b}")
    (scores,) = scorer.score([build_example("q", "xzxx", "zzzz", "xxxx", "zzxz")])
    values = [score.value for score in scores]
    assert sorted(range(4), key=lambda place: -values[place]) == [1, 3, 0, 2]
    assert sum(values) == pytest.approx(2) and values[1] > 0.9 and values[2] < 0.1


def test_a_ranker_is_asked_in_both_orders_and_a_long_text_is_cut(ranker):
    scorer = RankerScorer(str(ranker), "{prompt}|{a}|{b}")
    logits = [
        scorer.reward.model(input_ids=torch.tensor([scorer._encode("q", *pair)])).logits.item()
        for pair in (("zz", "x"), ("x", "zz"))
    ]
    (scores,) = scorer.score([build_example("q", "zz", "x")])
    first, second = (1 / (1 + math.exp(-logit)) for logit in logits)
    assert scores[0].value == pytest.approx((first + 1 - second) / 2, abs=1e-6)
    assert scorer._encode("q", "{b}", "{a}") == scorer.reward.tokenizer("q|{b}|{a}")["input_ids"]
    long = scorer._ids(build_example("p" * 300), "a" * 300, "b" * 300)
    text = scorer.reward.tokenizer.decode(long["input_ids"])
    assert len(long["input_ids"]) <= 256 and text.count("a") == text.count("b") == text.count("p") > 70


def test_the_pairs_of_a_ranker_and_of_a_custom_model_are_trained_on(ranker, custom, tmp_path):
    answers = (["xxxx", "zzzz", "xzxx"], ["zzxz", "xxxx"], ["zzxz", "zzzz"])
    given = [{"prompt": "q", "responses": responses} for responses in answers]
    file = write(tmp_path / "in.jsonl", given)
    of_custom = ["--custom-model", str(custom), "--trust-remote-code"]
    for name, words in (("r", ["--ranker", str(ranker), "--ranker-template", "{prompt}|{a}|{b}"]), ("c", of_custom)):
        scored, pairs = str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}-pairs")
        assert main(["annotate", str(file), "--output", scored, *words]) == 0
        assert main(["pairs", scored, "--output", pairs, "--test-share", "0"]) == 0
        examples = load_preferences(pairs, layout=Layout.PAIRED)
        assert [example.responses[0] for example in examples] == ["zzzz", "zzxz", "zzzz"]  # z has the highest id too


def test_processes_share_the_chunks_and_the_last_writes(rows, tmp_path):
    write(rows, ROWS * 3)
    share = {"chunk": 2, "world": 2}
    assert annotate_file(rows, LengthScorer(), tmp_path / "two.jsonl", rank=1, **share)["output"] is None
    assert annotate_file(rows, LengthScorer(), tmp_path / "two.jsonl", rank=0, **share)["answers"] == 21
    annotate_file(rows, LengthScorer(), tmp_path / "one.jsonl")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_wins_are_averaged_over_both_orders_and_equal_answers_draw():
    assert all_games(["a", "b", "a"]) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    played = [(game, won, None) for game, won in zip(all_games(["a", "b", "a"]), (1.0, 0.0, 0.5, 0.5), strict=True)]
    assert [score.value for score in scores_of(["a", "b", "a"], played)] == [0.75, 0.25, 0.5]
    lone = scores_of(["a"], [])[0]
    assert lone.value is None and "no other answer" in lone.failure


def test_a_function_and_the_rule_of_length(rows, tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(
        "def shorter(prompts, responses):\n"
        "    assert all(prompt[-1]['role'] == 'user' for prompt in prompts)\n"
        "    return [-len(text) for text in responses]\n"
        "def broken(prompts, responses):\n    return [float('nan')] * len(responses)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, words, sign in (("f", ["--function", "own_rules:shorter"], -1), ("l", ["--rule", "length"], 1)):
        assert main(["annotate", str(rows), "--output", f"{name}.jsonl", *words]) == 0
        scored = read(tmp_path / f"{name}.jsonl")
        assert [row["scores"] for row in scored] == [[sign * len(text) for text in row["responses"]] for row in ROWS]
    from preftune.onpolicy.scorers.function import FunctionScorer

    with pytest.raises(TrainingError, match=r"row 1: .*gives nan"):
        annotate_file(rows, FunctionScorer("own_rules:broken"), tmp_path / "b.jsonl")


def test_scores_of_the_file_are_kept_where_all_of_a_row_are_there(tmp_path, capsys):
    given = [{**ROWS[0], "scores": [1, 2, 3]}, {**ROWS[1], "scores": [None, 1], "score_failures": ["x", None]}, ROWS[2]]
    file, scorer = write(tmp_path / "in.jsonl", given), Counting()
    summary = annotate_file(file, scorer, tmp_path / "out.jsonl", keep_scores=True)
    assert [row["scores"] for row in read(tmp_path / "out.jsonl")] == [[1, 2, 3], [2, 6], [4, 1]]
    assert scorer.asked == ["river?", "sea?"] and summary["kept"] == 1
    assert "score_failures" not in read(tmp_path / "out.jsonl")[1]
    with pytest.raises(DataError, match="row 2: has no scores to keep, or null among them"):
        annotate_file(file, None, tmp_path / "none.jsonl", keep_scores=True)
    with pytest.raises(DataError, match="row 1: 'scores' holds 1 scores for 3 responses"):
        bad = write(tmp_path / "bad.jsonl", [{**ROWS[0], "scores": [1]}])
        annotate_file(bad, scorer, tmp_path / "b.jsonl", keep_scores=True)


def test_a_cache_answers_the_same_rows_of_another_file_but_not_failures(tmp_path):
    file, cache = write(tmp_path / "in.jsonl", [*ROWS, ROWS[0]]), tmp_path / "cache.jsonl"
    first = Counting(fail=["Po"])
    annotate_file(file, CachedScorer(first, cache), tmp_path / "one.jsonl")
    assert first.asked == ["colour?", "river?", "sea?"]  # the row that comes again is asked once
    with cache.open("a") as torn:
        torn.write('{"row": "12')
    again = Counting()
    annotate_file(file, CachedScorer(again, cache), tmp_path / "two.jsonl")
    assert again.asked == ["river?"]
    one, two = read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl")
    assert one[1]["scores"] == [None, 6] and one[1]["score_failures"] == ["no", None]
    assert two == [{**row, "scores": [float(len(text)) for text in row["responses"]]} for row in [*ROWS, ROWS[0]]]


# --- killed and gone on


SLOW = """import time
def slow(prompts, responses):
    time.sleep(0.15)
    return [len(text) for text in responses]
"""


def test_a_job_that_broke_in_the_middle_asks_only_for_the_rest(rows, tmp_path):
    class Breaking(Counting):
        def score(self, examples):
            if self.asked:
                raise ModelError("out of luck")
            return super().score(examples)

    with pytest.raises(ModelError):
        annotate_file(rows, Breaking(), tmp_path / "out.jsonl", chunk=1)
    with (journal_folder(tmp_path / "out.jsonl") / "rank-0-of-1.jsonl").open("ab") as torn:
        torn.write(b'{"prompt": "riv')
    rest = Counting()
    annotate_file(rows, rest, tmp_path / "out.jsonl", chunk=1)
    annotate_file(rows, Counting(), tmp_path / "whole.jsonl", chunk=1)
    assert rest.asked == ["river?", "sea?"]
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_a_killed_job_goes_on_and_its_file_is_the_same(tmp_path):
    (tmp_path / "slow_rules.py").write_text(SLOW)
    file = write(tmp_path / "in.jsonl", [{"prompt": f"q{n}", "responses": ["a" * n, "b"]} for n in range(1, 21)])
    output = tmp_path / "out.jsonl"
    words = ["annotate", str(file), "--output", str(output), "--function", "slow_rules:slow", "--chunk", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    job = subprocess.Popen([sys.executable, "-m", "preftune", *words], cwd=tmp_path, env=environment)
    journal = journal_folder(output) / "rank-0-of-1.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not output.exists()
    with journal.open("ab") as file_again:
        file_again.write(b'{"prompt": "torn')
    before = journal.read_bytes().count(b"\n") - 1
    scorer = SimpleNamespace(settings=lambda: {"function": "slow_rules:slow"}, score=(counting := Counting()).score)
    annotate_file(file, scorer, output, chunk=2)
    assert len(counting.asked) == 20 - before // 2 * 2 < 20
    annotate_file(file, scorer, tmp_path / "whole.jsonl", chunk=2)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and len(read(output)) == 20


def test_another_scorer_or_file_does_not_go_on(rows, tmp_path):
    annotate_file(rows, LengthScorer(), tmp_path / "out.jsonl")
    with pytest.raises(CheckpointError, match="rule was 'length' and is 'counting'"):
        annotate_file(rows, Counting(), tmp_path / "out.jsonl")
    write(rows, ROWS[:2])
    with pytest.raises(CheckpointError, match="rows was 3 and is 2"):
        annotate_file(rows, LengthScorer(), tmp_path / "out.jsonl")
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no job to go on with"):
        annotate_file(rows, LengthScorer(), tmp_path / "mine.jsonl")
    with pytest.raises(DataError, match="is the file that is read"):
        annotate_file(rows, LengthScorer(), rows)


def test_options_that_contradict_are_one_line(rows, tmp_path, capsys):
    base = ["annotate", str(rows), "--output", str(tmp_path / "out.jsonl")]
    for words, said in (
        ([], "There is no scorer"),
        (["--rule", "length", "--judge-model", "m"], "--judge-model is of a judge"),
        (["--endpoint", "http://h/v1"], "needs --judge-model"),
        (["--endpoint", "http://h/v1", "--judge-model", "m", "--budget", "1"], "needs both --price-in and --price-out"),
        (["--reward-model", str(tmp_path / "none")], "does not exist"),
    ):
        assert main([*base, *words]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
