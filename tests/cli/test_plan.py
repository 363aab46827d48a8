"""`preftune plan` in-process: the page, the JSON, exit codes, bad input."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from preftune.cli.main import main
from tests.cli.test_check import CHATML, WORDS

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a model `m`: a config, and nothing else."""
    monkeypatch.chdir(tmp_path)
    LlamaConfig(vocab_size=100, max_position_embeddings=64, **SIZES).save_pretrained("m")
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def plan(capsys, *words: str) -> dict:
    return json.loads(run(capsys, *words, "--json")[1])


def test_every_engine_that_goes_with_the_devices_is_planned(capsys):
    names = [one["engine"] for one in plan(capsys, "--model", "m", "--gpus", "4")["engines"]]
    assert names == ["DDP", "FSDP2", "ZeRO-2", "ZeRO-2 + offload", "ZeRO-3", "ZeRO-3 + offload"]
    names = [one["engine"] for one in plan(capsys, "--model", "m")["engines"]]
    assert names == ["one process", "ZeRO-2 + offload", "ZeRO-3 + offload"]
    assert [one["engine"] for one in plan(capsys, "--model", "m", "--gpus", "0")["engines"]] == ["one process"]


def test_a_page_says_what_fits_and_what_to_change(capsys):
    code, out, _ = run(capsys, "--model", LLAMA, "--gpu-memory", "80", "--engine", "one")
    assert code == 1
    assert "8,030,261,248 parameters" in out and "by its published shape" in out
    assert out.splitlines()[-1].startswith("one process: fits with gradient_checkpointing=true")
    changes = out.splitlines()[-1].removeprefix("one process: fits with ").split()
    code, out, _ = run(capsys, "--model", LLAMA, "--gpu-memory", "80", "--engine", "one", *changes)
    assert code == 0 and "yes" in out


def test_more_gpus_are_named_where_they_help(capsys):
    found = plan(capsys, "--model", LLAMA, "--gpus", "2", "--gpu-memory", "40", "--engine", "zero3")["engines"][0]
    assert found["fits"] is False and found["fits_on_gpus"] in (4, 8, 16)
    wider = plan(capsys, "--model", LLAMA, "--gpus", str(found["fits_on_gpus"]), "--gpu-memory", "40")
    assert next(one for one in wider["engines"] if one["engine"] == "ZeRO-3")["fits"] is True


def test_the_reference_is_what_the_recipe_keeps(capsys):
    def reference(*keys: str) -> float:
        (one,) = plan(capsys, "--model", "m", "--engine", "one", "objective=dpo", *keys)["engines"]
        return one["memory_gib"]["reference"] * 2**30 / 4 / one["memory_gib"]["parameters"]

    assert reference() == 1  # a copy of what trains
    assert reference("precompute_reference=true") == reference("use_peft=true") == 0
    assert reference("reference_model_name_or_path=other") == 1
    assert 0 < reference("freeze=[embeddings, head]") < 1


def test_a_micro_batch_is_as_large_as_fits(capsys):
    words = ("--model", LLAMA, "--engine", "one", "use_peft=true", "gradient_checkpointing=true")
    roomy = plan(capsys, *words, "--gpu-memory", "80")["engines"][0]
    tight = plan(capsys, *words, "--gpu-memory", "36")["engines"][0]
    assert roomy["micro_batch_tokens"] == 8192 and 2048 <= tight["micro_batch_tokens"] < 8192
    assert tight["memory_gib"]["total"] <= 35 < roomy["memory_gib"]["total"]


def test_as_few_layers_are_checkpointed_as_memory_asks_for(capsys):
    words = ("--model", LLAMA, "--engine", "one", "use_peft=true", "torch_dtype=bfloat16")

    def planned(memory: str, layers: str) -> tuple[int, int, bool]:
        found = plan(capsys, *words, f"checkpoint_layers={layers}", "--gpu-memory", memory)["engines"][0]
        return found["checkpoint_layers"], found["micro_batch_tokens"], found["fits"]

    def total(layers: int) -> float:
        return plan(capsys, *words, f"checkpoint_layers={layers}")["engines"][0]["memory_gib"]["total"] + 1  # of CUDA

    assert planned("500", "auto") == (0, 8192, True)
    assert planned(f"{total(12) + 0.01}", "auto") == (12, 8192, True)
    assert planned(f"{total(12) - 0.01}", "auto") == (13, 8192, True)
    every, fewer_tokens, fits = planned(f"{total(32) - 1}", "auto")
    assert (every, fits) == (32, True) and fewer_tokens < 8192
    assert plan(capsys, *words, "gradient_checkpointing=true")["engines"][0]["checkpoint_layers"] == 32
    every = "activation_checkpointing_kwargs={every_n_layers: 3}"
    assert plan(capsys, *words, "gradient_checkpointing=true", every)["engines"][0]["checkpoint_layers"] == 11
    _, out, _ = run(capsys, *words, "checkpoint_layers=auto", "--gpu-memory", "500")
    assert "8,192 tokens, 0 layers checkpointed" in out


def test_rows_of_a_file_are_as_long_as_they_are(capsys, folder):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained("m")
    rows = [
        {"prompt": "w1 w2", "chosen": "w3 w4 w5", "rejected": "w6"},
        {"prompt": "w7", "chosen": "w8 w9", "rejected": "w1"},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = plan(capsys, "--model", "m", "--data", "pairs.jsonl")["lengths"]
    # prompt: 3 markers and 2 words around w1 w2, then w3 w4 w5 and w6 (their last tokens, the ends, are not fed)
    assert lengths["source"].startswith("2 rows") and lengths["longest"] < 20
    assert plan(capsys, "--model", "m", "max_length=50")["lengths"]["longest"] == 100


@pytest.mark.parametrize(
    "dataset",
    ["dataset=[nobody/has-it, nor/this]", "dataset={nobody/has-it: 0.5}", "dataset_mixer={nobody/has-it: 1.0}"],
)
def test_several_data_sets_of_the_hub_are_not_read(capsys, monkeypatch, dataset):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = plan(capsys, "--model", "m", dataset, "max_length=50")
    assert found["lengths"]["longest"] == 100
    assert "the data is not on this machine, so rows are as long as max_length allows" in found["notes"]


@pytest.mark.parametrize("key", ["dataset_num_proc=2", "dataset_splits=[train]", "dataset_configs=null"])
def test_a_key_about_data_names_none(capsys, key):
    found = plan(capsys, "--model", "m", key, "max_length=50")
    assert found["lengths"]["longest"] == 100


def test_advice_keeps_what_the_recipe_says_of_the_accelerator(capsys):
    """A LoRA run would do, but it fits with less: gradients that are reduced after every micro-batch."""
    words = ("--model", LLAMA, "--gpus", "4", "--engine", "fsdp", "gradient_checkpointing=true", "bf16=true")
    theirs = 'accelerator_config={"even_batches": false, "gradient_accumulation_kwargs": {"num_steps": 1}}'
    (found,) = plan(capsys, *words, theirs, "--gpu-memory", "56")["engines"]
    (change,) = found["changes"]
    assert json.loads(change.removeprefix("accelerator_config=")) == {
        "even_batches": False,
        "gradient_accumulation_kwargs": {"num_steps": 1, "sync_each_batch": True},
    }


def test_what_an_engine_refuses_is_said(capsys):
    found = plan(capsys, "--model", "m", "--gpus", "2", "torch_dtype=bfloat16", "master_weights=split")
    assert [one["engine"] for one in found["engines"]] == ["DDP"]
    assert "need whole weights" in found["refused"]["ZeRO-3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is no model. Name a recipe, or --model"),
        (("--model", "nobody-knows-it"), "'nobody-knows-it' has no config.json to be had"),
        (("--model", "m", "--engine", "ddp"), "--engine ddp does not go with one device. Choose one, zero2, zero3"),
        (("--model", "m", "--engine", "tp"), "--engine tp: expected one of one, ddp, fsdp, zero2, zero3"),
        (("--model", "m", "a.yaml", "b.yaml"), "one recipe is expected"),
        (("--model", "m", "objective=ppo"), "ppo"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, words, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = run(capsys, *words)
    assert code == 2 and not out
    assert said in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [("--gpus", "-1"), ("--gpu-memory", "0"), ("--gpu-memory", "nan")])
def test_numbers_out_of_range_are_refused(capsys, words):
    assert main(["plan", "--model", "m", *words]) == 2
    assert "expected" in capsys.readouterr().err
