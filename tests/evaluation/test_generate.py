"""AlpacaEval end to end: a small model answers, a small reward model judges, the figures are printed."""

import json

import pytest
import torch
import transformers
import yaml

from preftune.cli.main import main
from preftune.errors import DataError
from preftune.evaluation.files import read_rows, write_rows
from preftune.evaluation.generate import PRESETS, generate_outputs, with_limit
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
QUESTIONS = [{"dataset": "d", "instruction": f"Say {n}.", "output": "x" * n, "generator": "base"} for n in range(1, 9)]
SHORT = with_limit(PRESETS["mistral-base"], 12, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a reward model, and a baseline's outputs."""
    folder = tmp_path_factory.mktemp("alpaca")
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
    write_rows(folder / "baseline.json", QUESTIONS)
    return folder


def test_the_benchmark_runs_end_to_end_and_does_no_step_twice(folder, tmp_path, capsys):
    words = ["eval", "alpaca-eval", "run", str(folder / "policy"), "--preset", "mistral-base", "--max-new-tokens", "12",
             "--baseline", str(folder / "baseline.json"), "--folder", str(tmp_path), "--reward-model",
             str(folder / "reward"), "--minimal", "--json"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])
    rows = read_rows(tmp_path / "annotations.json")
    assert found["annotator"] == f"reward_model:{folder / 'reward'}"
    assert found["win_rate"] == pytest.approx(100 * sum(row["preference"] - 1 for row in rows) / 8)
    assert found["n_total"] == 8 and found["lc_variant"] == "minimal"
    for row in rows:
        assert (row["preference"] > 1.5) == (row["scores"][1] > row["scores"][0])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in times} == {"model_outputs.json", "annotations.json", "configs.yaml", "prompt.txt"}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_a_job_that_was_cut_off_goes_on_and_gives_the_same(folder, tmp_path):
    whole = generate_outputs(str(folder / "policy"), QUESTIONS, tmp_path / "whole.json", SHORT)
    assert [row["instruction"] for row in whole] == [row["instruction"] for row in QUESTIONS]
    assert read_rows(tmp_path / "whole.json") == whole and not (tmp_path / "whole.json.part.jsonl").exists()
    settings = {"model": str(folder / "policy"), "generator": "policy", "system": None, "seed": 0, "prompts": 8,
                "temperature": 0.7, "max_new_tokens": 12, "top_p": 1.0, "stop_ids": []}  # fmt: skip
    lines = [settings, *({"n": n, "output": whole[n]["output"]} for n in (5, 2))]
    part = tmp_path / "torn.json.part.jsonl"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"n": 3, "outp')
    assert generate_outputs(str(folder / "policy"), QUESTIONS, tmp_path / "torn.json", SHORT) == whole
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="was begun with 'seed' 0, now it is 1"):
        generate_outputs(str(folder / "policy"), QUESTIONS, tmp_path / "torn.json", SHORT, seed=1)


def test_the_official_configuration_names_model_sampling_and_the_package(folder, tmp_path):
    generate_outputs(str(folder / "policy"), QUESTIONS[:1], tmp_path / "o.json", SHORT, generator="mine")
    text = (tmp_path / "configs.yaml").read_text()
    entry = yaml.safe_load(text)["mine"]
    assert entry["completions_kwargs"] == {
        "model_name": str(folder / "policy"), "max_new_tokens": 12, "top_p": 1.0, "temperature": 0.7,
    }  # fmt: skip
    assert "alpaca-eval 0.6.2" in text and entry["prompt_template"] == "mine/prompt.txt"
    assert (tmp_path / "prompt.txt").read_text() == "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"


def test_an_unknown_preset_is_one_line(folder, tmp_path, capsys):
    words = ["eval", "alpaca-eval", "generate", str(folder / "policy"), "--preset", "llama9", "--questions",
             str(folder / "baseline.json"), "--output", str(tmp_path / "o.json")]  # fmt: skip
    assert main(words) == 2
    assert "'llama9' is none of llama3-instruct" in capsys.readouterr().err
