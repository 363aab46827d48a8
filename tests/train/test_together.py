"""Recipes that train together leave what each leaves alone: weights, log, files; an end of one is its own."""

import json

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from preftune.cli.main import main
from preftune.errors import RecipeError
from preftune.recipe import load_recipe
from preftune.train import meeting
from preftune.train.record import read_log
from preftune.train.run import train_recipe
from preftune.train.together import train_together
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE

VARIANTS = [
    {"learning_rate": 1e-3},
    {"learning_rate": 3e-3, "beta": 5.0, "max_grad_norm": 0.01},
    {"learning_rate": 1e-3, "objective": "dpo", "beta": 0.5, "precompute_reference": True, "reference_cache": "cache"},
    {"learning_rate": 2e-3, "sft_weight": 0.5, "gamma_beta_ratio": 0.2, "lr_scheduler_type": "constant"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_byte_tokenizer(CHATML, adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, model, monkeypatch):
    """Recipes by their changes and the name of their run."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}?", "chosen": "yes" * (1 + n % 3), "rejected": str(n) * (1 + n % 2)} for n in range(40)]
    for name, part in (("train", rows[:32]), ("eval", rows[32:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    common = {
        "model_name_or_path": str(model),
        "dataset": "train.jsonl",
        "eval_dataset": "eval.jsonl",
        "use_peft": True,
        "lora_r": 4,
        "max_length": 64,
        "total_batch_size": 8,
        "micro_batch_tokens": 300,  # two of the candidates at a time
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "watch": False,
    }
    return lambda name, **changes: load_recipe(None, {**common, **changes, "output_dir": name})


def worst_gap(one, other):
    found, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert found.keys() == wanted.keys()
    return max((found[key] - wanted[key]).abs().max().item() for key in wanted)


def timeless(record):
    """A line of the log without what a clock has measured."""
    measured = ("seconds", "runtime", "per_second")
    return {key: value for key, value in record.items() if not key.endswith(measured)}


def assert_same_run(one, other):
    assert worst_gap(one, other) < 1e-5
    for found, wanted in zip(read_log(one / "log.jsonl"), read_log(other / "log.jsonl"), strict=True):
        assert timeless(found) == pytest.approx(timeless(wanted), rel=1e-5, abs=1e-5)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


def test_each_run_is_what_it_is_alone(recipe, tmp_path):
    for number, changes in enumerate(VARIANTS):
        train_recipe(recipe(f"alone-{number}", **changes))
    ends = train_together([recipe(f"joint-{number}", **changes) for number, changes in enumerate(VARIANTS)])
    assert [end.code for end in ends] == [0, 0, 0, 0]
    for number, end in enumerate(ends):
        assert_same_run(tmp_path / f"joint-{number}", tmp_path / f"alone-{number}")
        assert end.summary == json.loads((tmp_path / f"joint-{number}" / "summary.json").read_text())
    assert worst_gap(tmp_path / "joint-0", tmp_path / "joint-1") > 1e-3  # or nothing is shown


def test_a_run_that_is_not_finite_ends_alone(recipe, tmp_path):
    ends = train_together([recipe("good"), recipe("bad", learning_rate=1e30), recipe("better", learning_rate=1e-4)])
    assert [end.code for end in ends] == [0, 1, 0]
    assert "non-finite at step" in ends[1].said
    assert not (tmp_path / "bad" / "adapter_model.safetensors").exists()
    train_recipe(recipe("alone"))
    assert_same_run(tmp_path / "good", tmp_path / "alone")


def test_a_run_that_is_behind_catches_up(recipe, tmp_path):
    """One is gone on with from step 3, the other starts; they meet there."""
    saving = {"save_strategy": "steps", "save_steps": 3, "rescue_minutes": 0}
    train_recipe(recipe("alone", **saving))
    train_recipe(recipe("one", **saving))
    for name in ("adapter_model.safetensors", "summary.json"):
        (tmp_path / "one" / name).unlink()
    (tmp_path / "one" / "checkpoint-5").rename(tmp_path / "gone")
    again = {**saving, "resume_from_checkpoint": "auto"}
    ends = train_together([recipe("one", **again), recipe("two", **again, learning_rate=1e-4)])
    assert [end.summary["steps"] for end in ends] == [5, 5]
    assert worst_gap(tmp_path / "one", tmp_path / "alone") < 1e-5


def test_memory_that_ends_makes_all_of_them_cut_smaller(recipe, tmp_path, monkeypatch, caplog):
    real, calls = meeting.joint_gradients, []

    def short_once(decoder, partners):
        calls.append(len(partners))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(decoder, partners)

    monkeypatch.setattr(meeting, "joint_gradients", short_once)
    ends = train_together([recipe("one", max_steps=2), recipe("two", max_steps=2, beta=3.0)])
    assert [end.code for end in ends] == [0, 0]
    assert calls == [2, 2, 2]
    assert caplog.text.count("it is done again") == 2
    train_recipe(recipe("alone", max_steps=2))
    assert worst_gap(tmp_path / "one", tmp_path / "alone") < 1e-5


def test_what_does_not_fit_together_is_refused(recipe):
    with pytest.raises(RecipeError, match="seed differ"):
        train_together([recipe("a"), recipe("b", seed=1)])
    with pytest.raises(RecipeError, match=r"'use_peft' is false.*Train it alone"):
        train_together([recipe("a"), recipe("b", use_peft=False)])
    with pytest.raises(RecipeError, match=r"'output_dir' a is that of"):
        train_together([recipe("a"), recipe("a")])


def test_the_command_line_prints_how_each_has_ended(recipe, tmp_path, capsys):
    files = []
    for name, rate in (("one", 1e-3), ("two", 1e30)):
        files.append(str(tmp_path / f"{name}.yaml"))
        values = yaml.safe_load(recipe(name, learning_rate=rate, max_steps=2).to_yaml())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["train", files[0], "--together", files[1], "--json"]) == 1
    one, two = json.loads(capsys.readouterr().out)
    assert (one["code"], one["summary"]["steps"]) == (0, 2)
    assert two["code"] == 1 and "non-finite" in two["said"]
    assert main(["train", files[0], "beta=3", "--together", files[1]]) == 2
    assert "takes recipe files alone" in capsys.readouterr().err
