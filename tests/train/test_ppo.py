"""PPO from a recipe to a run folder: a small random model, byte tokens, and rewards that a line of Python gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from preftune import train
from preftune.errors import CheckpointError, DataError, ModelError, RecipeError, TrainingError
from preftune.model.heads import load_reward_model, save_value_head
from preftune.recipe import load_recipe
from preftune.train.ppo.sampling import Sampling, sample
from preftune.train.record import read_log
from preftune.train.run import train_recipe
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

PROMPTS = [{"prompt": f"Say {number}."} for number in range(8)]
RULES = '''
def length(prompts, responses):
    """Longer is better, and the prompt's last digit is worth something."""
    return [len(text) / 8 + int(chat[-1]["content"][-2]) / 10 for chat, text in zip(prompts, responses)]

def fails(prompts, responses):
    raise KeyError("no such thing")

def short(prompts, responses):
    return [0.0]

def nan(prompts, responses):
    return [float("nan")] * len(responses)

def text(prompts, responses):
    return "good"

number = 3
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A policy, and a reward model with the same tokens."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_byte_tokenizer(CHATML)
    policy = build_model(vocab_size=len(tokenizer), num_hidden_layers=2)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    torch.manual_seed(1)
    load_reward_model(str(folder / "policy")).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


@pytest.fixture
def work(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("ppo_rules", None)
    Path("ppo_rules.py").write_text(RULES)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return {
        "model_name_or_path": str(models / "policy"),
        "dataset": "prompts.jsonl",
        "objective": "ppo",
        "reward_function": "ppo_rules:length",
        "response_length": 6,
        "max_length": 64,
        "total_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "output_dir": "run",
    }


def lines(folder="run"):
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "eps")} for line in read_log(Path(folder) / "log.jsonl")
    ]


def weights(folder="run"):
    return load_file(Path(folder) / "model.safetensors")


def test_a_run_leaves_its_folder(work):
    summary = train(None, **work, eval_dataset="prompts.jsonl", eval_strategy="steps", eval_steps=2)
    assert summary["steps"] == 2 and summary["episodes"] == 8 and summary["rows"] == 8
    first, *_ = read_log(Path("run/log.jsonl"))
    assert {
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
        "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "eps", "epoch",
    } <= first.keys()  # fmt: skip
    assert first["objective/kl"] == 0.0 and first["episode"] == 4 and first["lr"] == 1e-2
    assert first["objective/rlhf_reward"] == first["objective/scores"]
    second = lines()[1]
    assert second["objective/kl"] != 0.0
    assert second["objective/non_score_reward"] == pytest.approx(-0.05 * second["objective/kl"])
    held_out = next(line for line in lines() if "eval_objective/scores" in line)
    assert {"eval_objective/kl", "eval_lengths/response", "eval_ended"} <= held_out.keys()
    table = Path("run/samples/step-2.md").read_text()
    assert "Say 0." in table and table.count("\n| Say") == 8
    assert {path.name for path in Path("run/plots").iterdir()} >= {"scores.png", "kl.png", "loss.png"}
    assert "score of sampled responses" in Path("run/README.md").read_text()
    start = weights(work["model_name_or_path"])
    assert not all(torch.equal(start[name], value) for name, value in weights().items())
    AutoModelForCausalLM.from_pretrained("run")


def test_a_run_without_evaluations_shows_what_its_last_step_was_taken_on(work):
    train(None, **work)
    assert [path.name for path in Path("run/samples").iterdir()] == ["step-1.md"]
    assert "## Samples" in Path("run/README.md").read_text()


CHANGED = {
    "whiten_rewards": True, "kl_coef": 5.0, "cliprange": 0.01, "vf_coef": 10.0, "cliprange_value": 1e-4,
    "gamma": 0.5, "lam": 0.1, "num_ppo_epochs": 1, "num_mini_batches": 2, "response_length": 3, "temperature": 2.0,
    "stop_token": "a", "missing_eos_penalty": 3.0, "reward_model_name_or_path": "reward", "seed": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def usual():
    return {}


@pytest.mark.parametrize("key", CHANGED)
def test_each_setting_acts(key, work, models, usual, monkeypatch):
    monkeypatch.setattr("preftune.train.run.plot_log", lambda records, folder: [])
    if not usual:
        train(None, **work, missing_eos_penalty=1.0)
        usual.update(weights())
    value = CHANGED[key]
    if key == "reward_model_name_or_path":
        work["reward_function"], value = None, str(models / value)
    train(None, **{**work, "missing_eos_penalty": 1.0, key: value})
    assert any(not torch.equal(weights()[name], usual[name]) for name in usual)


def test_passes_over_the_prompts_and_over_a_rollout_are_two_things(work):
    del work["max_steps"]
    assert train(None, **work, num_train_epochs=2, num_ppo_epochs=1)["steps"] == 4  # 2 x 8 prompts, 4 a rollout
    assert train(None, **work, num_train_epochs=1, num_ppo_epochs=3)["steps"] == 2
    assert train(None, **work, num_train_epochs=2, num_ppo_epochs=1, num_mini_batches=2)["steps"] == 2


@pytest.mark.parametrize(("size", "passes"), [(64, [4]), (3, [3, 1])])
def test_the_passes_of_a_rollout_hold_so_many_sequences(size, passes, work, monkeypatch):
    seen = []
    monkeypatch.setattr("preftune.train.ppo.rollout.pack", lambda groups: seen.append(len(groups)) or real(groups))
    from preftune.data.pack import pack as real

    train(None, **{**work, "max_steps": 1}, local_rollout_forward_batch_size=size)
    assert seen == passes * 3  # policy, reference, value


def test_how_a_step_is_cut_changes_nothing(work):
    train(None, **work)
    whole = lines()
    train(None, **work, micro_batch_tokens=24)
    assert len(whole) == 2
    for one, other in zip(whole, lines(), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"use_peft": True}, {"torch_dtype": "bfloat16"}], ids=["full", "lora", "bf16"])
def test_a_resumed_run_ends_in_the_same_bits(more, work):
    work |= {**more, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_mini_batches": 2}
    work |= {"eval_dataset": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "cosine"}
    train(None, **work)
    name = "adapter_model.safetensors" if more.get("use_peft") else "model.safetensors"
    straight, log = load_file(f"run/{name}"), lines()
    shutil.rmtree("run/checkpoint-4")
    Path(f"run/{name}").unlink()
    torch.rand(7)  # whatever the process has drawn
    train(None, **work, resume_from_checkpoint=True)
    again = load_file(f"run/{name}")
    assert again.keys() == straight.keys()
    assert all(torch.equal(straight[key], value) for key, value in again.items())
    assert lines() == log
    with pytest.raises(CheckpointError, match="is of another run: objective"):
        train(None, **work, resume_from_checkpoint=True, kl_coef=0.3)


def test_an_interrupt_saves_after_the_step_in_hand(work):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume_from_checkpoint=true"):
        train_recipe(load_recipe(None, {**work, "max_steps": 4}), callbacks=[Interrupt()])
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(None, **{**work, "max_steps": 4}, resume_from_checkpoint=True)["steps"] == 4


def test_a_checkpoint_without_its_training_state_is_not_gone_on_from(work):
    work |= {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    train(None, **work)
    with pytest.raises(CheckpointError, match=r"has no trained\.pt"):
        train(None, **work, resume_from_checkpoint=True)


def test_the_best_checkpoint_stays(work):
    work |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    work |= {"eval_dataset": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 1}
    train(None, **work, metric_for_best_model="objective/scores")
    scores = {line["step"]: line["eval_objective/scores"] for line in lines() if "eval_objective/scores" in line}
    best = max(scores, key=scores.get)
    left = {int(path.name.partition("-")[2]) for path in Path("run").glob("checkpoint-*")}
    assert 4 in left and best in left and len(left) == 2


def test_an_adapter_is_trained_against_the_model_without_it(work, caplog):
    with caplog.at_level("INFO"):
        train(None, **work, use_peft=True, lora_r=4)
    assert "Reference: the base model (adapter off)" in caplog.text
    assert Path("run/adapter_model.safetensors").is_file() and not Path("run/model.safetensors").exists()
    assert lines()[0]["objective/kl"] == 0.0 and lines()[1]["objective/kl"] != 0.0


def test_a_reward_model_scores_and_its_head_starts_the_values(work, models, monkeypatch):
    from preftune.train.ppo import run

    found = []
    monkeypatch.setattr(run, "load_models", lambda *args: found.append(real(*args)) or found[0])
    from preftune.train.ppo.models import load_models as real

    work |= {"reward_function": None, "reward_model_name_or_path": str(models / "reward"), "max_steps": 1}
    train(None, **{**work, "learning_rate": 0})
    reward = load_file(models / "reward" / "model.safetensors")["score.weight"]
    assert torch.equal(found[0].value.score.weight, reward)
    assert torch.equal(found[0].reward.model.score.weight, reward)
    assert found[0].value is not found[0].reward.model


def test_a_value_head_beside_language_model_weights_is_a_reward_model(work, models, tmp_path):
    shutil.copytree(models / "policy", tmp_path / "headed")
    save_value_head(load_reward_model(str(models / "reward")), tmp_path / "headed")
    work |= {"reward_function": None, "max_steps": 1}
    train(None, **work, reward_model_name_or_path=str(models / "reward"))
    classifier = lines()
    train(None, **work, reward_model_name_or_path="headed")
    assert lines()[0]["objective/scores"] == pytest.approx(classifier[0]["objective/scores"], abs=1e-5)


def test_a_reward_model_without_a_head_is_an_error(work, models):
    with pytest.raises(ModelError, match="is a language model without a score head"):
        train(None, **{**work, "reward_function": None}, reward_model_name_or_path=str(models / "policy"))


def test_a_reward_model_with_other_tokens_is_an_error(work, models, tmp_path):
    shutil.copytree(models / "reward", tmp_path / "other")
    tokenizer = build_byte_tokenizer(CHATML)
    vocabulary = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    first, second, *_ = words
    words[first], words[second] = words[second], words[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert len(tokenizer)
    with pytest.raises(ModelError, match="another vocabulary than the policy"):
        train(None, **{**work, "reward_function": None}, reward_model_name_or_path="other")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("ppo_rules:fails", TrainingError, "ppo_rules:fails failed: KeyError"),
        ("ppo_rules:short", TrainingError, "must return a list of 4 numbers, one a response, found 1 of them"),
        ("ppo_rules:nan", TrainingError, "gives nan, expected a finite number"),
        ("ppo_rules:text", TrainingError, "found str"),
        ("ppo_rules:number", RecipeError, "ppo_rules has no function 'number'"),
        ("no_such_rules:length", RecipeError, "the module 'no_such_rules' cannot be imported"),
    ],
)
def test_a_wrong_reward_function_is_one_line(name, kind, said, work):
    with pytest.raises(kind, match=said) as error:
        train(None, **{**work, "reward_function": name})
    assert "\n" not in str(error.value)


def test_a_stop_token_is_one_token(work):
    with pytest.raises(RecipeError, match="'stop_token' must be eos or one token"):
        train(None, **work, stop_token="the end")


def test_prompts_that_leave_no_room_are_cut_or_left_out(work):
    rows = [*PROMPTS, {"prompt": "x" * 90 + " 1."}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(None, **work)["rows"] == 9
    assert train(None, **work, truncation="drop")["rows"] == 8
    with pytest.raises(DataError, match=r"row 9: the prompt has \d+ tokens, and response_length leaves 58"):
        train(None, **work, truncation="error")


def test_rows_with_weights_are_refused(work):
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "Say 1.", "weight": 2}) + "\n")
    with pytest.raises(DataError, match="ppo counts all prompts the same"):
        train(None, **work)


def test_a_response_ends_with_its_first_end_and_settings_of_the_model_are_set_aside(models):
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    model.generation_config.top_k, model.generation_config.do_sample = 1, True
    own = model.generation_config
    torch.manual_seed(0)
    prompts = [[5, 6, 7], [8], [9, 10]] * 20
    responses = sample(model, prompts, Sampling(length=12, temperature=3.0, ends=tuple(range(40)), batch=7))
    assert model.generation_config is own
    assert len({tuple(response.ids) for response in responses}) > 50  # top_k 1 would give three
    for response in responses:
        assert response.ended == (response.ids[-1] < 40)
        assert all(token >= 40 for token in response.ids[:-1]) and 1 <= len(response.ids) <= 12
        assert response.ended or len(response.ids) == 12
