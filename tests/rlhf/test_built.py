"""Flags down to what is built: optimizer, schedule, adapter, batch, data."""

import json

import pytest
import torch

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.data.system import with_system
from preftune.recipe import load_recipe
from preftune.recipe.rlhf import build_recipe, read_flags
from preftune.train import needs
from preftune.train.data import load_groups
from preftune.train.models import load_trained_model
from preftune.train.run import build_arguments
from preftune.train.trainer import PreferenceTrainer
from preftune.types import Example, Layout, Message, Origin
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with its tokenizer, and thirty pairs."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_byte_tokenizer(CHATML)
    build_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"Say {n}.", "chosen": f"yes {n}", "rejected": "no"} for n in range(30)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def build(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def build(line=""):
        words = f"--model_id_or_path {folder} --dataset {folder}/pairs.jsonl --output_dir {tmp_path} {line}"
        recipe = build_recipe(read_flags(words.split(), "simpo"))
        tokenizer = build_byte_tokenizer(CHATML)
        groups, _ = load_groups(recipe, tokenizer, recipe.dataset, "train")
        model = load_trained_model(recipe, tokenizer)
        return PreferenceTrainer(
            model,
            build_arguments(recipe),
            objective=recipe.build_objective(),
            sft_weight=recipe.effective_sft_weight,
            train_dataset=groups,
            eval_dataset=groups[:2],
            processing_class=tokenizer,
            keep_dropout=not recipe.disable_dropout,
        )

    return build


def optimizer_of(trainer, steps=100):
    trainer.create_optimizer_and_scheduler(steps)
    return trainer.optimizer


def test_the_documented_optimizer(build):
    first = optimizer_of(build()).param_groups[0]
    assert (first["initial_lr"], first["betas"], first["weight_decay"]) == (1e-4, (0.9, 0.95), 0.1)


def test_optimizer_flags(build):
    line = "--learning_rate 5e-7 --adam_beta1 0.8 --adam_beta2 0.9 --weight_decay 0.3 --optim sgd"
    built = optimizer_of(build(line))
    assert isinstance(built, torch.optim.SGD) and built.param_groups[0]["weight_decay"] == 0.3
    assert optimizer_of(build(line.replace("--optim sgd", ""))).param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(("line", "expected"), [("", 5), ("--warmup_ratio 0.2", 20), ("--warmup_steps 7", 7)])
def test_the_schedule_warms_up_as_long_as_asked(build, line, expected):
    trainer = build(line)
    optimizer_of(trainer)
    rate = trainer.lr_scheduler.lr_lambdas[0]
    assert rate(expected) == 1 and rate(expected - 1) < 1


def test_the_schedule_has_the_form_that_is_asked_for(build):
    trainer = build("--lr_scheduler_type linear --warmup_ratio 0")
    optimizer_of(trainer)
    assert trainer.lr_scheduler.lr_lambdas[0](25) == 0.75


@pytest.mark.parametrize(
    ("line", "layers"),
    [("", {"q_proj", "k_proj", "v_proj"}), ("--lora_target_modules up_proj", {"up_proj"})],
)
def test_the_adapter_goes_where_it_is_asked(build, line, layers):
    model = build(line).model
    assert {name.split(".")[-4] for name, p in model.named_parameters() if "lora_A" in name} == layers


def test_adapter_flags(build):
    config = build("--lora_rank 3 --lora_alpha 6 --lora_dropout 0.2 --use_rslora true").model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (3, 6, 0.2, True)


def test_lora_dropout_acts_while_training(build):
    chances = {m.p for m in build().model.modules() if isinstance(m, torch.nn.Dropout) and m.p}
    assert chances == {0.05}


def test_full_training_trains_every_weight(build):
    assert all(p.requires_grad for p in build("--sft_type full").model.parameters())
    frozen = build("--sft_type full --freeze_parameters embeddings").model.get_input_embeddings()
    assert not frozen.weight.requires_grad


@pytest.mark.parametrize(("line", "groups"), [("", 16), ("--batch_size 2 --gradient_accumulation_steps 3", 6)])
def test_a_step_holds_the_groups_that_are_asked_for(build, line, groups):
    assert build(line).args.train_batch_size == groups


@pytest.mark.parametrize(("line", "rows"), [("", 29), ("--dataset_test_ratio 0.2", 24), ("--dataset_test_ratio 0", 30)])
def test_the_rest_of_the_data_is_trained_on(build, line, rows):
    assert len(build(line).train_dataset) == rows


def test_a_number_of_rows_is_drawn(folder):
    words = f"--model_id_or_path {folder} --dataset {folder}/pairs.jsonl#10 --dataset_test_ratio 0".split()
    recipe = build_recipe(read_flags(words, "simpo"))
    assert len(load_groups(recipe, build_byte_tokenizer(CHATML), recipe.dataset, "train")[0]) == 10


def test_rows_that_are_too_long_are_left_out_or_cut(build):
    longest = max(len(g.prompt_ids) + max(map(len, g.response_ids)) for g in build().train_dataset)
    assert len(build(f"--max_length {longest - 1}").train_dataset) < 29
    assert len(build(f"--max_length {longest - 1} --truncation_strategy truncation_left").train_dataset) == 29


def test_a_system_text_goes_in_front_of_rows_that_have_none(build):
    trainer = build("--template_type chatml --system Brief.")
    text = trainer.processing_class.decode(trainer.train_dataset[0].prompt_ids)
    assert text.startswith("<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n")


def test_a_row_keeps_its_own_system_text():
    own = Example((Message("system", "own"), Message("user", "a")), ("b",), Origin("d", "train", 1))
    none = Example((Message("user", "a"),), ("b",), Origin("d", "train", 2))
    first, second = with_system([own, none], "given")
    assert first is own and second.prompt[0] == Message("system", "given")
    assert with_system([none], None) == [none]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"system": "own", "query": "q", "response": "a"}', ["own"]),
        ("a.jsonl", '{"system": "", "query": "q", "response": "a"}', []),
        ("a.jsonl", '{"system": null, "query": "q", "response": "a"}', ["given"]),
        ("a.jsonl", '{"query": "q", "response": "a"}', ["given"]),
        ("a.csv", "system,query,response\n,q,a\n", ["given"]),
    ],
)
def test_an_empty_system_text_in_a_row_is_meant_and_null_or_an_empty_cell_says_nothing(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    (example,) = with_system(load_preferences(tmp_path / name, layout=Layout.SINGLE), "given")
    assert [said.content for said in example.prompt if said.role == "system"] == expected


def test_the_nll_term_has_its_weight(build):
    assert build().loss.sft_weight == 1.0
    assert build("--cpo_alpha 0.2").loss.sft_weight == 0.2


def test_streaming_reads_the_file_row_by_row_and_holds_nothing_out(folder, tmp_path, capsys):
    line = f"simpo --model_id_or_path {folder} --dataset {folder}/pairs.jsonl --output_dir {tmp_path} --sft_type full"
    assert main(f"{line} --streaming true --streaming_buffer_size 16 --max_steps 1 --report_to none".split()) == 0
    assert "Nothing is held out of a stream" in capsys.readouterr().err
    found = load_recipe(tmp_path / "recipe.yaml")
    assert (found.streaming, found.streaming_buffer, found.test_split_size) == (True, 16, None)
    assert json.loads((tmp_path / "summary.json").read_text())["data"]["rows_read"] == 30


def test_a_stream_evaluates_on_a_set_of_its_own(folder):
    line = f"--model_id_or_path {folder} --dataset a.jsonl --val_dataset b.jsonl --streaming true --max_steps 4"
    found = build_recipe(read_flags(line.split(), "simpo"))
    assert (found.streaming, found.eval_dataset, found.test_split_size) == (True, ["b.jsonl"], None)


@pytest.mark.parametrize("processes", ["", "2"])
def test_deepspeed_that_is_not_installed_is_one_line_before_anything_is_read(processes, monkeypatch, capsys):
    monkeypatch.setenv("NPROC_PER_NODE", processes)
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    assert main("simpo --model_id_or_path m --dataset none.jsonl --deepspeed default-zero2".split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "MissingExtraError: --deepspeed: 'deepspeed' needs the 'deepspeed' extra, which is not installed. "
        "Run: pip install 'preftune[deepspeed]'"
    )
