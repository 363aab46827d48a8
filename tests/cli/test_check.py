"""`preftune check` in-process: the page, the JSON that scripts rely on, exit codes, bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from preftune import check
from preftune.cli.main import main
from preftune.data import generation_prompt_ids
from preftune.types import Message

CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
# ids: <unk> 0, <|im_start|> 1, <|im_end|> 2, user 3, assistant 4, w0 5, w1 6, ...
WORDS = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", *(f"w{n}" for n in range(50))]
GOOD = [
    {"prompt": "w1 w2", "chosen": "w3 w4 w5", "rejected": "w6"},
    {"prompt": "w7", "chosen": "w8", "rejected": "w9 w10"},
    {"prompt": "w11", "chosen": "w12 w13", "rejected": "w14 w15"},
]
EQUAL = {"prompt": "w1", "chosen": "w2", "rejected": "w2"}
EMPTY = {"prompt": "w1", "chosen": "", "rejected": "w2"}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a model `m` (tokenizer and config, no weights) and three good pairs."""
    monkeypatch.chdir(tmp_path)
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained("m")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes).save_pretrained("m")
    write(tmp_path / "pairs.jsonl", GOOD)
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def as_json(capsys, *words: str) -> dict:
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


# --- what scripts rely on


def test_the_json_has_mapping_counts_and_examples_with_ids(capsys):
    found = as_json(capsys, "pairs.jsonl", "--model", "m", "--examples", "2")
    assert {"mapping", "rows", "dropped", "truncated", "lengths", "warnings", "examples"} <= found.keys()
    assert found["mapping"] == {
        "layout": "paired",
        "form": "paired",
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        "kinds": {"prompt": "text", "chosen": "text", "rejected": "text"},
        "unused": [],
    }
    assert (found["rows"], found["dropped"], found["truncated"]) == (3, 0, 0)
    assert found["examples"] == [
        {
            "origin": "pairs.jsonl[train] row 1",
            "prompt_ids": [1, 3, 6, 7, 2, 1, 4],  # <|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant
            "responses": [{"ids": [8, 9, 10, 2], "scored": 4}, {"ids": [11, 2], "scored": 2}],
        },
        {
            "origin": "pairs.jsonl[train] row 2",
            "prompt_ids": [1, 3, 12, 2, 1, 4],
            "responses": [{"ids": [13, 2], "scored": 2}, {"ids": [14, 15, 2], "scored": 3}],
        },
    ]
    assert found["lengths"]["prompt"] == {"mean": pytest.approx(19 / 3), "p50": 6, "p90": 7, "p99": 7, "max": 7}
    assert found["lengths"]["chosen"]["max"] == 4 and found["lengths"]["rejected"]["max"] == 3


def test_the_ids_are_those_that_are_sampled_from(capsys):
    found = as_json(capsys, "pairs.jsonl", "--model", "m")
    tokenizer = AutoTokenizer.from_pretrained("m")
    wanted = [generation_prompt_ids(tokenizer, [Message("user", row["prompt"])]) for row in GOOD]
    assert [example["prompt_ids"] for example in found["examples"]] == wanted


def test_steps_and_tokens_follow_the_batch(capsys):
    found = as_json(capsys, "pairs.jsonl", "--model", "m", "total_batch_size=2", "num_train_epochs=3")
    # rows of prompt + chosen + rejected, each response without its last token: 7+3+1, 6+1+2, 6+2+2
    assert found["tokens_per_epoch"] == found["savings"]["shared"] == 11 + 9 + 10
    assert found["savings"]["unshared"] == 11 + 9 + 10 + 7 + 6 + 6
    assert (found["batch"], found["steps"]) == (2, 6)
    assert as_json(capsys, "pairs.jsonl", "--model", "m", "max_steps=5")["steps"] == 5


def test_memory_is_estimated_from_the_config_alone(capsys):
    memory = as_json(capsys, "pairs.jsonl", "--model", "m")["memory_gib"]
    layer = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8
    assert memory["parameters"] == 2 * len(WORDS) * 8 + 2 * layer + 8
    assert memory["weights"] == pytest.approx(4 * memory["parameters"] / 2**30)
    frozen = as_json(capsys, "pairs.jsonl", "--model", "m", "freeze=[embeddings, head]")["memory_gib"]
    assert frozen["trainable"] == 2 * layer + 8
    dpo = as_json(capsys, "pairs.jsonl", "--model", "m", "--objective", "dpo")["memory_gib"]
    assert dpo["reference"] == pytest.approx(dpo["weights"])


def test_a_reward_model_has_a_score_head_and_is_fed_the_last_token(capsys):
    found = as_json(capsys, "pairs.jsonl", "--model", "m", "--objective", "reward")
    layer = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8
    assert found["memory_gib"]["parameters"] == len(WORDS) * 8 + 2 * layer + 8 + 8
    assert found["savings"]["shared"] == 11 + 9 + 10 + 6  # one more for each of six responses


def test_an_adapter_is_counted_by_its_own_parameters(capsys):
    pytest.importorskip("peft")
    words = ("pairs.jsonl", "--model", "m", "--objective", "dpo", "use_peft=true", "lora_r=2", "lora_init=pissa")
    memory = as_json(capsys, *words, "lora_target_modules=[q_proj]")["memory_gib"]
    assert memory["trainable"] == 2 * 2 * (8 + 8)
    assert memory["reference"] == pytest.approx(4 * memory["trainable"] / 2**30)  # PiSSA's start is not the base model


def test_a_tokenizer_alone_is_enough(capsys):
    Path("m/config.json").unlink()
    assert as_json(capsys, "pairs.jsonl", "--model", "m")["memory_gib"] is None
    code, out, _ = run(capsys, "pairs.jsonl", "--model", "m")
    assert code == 0 and "none: 'm' has no config.json to be had" in out


def test_nothing_is_written(capsys, folder):
    before = sorted(os.walk(folder))
    run(capsys, "pairs.jsonl", "--model", "m")
    assert sorted(os.walk(folder)) == before


# --- what can be named


def test_a_recipe_with_overrides_and_held_out_rows(capsys):
    Path("my.yaml").write_text(
        "model_name_or_path: m\ndataset: pairs.jsonl\neval_dataset: held.jsonl\nbeta: 2.5\nmax_length: 9\n"
    )
    write(Path("held.jsonl"), [GOOD[0], {"prompt": "w40", "chosen": "w1", "rejected": "w2"}])
    found = as_json(capsys, "my.yaml")
    assert (found["truncated"], found["held_out"]) == (1, {"rows": 2, "dropped": 0, "seen": 1})
    assert any("1 of 2 evaluation rows have a prompt that is trained on" in line for line in found["warnings"])
    assert as_json(capsys, "my.yaml", "max_length=64")["truncated"] == 0
    assert as_json(capsys, "my.yaml", "--max-length", "64", "--beta=3")["truncated"] == 0


def test_a_json_file_of_keys_is_a_recipe_and_one_of_rows_is_data(capsys):
    Path("recipe.json").write_text(json.dumps({"model_name_or_path": "m", "dataset": "rows.json"}))
    Path("rows.json").write_text(json.dumps(GOOD))
    assert as_json(capsys, "recipe.json")["rows"] == 3
    assert as_json(capsys, "rows.json", "--model", "m")["rows"] == 3


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("pairs.jsonl", "more.jsonl"), 5),
        (("pairs.jsonl,more.jsonl",), 5),
        (("{pairs.jsonl: 1.0, more.jsonl: 0.5}",), 4),
        (("dataset={pairs.jsonl: 1.0, more.jsonl: 0.5}",), 4),
        (("[pairs.jsonl, more.jsonl]",), 5),
        (("hh-rlhf=hh",), 3),
        (("a=b.jsonl",), 3),
    ],
)
def test_data_is_named_as_in_a_recipe(capsys, words, rows):
    write(Path("more.jsonl"), GOOD[:2])
    write(Path("a=b.jsonl"), GOOD)
    Path("hh").mkdir()
    texts = [{k: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[k]}" for k in ("chosen", "rejected")} for row in GOOD]
    write(Path("hh/train.jsonl"), texts)
    found = as_json(capsys, *words, "--model", "m")
    assert found["rows"] == rows
    if "more.jsonl" in words[-1]:
        assert len(found["sources"]) == 2


def test_columns_and_an_objective_decide_how_rows_are_read(capsys):
    write(Path("mine.jsonl"), [{"q": row["prompt"], "a": row["chosen"], "b": row["rejected"], "n": 1} for row in GOOD])
    words = ("mine.jsonl", "--model", "m", "--columns", "q=prompt", "a=chosen", "b=rejected", "n=")
    found = as_json(capsys, *words)
    assert found["mapping"]["columns"] == {"prompt": "q", "chosen": "a", "rejected": "b"}
    kto = as_json(capsys, "pairs.jsonl", "--model", "m", "--objective", "kto")
    assert kto["rows"] == 6 and kto["survey"]["bias"]["pairs"] == 0
    assert any(note.startswith("Classes: 3 desirable rows") for note in kto["notes"])
    assert "come on top" in run(capsys, "pairs.jsonl", "--model", "m", "--objective", "kto")[1]
    sft = as_json(capsys, "pairs.jsonl", "--model", "m", "--objective", "sft")
    assert [len(example["responses"]) for example in sft["examples"]] == [1, 1, 1]


def test_a_split_is_looked_at_by_name(capsys):
    Path("set").mkdir()
    write(Path("set/train.jsonl"), GOOD)
    write(Path("set/test.jsonl"), GOOD[:1])
    assert as_json(capsys, "set", "--model", "m", "--split", "test")["rows"] == 1


# --- the page


def test_the_page_shows_what_is_scored_between_markers_and_ids_when_asked(capsys):
    code, out, err = run(capsys, "pairs.jsonl", "--model", "m", "--examples", "1", "--ids")
    assert (code, err) == (0, "")
    assert "pairs.jsonl[train]: paired: prompt = 'prompt' (text)" in out
    assert "chosen (4 tokens): ⟦w3 w4 w5 <|im_end|>⟧" in out
    assert "ids [1, 3, 6, 7, 2, 1, 4]" in out and "ids [8, 9, 10, 2]" in out
    assert "⟦<|im_start|>" not in out  # the prompt is not scored
    assert "3 of 3 prompts" in out and "6 of 6 responses" in out
    assert "\x1b" not in out
    assert "ids [" not in run(capsys, "pairs.jsonl", "--model", "m")[1]


def test_no_examples_are_shown_when_none_are_asked_for(capsys):
    assert "Examples" not in run(capsys, "pairs.jsonl", "--model", "m", "--examples", "0")[1]


def test_scored_tokens_are_coloured_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = run(capsys, "pairs.jsonl", "--model", "m", "--examples", "1")[1]
    assert "\x1b[32mw3 w4 w5 <|im_end|>\x1b[0m" in out and "⟦" not in out


# --- exit codes


def test_a_bad_row_is_the_line_of_the_run_and_all_of_them_are_counted(capsys):
    write(Path("bad.jsonl"), [*GOOD, EQUAL, EMPTY, EQUAL])
    code, out, err = run(capsys, "bad.jsonl", "--model", "m")
    first, second = err.splitlines()
    assert code == 1 and out == ""
    assert main(["train", "model_name_or_path=m", "dataset=bad.jsonl"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == first
    assert first.startswith("DataError: bad.jsonl[train] row 4: 'chosen' and 'rejected' are the same")
    assert second == (
        "3 of 6 rows are bad: equal answers 2 (bad.jsonl[train] row 4, row 6), empty answer 1 (bad.jsonl[train] row 5)."
        " on_bad_row: skip leaves them out."
    )


def test_bad_rows_are_counted_with_skip(capsys):
    write(Path("bad.jsonl"), [*GOOD, EQUAL, EMPTY])
    found = as_json(capsys, "bad.jsonl", "--model", "m", "--on-bad-row", "skip")
    assert (found["rows"], found["dropped"]) == (3, 2)
    assert found["dropped_by"] == {"equal answers": 1, "empty answer": 1}
    assert any("2 of 5 rows (40 %) cannot be trained on" in line for line in found["warnings"])


def test_what_the_reader_of_the_file_warns_of_is_among_the_warnings(capsys):
    write(Path("scored.jsonl"), [{**row, "chosen_score": 1, "rejected_score": 2 * n} for n, row in enumerate(GOOD)])
    found = as_json(capsys, "scored.jsonl", "--model", "m")
    line = "scored.jsonl[train]: in 2 of 3 pairs the rejected answer has the higher score."
    assert [warning for warning in found["warnings"] if warning.startswith(line)]


def test_rows_that_tokenising_leaves_out_are_counted_by_reason(capsys):
    write(Path("long.jsonl"), [*GOOD, {"prompt": "w1", "chosen": "w2 " * 30, "rejected": "w3"}, GOOD[0]])
    words = ("long.jsonl", "--model", "m", "--max-length", "20", "--truncation", "drop", "dedupe=true")
    found = as_json(capsys, *words)
    assert (found["rows"], found["dropped"]) == (3, 2)
    assert found["dropped_by"] == {"duplicates": 1, "longer than max_length": 1}
    assert any("1 of 5 rows (20 %) are dropped as longer than max_length 20" in line for line in found["warnings"])


def test_a_template_that_refuses_a_conversation_is_exit_code_1(capsys):
    refuses = "{% if messages[0]['content'] == 'w7' %}{{ raise_exception('not this') }}{% endif %}" + CHATML
    Path("refuses.jinja").write_text(refuses)
    code, _, err = run(capsys, "pairs.jsonl", "--model", "m", "--chat-template", "refuses.jinja")
    assert code == 1 and err.startswith("DataError: pairs.jsonl[train] row 2: the chat template refuses")


def test_a_failure_is_json_too(capsys):
    write(Path("bad.jsonl"), [*GOOD, EQUAL])
    code, out, err = run(capsys, "bad.jsonl", "--model", "m", "--json")
    found = json.loads(out)
    assert code == 1 and err.startswith(found["error"])
    assert found["bad_rows"]["problems"]["equal answers"]["count"] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nowhere.jsonl",), "DataError: nowhere.jsonl"),
        (("kto.jsonl",), "Set objective: kto"),
        (("tail.jsonl", "--max-length", "4"), "become the same 2 tokens"),
        (("pairs.jsonl", "--max-length", "4", "--truncation", "drop"), "3 rows, which are all left out"),
        (("pairs.jsonl", "--max-length", "8", "--truncation", "error"), "DataError: pairs.jsonl[train] row 1"),
        (("same.jsonl", "--objective", "kto"), "rows have the same prompt"),
        (("pairs.jsonl", "tokenizer_name_or_path=m", "--model", "small"), "ModelError: The tokenizer has 55 tokens"),
        (("pairs.jsonl", "tokenizer_name_or_path=m", "--model", "learned"), "Set max_length: 8 or less"),
        (("set", "--split", "validation"), "validation"),
        (("pairs.jsonl", "eval_dataset=bad.jsonl"), "DataError: bad.jsonl[test] row 1"),
    ],
    ids=str,
)
def test_what_would_stop_a_run_is_exit_code_1_and_one_line(capsys, words, line):
    from transformers import GPT2Config

    write(Path("kto.jsonl"), [{"prompt": "w1", "completion": "w2", "label": True}])
    write(Path("same.jsonl"), [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}])
    write(Path("bad.jsonl"), [EQUAL])
    write(Path("tail.jsonl"), [{"prompt": "w1", "chosen": "w2 w3 w4", "rejected": "w2 w3 w5"}])
    Path("set").mkdir()
    write(Path("set/train.jsonl"), GOOD)
    LlamaConfig(vocab_size=20).save_pretrained("small")
    GPT2Config(vocab_size=len(WORDS), n_positions=8, n_embd=8, n_layer=1, n_head=1).save_pretrained("learned")
    code, out, err = run(capsys, *words, *(() if "--model" in words else ("--model", "m")))
    assert (code, out) == (1, "")
    assert line in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "there is nothing to look at"),
        (("pairs.jsonl",), "Add --model"),
        (("pairs.jsonl", "--model", "./none"), "ModelError: The folder './none' does not exist"),
        (("none.yaml",), "RecipeError: none.yaml: there is no such file"),
        (("pairs.jsonl", "--model", "m", "betta=2"), "'betta' is not a key"),
        (("pairs.jsonl", "--model", "m", "--max-length", "many"), "'max_length' must be"),
        (("pairs.jsonl", "--model", "m", "--on-bad-row", "ignore"), "'on_bad_row' must be"),
        (("pairs.jsonl", "--model", "m", "--objective", "simp"), "simp"),
        (("pairs.jsonl", "--model", "m", "--examples", "-1"), "expected a whole number"),
        (("pairs.jsonl", "--model", "m", "--columns", "prompt"), "expected NAME=ROLE"),
        (("pairs.jsonl", "--model", "m", "--columns", "prompt=question1"), "not known"),
        (("pairs.jsonl", "--model", "m", "--colour"), "'--colour' has no value"),
        (("r.yaml", "pairs.jsonl"), "'pairs.jsonl' is one too many"),
    ],
    ids=str,
)
def test_what_cannot_be_understood_is_exit_code_2(capsys, words, line):
    Path("r.yaml").write_text("model_name_or_path: m\ndataset: pairs.jsonl\n")
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert line in err


# --- from Python, and on published data


def test_the_same_from_python(capsys):
    report = check(model_name_or_path="m", dataset="pairs.jsonl")
    assert report.tokens.rows == 3 and report.survey.bias.better_longer == 1
    assert report.to_dict(examples=3) == as_json(capsys, "pairs.jsonl", "--model", "m")


@pytest.mark.parametrize("tokenizer", ["llama3/hf", "qwen2/hf"])
def test_published_pairs_under_a_published_tokenizer(capsys, tokenizer):
    data = os.environ.get("PREFTUNE_TEST_DATA")
    if not data:
        pytest.skip("real tokenizers and data: set PREFTUNE_TEST_DATA to the folder that holds them")
    file = f"{data}/preferences/emoji/dpo_emoji_english_sharegpt_simple.eval.jsonl"
    found = as_json(capsys, file, "--model", f"{data}/tokenizers/{tokenizer}", "--on-bad-row", "skip")
    assert (found["rows"], found["dropped"], found["dropped_by"]) == (57, 24, {"equal answers": 24})
    assert found["survey"]["bias"]["better_longer"] == 57
    assert found["survey"]["one_bos"] == 57 and found["survey"]["ended"] == 114
    assert found["savings"]["shared"] < found["savings"]["unshared"] < found["savings"]["padded"]
    end = 128009 if "llama3" in tokenizer else 151645
    assert all(response["ids"][-1] == end for example in found["examples"] for response in example["responses"])
