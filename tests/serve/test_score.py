"""Scores of whole files against the model's own forward pass, one text at a time."""

from __future__ import annotations

import json
import logging
from functools import lru_cache

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from preftune.errors import DataError, ModelError
from preftune.model.heads import load_reward_model, save_value_head
from preftune.serve.reward import _batches, open_reward_model, prompt_ids, score_examples
from preftune.serve.score import score_file
from preftune.types import Example, Message, Origin
from tests.data.conftest import CHATML, build_byte_tokenizer, find_data_folder, load_real_tokenizer
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "num_labels": 1, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}

PAIRS = [
    {"id": 1, "prompt": "Where is Rome?", "chosen": "In Italy.", "rejected": "On the moon, I think."},
    {"id": 2, "prompt": "2 + 2?", "chosen": "4", "rejected": "five"},
    {"id": 3, "prompt": "A long question, " * 3, "chosen": "Yes, indeed, of course.", "rejected": "Yes"},
]
RANKED = [
    {"prompt": "Name a colour.", "responses": ["red", "a very dark green", "red"], "scores": [0, 0, 1]},
    {"prompt": "Name a river.", "responses": ["Po"], "scores": [3]},
    {"prompt": "Name a sea.", "responses": ["Kara", "Ross Sea"], "scores": [2, 1]},
]
SINGLE = [
    {"question": "Hi?", "text": "Hello!", "response": "a note"},
    {"question": "Who?", "text": "I", "response": ""},
]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A folder with a small reward model that knows bytes."""
    folder = tmp_path_factory.mktemp("reward")
    save_model(transformers.LlamaConfig(**SHAPE), build_byte_tokenizer(CHATML), folder)
    return folder


def save_model(config, tokenizer, folder):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@lru_cache(maxsize=2)
def parts(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


def alone(folder, prompt, answer, end="<|im_end|>"):
    """The model's own score of one conversation, written by the template, up to the end of the answer's turn."""
    tokenizer, model = parts(folder)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text[: text.rindex(end) + len(end)], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def test_pairs_get_their_scores_in_order(reward, tmp_path):
    file, output = write(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "scored.jsonl"
    summary = score_file(str(reward), file, output=output)
    wanted = [[alone(reward, r["prompt"], r["chosen"]), alone(reward, r["prompt"], r["rejected"])] for r in PAIRS]
    found = read(output)
    assert [{k: v for k, v in row.items() if k != "scores"} for row in found] == PAIRS
    assert torch.tensor([row["scores"] for row in found]).sub(torch.tensor(wanted)).abs().max() <= 1e-5
    margins = [chosen - rejected for chosen, rejected in wanted]
    assert min(map(abs, margins)) > 1e-3
    assert summary["rows"] == 3 and summary["responses"] == 6 and summary["responses_cut"] == 0
    assert summary["accuracy"] == sum(margin > 0 for margin in margins) / 3
    assert summary["margin"] == pytest.approx(sum(margins) / 3, abs=1e-5)
    assert summary["mean"] == pytest.approx(sum(map(sum, wanted)) / 6, abs=1e-5)
    assert summary["output"] == str(output)


def test_lists_keep_their_order_and_may_repeat_a_response(reward, tmp_path, caplog):
    output = tmp_path / "scored.jsonl"
    with caplog.at_level(logging.INFO):
        summary = score_file(str(reward), write(tmp_path / "ranked.jsonl", RANKED), output=output)
    found = [row["scores"] for row in read(output)]
    wanted = [[alone(reward, row["prompt"], text) for text in row["responses"]] for row in RANKED]
    assert [len(scores) for scores in found] == [3, 1, 2]
    for scores, expected in zip(found, wanted, strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)
    assert found[0][0] == pytest.approx(found[0][2], abs=1e-6)
    assert "accuracy" not in summary and summary["responses"] == 6
    assert "the column 'scores' is replaced" in caplog.text


def test_single_responses_and_renamed_columns(reward, tmp_path):
    output = tmp_path / "scored.jsonl"
    columns = {"question": "prompt", "text": "response", "response": None}
    score_file(str(reward), write(tmp_path / "single.jsonl", SINGLE), output=output, columns=columns)
    found = read(output)
    assert [row["scores"] for row in found] == [
        pytest.approx([alone(reward, row["question"], row["text"])], abs=1e-5) for row in SINGLE
    ]
    assert [row["response"] for row in found] == ["a note", ""]


def test_two_answers_and_a_winner_keep_their_order(reward, tmp_path):
    rows = [{"input": r["prompt"], "output_1": r["rejected"], "output_2": r["chosen"], "label": 2} for r in PAIRS]
    output = tmp_path / "scored.jsonl"
    summary = score_file(str(reward), write(tmp_path / "winners.jsonl", rows), output=output)
    wanted = [[alone(reward, r["prompt"], r["rejected"]), alone(reward, r["prompt"], r["chosen"])] for r in PAIRS]
    assert torch.tensor([row["scores"] for row in read(output)]).sub(torch.tensor(wanted)).abs().max() <= 1e-5
    assert "accuracy" not in summary


def test_a_row_with_the_same_answer_twice_is_a_tie_and_no_hit(reward, tmp_path):
    rows = [{"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}]
    summary = score_file(str(reward), write(tmp_path / "tie.jsonl", rows))
    assert summary["accuracy"] == 0 and summary["margin"] == 0


@pytest.mark.parametrize("batch_tokens", [1, 90, 10**6])
def test_the_size_of_batches_changes_nothing(reward, batch_tokens):
    opened = open_reward_model(str(reward))
    assert opened.packs and opened.model.road == "packed"
    examples = [example(row["prompt"], *row["responses"]) for row in RANKED]
    usual = score_examples(opened, examples)
    found = score_examples(opened, examples, batch_tokens=batch_tokens)
    for one, other in zip(usual.values, found.values, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def example(prompt, *responses):
    return Example((Message("user", prompt),), responses, Origin("made", "train", 1))


def test_batches_hold_the_budget_widest_first():
    tokens = [5, 40, 12, 9, 30]
    packed = list(_batches(tokens, tokens, 50, padded=False))
    padded = list(_batches(tokens, tokens, 50, padded=True))
    assert packed == [[1], [4, 2], [3, 0]]
    assert padded == [[1], [4], [2, 3, 0]]
    for batch in packed:
        assert sum(tokens[n] for n in batch) <= 50
    for batch in padded:
        assert len(batch) * max(tokens[n] for n in batch) <= 50


def test_long_texts_are_cut_and_counted(reward):
    opened = open_reward_model(str(reward))
    long, short = example("Why? " * 100, "Because."), example("Hi", "Yes")
    scores = score_examples(opened, [long, short])
    assert scores.cut == 1  # the model reads 256 tokens
    # other rows run beside it the first time, which rounds otherwise
    assert scores.values[1] == pytest.approx(score_examples(opened, [short]).values[0], rel=1e-5)
    assert score_examples(opened, [short], max_length=12).cut == 1


def test_a_score_does_not_depend_on_what_else_is_in_the_row(reward):
    opened = open_reward_model(str(reward))
    together = score_examples(opened, [example("Why? " * 10, "B", "Because it is so. " * 4)], max_length=90)
    apart = [
        score_examples(opened, [example("Why? " * 10, text)], max_length=90) for text in ("B", "Because it is so. " * 4)
    ]
    assert together.cut == 1
    assert together.values[0] == pytest.approx([scores.values[0][0] for scores in apart], abs=1e-5)


def test_a_model_whose_padding_ends_the_turn_is_read_where_it_was_trained(tmp_path):
    tokenizer = build_byte_tokenizer(CHATML, pad_token="<|im_end|>")
    save_model(transformers.LlamaConfig(**{**SHAPE, "pad_token_id": 259}), tokenizer, tmp_path)
    scores = score_examples(open_reward_model(str(tmp_path)), [example("Hi", "Yes", "Certainly not")])
    assert scores.values[0] == pytest.approx(
        [alone(tmp_path, "Hi", text) for text in ("Yes", "Certainly not")], abs=1e-5
    )


def test_language_model_weights_with_a_value_head(reward, tmp_path):
    model = load_reward_model(str(reward))
    causal = transformers.AutoModelForCausalLM.from_pretrained(reward)
    causal.save_pretrained(tmp_path)
    build_byte_tokenizer(CHATML).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a language model without a score head"):
        open_reward_model(str(tmp_path))
    save_value_head(model, tmp_path)
    rows = [example("Hi", "Yes", "Certainly not")]
    values = [score_examples(open_reward_model(str(folder)), rows).values[0] for folder in (reward, tmp_path)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_an_adapter_folder_takes_the_tokenizer_of_its_base(reward, tmp_path):
    peft = pytest.importorskip("peft", reason="the lora extra is not installed")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(reward)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        model.get_base_model().score.modules_to_save["default"].weight.mul_(2)
    model.save_pretrained(tmp_path)
    rows = [example("Hi", "Yes", "Certainly not")]
    values = [score_examples(open_reward_model(str(folder)), rows).values[0] for folder in (reward, tmp_path)]
    assert [2 * value for value in values[0]] == pytest.approx(values[1], abs=1e-5)


# --- encoders


def build_pair_tokenizer():
    """`[CLS] prompt [SEP] response [SEP]` with segments 0 and 1, as encoders have them."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=inputs, **names
    )


def test_an_encoder_gets_prompt_and_response_as_two_texts(tmp_path, caplog):
    config = transformers.BertConfig(**{**SMALL, "vocab_size": 30, "max_position_embeddings": 64, "num_labels": 1})
    model, tokenizer = save_model(config, build_pair_tokenizer(), tmp_path), build_pair_tokenizer()
    with caplog.at_level(logging.INFO):
        opened = open_reward_model(str(tmp_path))
    assert opened.pairs and not opened.packs and opened.context == 64
    assert "It is run as it is, padded" in caplog.text
    rows = [
        example("where", "rome", "a very long answer of many letters"),
        example("who", "me"),
        example("x" * 90, "y"),
    ]
    found = score_examples(opened, rows, batch_tokens=200)
    assert found.cut == 1
    assert prompt_ids(opened, rows[1]) == tokenizer("who")["input_ids"]
    for row, values in zip(rows, found.values, strict=True):
        for text, value in zip(row.responses, values, strict=True):
            inputs = tokenizer(row.prompt[0].content, text, truncation=True, max_length=64, return_tensors="pt")
            assert inputs["token_type_ids"].unique().tolist() == [0, 1]
            assert value == pytest.approx(model(**inputs).logits[0, 0].item(), abs=1e-5)


def test_an_encoder_with_a_chat_template_gets_the_conversation(tmp_path):
    config = transformers.BertConfig(**{**SHAPE, "max_position_embeddings": 128})
    save_model(config, build_byte_tokenizer(CHATML, pad_token="<s>"), tmp_path)
    opened = open_reward_model(str(tmp_path))
    assert not opened.pairs and not opened.packs
    found = score_examples(opened, [example("Hi", "Yes", "Certainly not"), example("Why is that?", "So")])
    wanted = [
        alone(tmp_path, "Hi", "Yes"),
        alone(tmp_path, "Hi", "Certainly not"),
        alone(tmp_path, "Why is that?", "So"),
    ]
    assert [*found.values[0], *found.values[1]] == pytest.approx(wanted, abs=1e-5)


# --- refusals


def test_an_output_that_cannot_be_written_is_said_before_the_model_is_loaded(tmp_path):
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    for output, complaint in ((file, "is the file that is read"), (tmp_path / "no" / "x", "cannot be written there")):
        with pytest.raises(DataError, match=complaint):
            score_file("no-such-model", file, output=output)
    assert read(file) == PAIRS


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Hi", "responses": []}, r"row 2: 'responses' is an empty list, expected a list of responses"),
        ({"prompt": "Hi", "responses": ["a", ""]}, "row 2: the answer in 'responses' item 2 is empty"),
        ({"prompt": "", "responses": ["a"]}, "row 2: the prompt is empty"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, complaint):
    with pytest.raises(DataError, match=complaint):
        score_file("no-such-model", write(tmp_path / "rows.jsonl", [RANKED[0], row]))


def test_a_score_that_is_no_number_is_refused(reward):
    opened = open_reward_model(str(reward))
    with torch.no_grad():
        opened.model.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"made\[train\] row 1: the score is nan, expected a finite number"):
        score_examples(opened, [example("Hi", "Yes")])


def test_objects_with_responses_and_odd_text_in_other_columns(reward, tmp_path):
    rows = [{"prompt": "Hi", "responses": [{"response": "Yes", "overall_score": 3}, {"answer": "No"}], "x": "\ud800 é"}]
    output = tmp_path / "out.jsonl"
    score_file(str(reward), write(tmp_path / "rows.jsonl", rows), output=output)
    found = read(output)[0]
    assert found["x"] == "\ud800 é"
    assert found["responses"] == rows[0]["responses"]
    assert found["scores"] == pytest.approx([alone(reward, "Hi", "Yes"), alone(reward, "Hi", "No")], abs=1e-5)


# --- real data


@pytest.mark.parametrize("name", ["qwen2.5", "llama3"])
def test_real_pairs_with_a_real_tokenizer(name, tmp_path):
    file = find_data_folder() / "preferences/emoji/dpo_emoji_english_gpt.eval.jsonl"
    tokenizer = load_real_tokenizer(name)
    config = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    save_model(transformers.LlamaConfig(**{**config, "pad_token_id": tokenizer.pad_token_id}), tokenizer, tmp_path)
    output = tmp_path / "scored.jsonl"
    summary = score_file(str(tmp_path), file, output=output)
    rows = read(output)
    assert summary["rows"] == len(rows) > 20 and summary["responses_cut"] == 0
    end = {"qwen2.5": "<|im_end|>", "llama3": "<|eot_id|>"}[name]
    for row in rows[:5]:
        (asked,), (answered,) = row["prompt"], row["chosen"]
        wanted = alone(tmp_path, asked["content"], answered["content"], end)
        assert row["scores"][0] == pytest.approx(wanted, abs=1e-4)
