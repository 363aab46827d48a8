"""Recipes that train together leave what each leaves alone: weights, log, files; an end of one is its own."""

import json
import shutil
import signal

import pytest
import torch
import transformers
from safetensors.torch import load_file

from preftune.cli.main import main
from preftune.errors import Interrupted, RecipeError
from preftune.recipe import load_recipe
from preftune.train import meeting
from preftune.train.record import read_log
from preftune.train.run import train_recipe
from preftune.train.together import train_together
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE

VARIANTS = [
    {"learning_rate": 1e-3},
    {"learning_rate": 3e-3, "beta": 5.0, "sft_weight": 0.5, "max_grad_norm": 0.01, "lr_scheduler_type": "constant"},
    {"learning_rate": 1e-3, "objective": "dpo", "beta": 0.5, "precompute_reference": True},
]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of these tests alone; and no pictures, which are most of the time of runs like these."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr("preftune.train.run.plot_log", lambda log, folder: [])
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_byte_tokenizer(CHATML, adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model):
    """Recipes by the name of their run and their changes."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"{n}?", "chosen": "yes" * (1 + n % 3), "rejected": str(n) * (1 + n % 2)} for n in range(40)]
    for name, part in (("train", rows[:32]), ("eval", rows[32:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    common = {
        "model_name_or_path": str(model),
        "dataset": str(folder / "train.jsonl"),
        "eval_dataset": str(folder / "eval.jsonl"),
        "use_peft": True,
        "max_length": 64,
        "total_batch_size": 8,
        "micro_batch_tokens": 300,  # several micro-batches, and in some of them fewer candidates than there are
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "watch": False,
    }
    return lambda output_dir, **changes: load_recipe(None, {**common, **changes, "output_dir": str(output_dir)})


@pytest.fixture(scope="module")
def alone(tmp_path_factory, recipe):
    """Runs of their own by each of `VARIANTS`."""
    folder = tmp_path_factory.mktemp("alone")
    for number, changes in enumerate(VARIANTS):
        train_recipe(recipe(folder / str(number), **changes))
    return [folder / str(number) for number in range(len(VARIANTS))]


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


def test_each_run_is_what_it_is_alone_whatever_becomes_of_another(recipe, alone, tmp_path):
    recipes = [recipe(tmp_path / str(number), **changes) for number, changes in enumerate(VARIANTS)]
    *ends, bad = train_together([*recipes, recipe(tmp_path / "bad", learning_rate=1e30)])
    for number, end in enumerate(ends):
        assert_same_run(tmp_path / str(number), alone[number])
        assert end.code == 0
        assert end.summary == json.loads((tmp_path / str(number) / "summary.json").read_text())
    assert worst_gap(tmp_path / "0", tmp_path / "1") > 1e-3  # or nothing is shown
    assert bad.code == 1 and "non-finite at step" in bad.said
    assert not (tmp_path / "bad" / "adapter_model.safetensors").exists()


def test_a_signal_stops_all_after_the_same_step_and_what_is_behind_catches_up(recipe, alone, tmp_path, monkeypatch):
    real, met = meeting.joint_gradients, []

    def interrupted_at_2(decoder, partners):
        met.append([partner.trainer.state.global_step for partner in partners])
        if len(met) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(decoder, partners)

    monkeypatch.setattr(meeting, "joint_gradients", interrupted_at_2)
    recipes = [
        recipe(tmp_path / str(number), **VARIANTS[number], resume_from_checkpoint="auto", rescue_minutes=0)
        for number in (0, 1)
    ]
    with pytest.raises(Interrupted, match="2 of 2 runs have saved") as stopped:
        train_together(recipes)
    assert stopped.value.exit_code == 143
    assert met == [[0, 0], [1, 1]]
    shutil.rmtree(tmp_path / "1")  # the second starts anew
    assert [end.code for end in train_together(recipes)] == [0, 0]
    assert met[2:] == [[0], [1], [2, 2], [3, 3], [4, 4]]
    for number in (0, 1):
        assert worst_gap(tmp_path / str(number), alone[number]) < 1e-5


def test_memory_that_ends_makes_all_of_them_cut_smaller(recipe, alone, tmp_path, monkeypatch, caplog):
    real, met = meeting.joint_gradients, []

    def short_once(decoder, partners):
        met.append(len(partners))
        if len(met) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(decoder, partners)

    monkeypatch.setattr(meeting, "joint_gradients", short_once)
    train_together([recipe(tmp_path / str(number), **VARIANTS[number]) for number in (0, 1)])
    assert met == [2] * 6
    assert caplog.text.count("it is done again") == 2
    for number in (0, 1):
        assert worst_gap(tmp_path / str(number), alone[number]) < 1e-5


def test_what_does_not_fit_together_is_refused(recipe):
    with pytest.raises(RecipeError, match="seed differ"):
        train_together([recipe("a"), recipe("b", seed=1)])
    with pytest.raises(RecipeError, match=r"'use_peft' is false.*Train it alone"):
        train_together([recipe("a"), recipe("b", use_peft=False)])
    with pytest.raises(RecipeError, match=r"'output_dir' a is that of"):
        train_together([recipe("a"), recipe("a")])


def test_keys_beside_the_files_are_refused(capsys):
    assert main(["train", "a.yaml", "beta=3", "--together", "b.yaml"]) == 2
    assert "takes recipe files alone" in capsys.readouterr().err
