"""`train_recipe` from files to a run folder: a small model with a real chat template, in-process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune import train
from preftune.cli.main import main
from preftune.data import generation_prompt_ids, load_preferences
from preftune.demo.corpus import corpus_texts
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.errors import CheckpointError, DataError, ModelError, RecipeError
from preftune.serve.reward import open_reward_model, score_examples
from preftune.train.record import read_log
from preftune.types import Message

SIZES = ModelSettings(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
PAIRS = [
    {"prompt": f"What is {a} plus {b}?", "chosen": f"{a} 加 {b} 等于 {a + b}。", "rejected": f"It is {a + b}."}
    for a in range(4)
    for b in range(4)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed=0, sizes=SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path, model_folder, monkeypatch):
    """An empty folder with `pairs.jsonl`, as the working directory; the values of a short run."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    return {
        "model_name_or_path": str(model_folder),
        "dataset": "pairs.jsonl",
        "total_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "output_dir": "run",
    }


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_run_leaves_its_folder(work):
    summary = train(None, **work, eval_dataset="pairs.jsonl", eval_strategy="steps", eval_steps=2)
    folder = Path("run")
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["rows"] == 16
    assert summary["tokens_total"] > 0
    assert summary["train_seconds"] <= summary["seconds_total"]
    assert summary["groups_per_second"] == pytest.approx(32 / summary["train_seconds"], rel=0.01)
    assert {"loss", "rewards/accuracies", "eval_loss", "eval_rewards/margins"} <= set(summary["metrics"])
    records = read_log(folder / "log.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [2, 4]
    assert [record["step"] for record in records if "eval_loss" in record] == [2, 4]
    first = next(record for record in records if "loss" in record)
    assert {"epoch", "seconds", "tokens_per_second", "grad_norm", "learning_rate"} <= set(first)
    assert [record["step"] for record in records if "watch/repetition" in record] == [0, 2, 4]
    assert {path.name for path in (folder / "plots").iterdir()} >= {
        "loss.png",
        "rewards.png",
        "lengths.png",
        "watch_answers.png",
        "watch_logps.png",
    }
    assert summary["watch"]["looks"] == 3
    card = (folder / "README.md").read_text()
    assert "simpo: -log σ(2·(A_w - A_l - 0.5))" in card
    assert "3 looks at the answers to 16 prompts" in card
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


@pytest.mark.parametrize("held_out", [{}, {"eval_dataset": "pairs.jsonl", "eval_strategy": "steps", "eval_steps": 2}])
@pytest.mark.parametrize("kind", [{}, {"use_peft": True}, {"objective": "reward"}], ids=["full", "lora", "reward"])
def test_every_kind_of_run_has_a_card_with_plots_and_samples(kind, held_out, work):
    train(None, **work, **kind, **held_out)
    card = Path("run/README.md").read_text()
    assert "## Samples" in card and "![loss](plots/loss.png)" in card


def test_the_samples_of_a_reward_model_are_its_scores(work):
    train(None, **work, objective="reward", eval_dataset="pairs.jsonl")
    heading, _, _, _, *rows = Path("run/samples.md").read_text().splitlines()
    assert heading == "# Scores of 8 held-out rows"
    scores = score_examples(open_reward_model("run"), list(load_preferences("pairs.jsonl"))[:8]).values
    assert [float(row.split("|")[-2]) for row in rows] == pytest.approx([s for pair in scores for s in pair], rel=0.01)


def test_the_resolved_recipe_gives_the_same_weights(work):
    train(None, **work)
    train("run/recipe.yaml", output_dir="again")
    one, two = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "values",
    [
        {"bf16": True},
        {"torch_dtype": "bfloat16"},
        {"torch_dtype": "bfloat16", "master_weights": False},
        {"gradient_checkpointing": True},
        {"road": "padded"},
        {"share_prompt": False},
        {"micro_batch_tokens": 40},
        {"objective": "sft", "columns": {"chosen": "response", "rejected": None}},
        {"loss_type": "hinge", "sft_weight": 0.5, "sft_normalization": "sequence"},
        {"simpo_gamma": 1.0, "beta": 2.0},
    ],
    ids=str,
)
def test_every_way_of_running_learns_the_pairs(work, values):
    summary = train(None, **{**work, "max_steps": 12, "learning_rate": 5e-3, **values})
    losses = [record["loss"] for record in read_log(Path("run/log.jsonl")) if "loss" in record]
    assert losses[-1] < losses[0]
    assert torch.isfinite(torch.tensor(summary["metrics"]["loss"]))


def test_ways_of_cutting_give_the_same_loss(work):
    losses = []
    for number, values in enumerate(({}, {"micro_batch_tokens": 30}, {"share_prompt": False}, {"road": "padded"})):
        train(None, **{**work, **values, "output_dir": f"run{number}"})
        losses.append([record["loss"] for record in read_log(Path(f"run{number}/log.jsonl")) if "loss" in record])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_training_prompts_are_generation_prompts(work, model_folder):
    from preftune.recipe import load_recipe
    from preftune.train.run import load_groups

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    groups, _ = load_groups(load_recipe(None, work), tokenizer, "pairs.jsonl", "train")
    for group, row in zip(groups, PAIRS, strict=True):
        assert group.prompt_ids == generation_prompt_ids(tokenizer, [Message("user", row["prompt"])])
        assert group.prompt_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("more", [{"max_length": 3, "truncation": "drop"}, {"decontaminate": "pairs.jsonl"}], ids=str)
def test_a_run_without_a_row_left_is_refused_with_the_reasons(work, more):
    with pytest.raises(
        DataError, match=r"pairs.jsonl\[train\] row 1: .* of 16 rows, which are all left out \(16 "
    ) as refused:
        train(None, **work, **more)
    assert "\n" not in str(refused.value)


ASKED = ("What is 1 plus 2?", "What is 3 plus 3?")
BENCHMARKS = {
    "a question a line": ("x.txt", "\n".join(ASKED)),
    "prompts": ("x.json", json.dumps([{"uid": 1, "prompt": question} for question in ASKED])),
    "turns": ("x.json", json.dumps([{"question_id": 81, "turns": ASKED, "reference": ["3"]}])),
    "turns as objects": ("x.json", json.dumps([{"turns": [{"content": question} for question in ASKED]}])),
    "answered": ("x.json", json.dumps([{"query": question, "response": "3"} for question in ASKED])),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_questions_of_a_benchmark_are_left_out_however_they_are_written(work, name):
    from preftune.recipe import load_recipe
    from preftune.train.run import load_groups

    file, content = BENCHMARKS[name]
    Path(file).write_text(content)
    tokenizer = AutoTokenizer.from_pretrained(work["model_name_or_path"])
    recipe = load_recipe(None, {**work, "decontaminate": file})
    groups, report = load_groups(recipe, tokenizer, "pairs.jsonl", "train")
    assert [len(rows) for rows in report.dropped.values()] == [2]
    assert len(groups) == 14


BAD_ROWS = {
    "missing column": ({"prompt": "a", "chosen": "b"}, "rejected"),
    "empty response": ({"prompt": "a", "chosen": "", "rejected": "c"}, "row 17"),
    "chosen is rejected": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 17"),
    "a number for text": ({"prompt": 5, "chosen": "b", "rejected": "c"}, "row 17"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_stops_the_run_before_anything_is_written(work, name):
    row, expected = BAD_ROWS[name]
    write_rows(Path("pairs.jsonl"), [*PAIRS, row])
    with pytest.raises(DataError) as refused:
        train(None, **work)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir()) == ["pairs.jsonl"]


def test_invalid_json_and_other_bytes_are_named_by_line(work, capsys):
    lines = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join([*lines, '{"prompt": "a", ']) + "\n")
    assert main(["train", *(f"{key}={value}" for key, value in work.items())]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("DataError: ")
    assert "pairs.jsonl" in error
    assert "17" in error
    Path("pairs.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')
    assert main(["train", *(f"{key}={value}" for key, value in work.items())]) == 2
    assert "UTF-8" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ({"learning_rate": "fast"}, RecipeError, "learning_rate"),
        ({"gama_beta_ratio": 0.5}, RecipeError, "gamma_beta_ratio"),
        ({"model_name_or_path": "./absent"}, ModelError, "does not exist"),
        ({"dataset": "absent.jsonl"}, DataError, "absent.jsonl"),
        ({"beta": -1}, RecipeError, "beta"),
        ({"objective": "simop"}, RecipeError, "simpo"),
        ({"torch_dtype": "float16"}, RecipeError, "needs a GPU"),
        ({"tokenizer_name_or_path": "./nowhere"}, ModelError, "does not exist"),
        ({"optim": "no_such_optimizer"}, RecipeError, "no_such_optimizer"),
        ({"lr_scheduler_type": "cosinus"}, RecipeError, "cosinus"),
    ],
    ids=str,
)
def test_bad_values_are_one_line_and_leave_nothing(work, values, error, expected):
    if values.get("torch_dtype") == "float16" and torch.cuda.is_available():
        return
    with pytest.raises(error) as refused:
        train(None, **{**work, **values})
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir()) == ["pairs.jsonl"]


def test_a_tokenizer_larger_than_the_model_is_refused(work, tmp_path, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(3)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="Set tokenizer_name_or_path"):
        train(None, **{**work, "tokenizer_name_or_path": str(tmp_path / "tokenizer")})


def test_a_row_longer_than_learned_positions_is_refused(work, tmp_path, model_folder):
    import transformers

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 12}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"pairs.jsonl\[train\] row \d+ has \d+ tokens, .*Set max_length: 12 or less"):
        train(None, **{**work, "model_name_or_path": str(tmp_path / "gpt2")})
    assert not Path("run").exists()


def test_a_fresh_run_sets_the_checkpoints_of_an_earlier_one_aside(work):
    saving = {**work, "save_strategy": "steps", "save_steps": 2}
    train(None, **saving)
    train(None, **{**saving, "max_steps": 2})
    assert sorted(os.listdir("run/earlier-1")) == [
        "checkpoint-2",
        "checkpoint-4",
        "log.jsonl",
        "margins.jsonl",
        "summary.json",
        "watch.jsonl",
    ]
    assert [name for name in os.listdir("run") if name.startswith("checkpoint")] == ["checkpoint-2"]
    with pytest.raises(CheckpointError, match="is of another run: seed 42 then, 1 now"):
        train(None, **{**saving, "max_steps": 2, "seed": 1, "resume_from_checkpoint": "true"})


def test_an_attention_that_does_not_exist_is_one_line(work):
    with pytest.raises(ModelError) as refused:
        train(None, **{**work, "attn_implementation": "flash"})
    assert "\n" not in str(refused.value)


def real(path: str) -> Path:
    root = os.environ.get("PREFTUNE_TEST_DATA")
    if root is None:
        pytest.skip("PREFTUNE_TEST_DATA is not set: it names the folder with real data")
    return Path(root) / path


def test_a_real_small_model_learns_real_pairs(tmp_path, monkeypatch):
    """The published 260K story model on emoji pairs: the held-out margin rises."""
    monkeypatch.chdir(tmp_path)
    pairs = real("preferences/emoji/dpo_emoji_english_gpt.train.jsonl")
    summary = train(
        None,
        model_name_or_path=str(real("models/stories260K-llama")),
        dataset=str(pairs),
        eval_dataset=str(pairs).replace(".train.", ".eval."),
        eval_strategy="steps",
        eval_steps=15,
        eval_on_start=True,
        max_length=256,
        total_batch_size=16,
        max_steps=15,
        learning_rate=1e-3,
        save_strategy="no",
        output_dir="run",
    )
    held_out = [record for record in read_log(Path("run/log.jsonl")) if "eval_loss" in record]
    assert held_out[-1]["eval_rewards/margins"] > held_out[0]["eval_rewards/margins"] + 0.05
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"]
    assert summary["road"] == "packed"


def test_the_catalogue_skips_rows_that_cutting_makes_equal_too(work):
    """Of a set that is known to hold bad rows, as of the rows that are bad as they stand."""
    alike = {"prompt": "Hi", "chosen": "ab " * 40 + "c", "rejected": "ab " * 40 + "d"}
    write_rows(Path("pairs.jsonl"), [*PAIRS, alike])
    Path("sets.yaml").write_text("mine: {path: pairs.jsonl, on_bad_row: skip}\nstrict: {path: pairs.jsonl}\n")
    named = {**work, "dataset": "mine", "dataset_catalog": "sets.yaml", "max_length": 30}
    assert train(None, **named)["rows"] == 16
    with pytest.raises(DataError, match=r"row 17"):
        train(None, **{**named, "dataset": "strict", "output_dir": "other"})


class TestHub:
    def test_a_hub_out_of_reach_is_one_line_before_anything_is_written(self, work, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(RecipeError, match=r"'push_to_hub': no repository for 'me/model'.*set push_to_hub: false"):
            train(None, **work, push_to_hub=True, hub_model_id="me/model")
        assert not Path("run").exists()

    def test_a_hub_that_goes_away_leaves_the_finished_run(self, work, monkeypatch, caplog):
        def gone(*_, **__):
            raise ConnectionError("no route")

        monkeypatch.setattr("preftune.train.saving.open_repo", lambda name, **_: name)
        monkeypatch.setattr("preftune.train.saving.push_folder", gone)
        summary = train(None, **work, push_to_hub=True, hub_model_id="me/model")
        assert summary["steps"] == 4
        assert "Saved in run, but not on the hub (ConnectionError: no route)." in caplog.text


def test_a_resume_keeps_the_micro_batch_that_memory_gave_at_the_start(work, monkeypatch, caplog):
    """Little memory at first, plenty afterwards: the cut is part of what the run is, bit for bit."""
    saving = {**work, "total_batch_size": 64, "save_strategy": "steps", "save_steps": 2}
    monkeypatch.setattr("preftune.train.budget.free_gib", lambda device: 0.0)
    write_rows(Path("pairs.jsonl"), PAIRS * 4)  # 64 rows of one step take more than they may
    train(None, **saving)
    monkeypatch.setattr("preftune.train.budget.free_gib", lambda device: None)
    resumed = {**saving, "output_dir": "again", "resume_from_checkpoint": "run/checkpoint-2"}
    with caplog.at_level("INFO"):
        train(None, **resumed)
    assert "micro-batches of up to 256 tokens" in caplog.text
    one, two = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    caplog.clear()
    with caplog.at_level("INFO"):
        train(None, **resumed, micro_batch_tokens=512)
    assert "micro-batches of up to 512 tokens" in caplog.text
