"""`PreferenceTrainer` from Python, with data sets in TRL's formats."""

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from preftune import PreferenceTrainer
from preftune.errors import DataError, RecipeError
from preftune.train.raw import is_raw
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_groups, build_model

ASK = [{"role": "user", "content": "Say yes."}]
OTHER = [{"role": "user", "content": "Say no."}]


def answer(text):
    return [{"role": "assistant", "content": text}]


TEXT = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "hm"} for n in range(4)]
MESSAGES = [{"prompt": ASK, "chosen": answer(f"yes {n}"), "rejected": answer("no")} for n in range(4)]
IMPLICIT = [{"chosen": ASK + answer(f"yes {n}"), "rejected": ASK + answer("no")} for n in range(4)]
UNPAIRED = [
    {"prompt": ASK, "completion": answer("yes"), "label": True},
    {"prompt": OTHER, "completion": answer("yes"), "label": False},
]
RANKED = [{"prompt": "Say yes.", "responses": ["yes", "well", "no"], "scores": [2.0, 1.0, 0.0]}] * 2
ALONE = [{"messages": ASK + answer("yes")}, {"messages": OTHER + answer("no")}]
FORMATS = [
    ("simpo", TEXT),
    ("dpo", MESSAGES),
    ("cpo", IMPLICIT),
    ("kto", UNPAIRED),
    ("rrhf", RANKED),
    ("sft", ALONE),
    ("orpo", RANKED),
]


def arguments(tmp_path, **changes):
    values = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1, "report_to": "none"}
    return TrainingArguments(str(tmp_path), **{**values, "use_cpu": True, "disable_tqdm": True, **changes})


def trainer(tmp_path, rows, objective="simpo", **more):
    tokenizer = build_byte_tokenizer(CHATML)
    model = build_model(vocab_size=len(tokenizer))
    values = {"processing_class": tokenizer, "args": arguments(tmp_path), **more}
    return PreferenceTrainer(model, objective=objective, train_dataset=rows, **values)


@pytest.mark.parametrize(("objective", "rows"), FORMATS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FORMATS)])
def test_a_step_is_trained_on_each_of_trls_formats(tmp_path, objective, rows):
    run = trainer(tmp_path, Dataset.from_list(rows), objective)
    result = run.train()
    assert result.global_step == 1 and result.training_loss > 0


def test_plain_training_arguments_are_folded_into_whole_steps(tmp_path):
    run = trainer(tmp_path, TEXT)
    assert (run.args.train_batch_size, run.args.gradient_accumulation_steps) == (2, 1)


def test_a_config_with_more_fields_gives_those_of_training_arguments(tmp_path):
    from dataclasses import dataclass

    @dataclass
    class Config(TrainingArguments):
        beta: float = 0.1

    args = Config(str(tmp_path), learning_rate=3e-7, report_to="none", use_cpu=True)
    assert trainer(tmp_path, TEXT, args=args).args.learning_rate == 3e-7


def test_rows_are_encoded_as_those_of_a_file(tmp_path):
    run = trainer(tmp_path, Dataset.from_list(TEXT), eval_dataset={"held": Dataset.from_list(TEXT[:1])})
    group = run.train_dataset[0]
    assert run.processing_class.decode(group.prompt_ids).startswith("<|im_start|>user\nSay 0.")
    assert str(group.origin) == "train_dataset[train] row 1"
    assert run.eval_dataset["held"][0].response_ids == group.response_ids


def test_max_length_cuts_rows_of_text(tmp_path):
    rows = [{"prompt": "Say yes.", "chosen": "y" * 90, "rejected": "n" * 90}]
    run = trainer(tmp_path, rows, max_length=80)
    assert max(len(run.train_dataset[0].prompt_ids) + len(ids) for ids in run.train_dataset[0].response_ids) == 80


def test_rows_of_text_need_a_tokenizer(tmp_path):
    with pytest.raises(RecipeError, match="Pass processing_class=tokenizer"):
        trainer(tmp_path, TEXT, processing_class=None)


def test_a_wrong_row_is_named_by_its_number(tmp_path):
    with pytest.raises(DataError, match=r"train_dataset\[train\] row 2"):
        trainer(tmp_path, [TEXT[0], {**TEXT[1], "rejected": TEXT[1]["chosen"]}])


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="'train_dataset' holds no rows"):
        trainer(tmp_path, Dataset.from_list(TEXT).select([]))


def test_token_groups_stay_as_they_are():
    assert not is_raw(build_groups(2))
