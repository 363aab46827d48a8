"""Reward models on disk: what is loaded as one, what is saved, and that everybody reads the same scores from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.heads import load_reward_model, load_value_head, save_value_head, set_pad_token, to_scorer
from preftune.model.value_head import ValueHead, head_of, set_value_head
from tests.data.conftest import CHATML, build_byte_tokenizer, load_real_tokenizer
from tests.model.test_heads import build_classifier, loss_of, slow_scores
from tests.small import build_group, build_model, gradients, worst_gradient_gap

GROUPS = [build_group(9, 4, 7), build_group(5, 11, 2), build_group(3, 3, 6, opening=2)]
SEQUENCES = [group.prompt_ids + response for group in GROUPS for response in group.response_ids]


def padded_scores(model, side, pad):
    """All sequences in one padded batch through transformers, positions as generation counts them."""
    width = max(map(len, SEQUENCES))
    ids, mask = [], []
    for sequence in SEQUENCES:
        padding = width - len(sequence)
        before, after = (padding, 0) if side == "left" else (0, padding)
        ids.append([pad] * before + sequence + [pad] * after)
        mask.append([0] * before + [1] * len(sequence) + [0] * after)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=mask, position_ids=positions).logits[:, 0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "mistral-window"])
def test_transformers_reads_the_same_scores_from_the_saved_folder(name, side, tmp_path):
    model = to_scorer(build_classifier(name).eval(), "packed")
    with torch.no_grad():
        ours = model(batch=pack(GROUPS, feed_last=True)).sums.flatten()
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert ours.std() > 0.1
    assert (padded_scores(theirs, side, theirs.config.pad_token_id) - ours).abs().max() <= 1e-5
    assert load_reward_model(str(tmp_path)).score.weight.equal(model.score.weight)


def test_a_language_model_gets_a_small_head_by_the_seed(tmp_path, caplog):
    causal = build_model("llama-tied")
    causal.save_pretrained(tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with caplog.at_level(logging.INFO):
            model = load_reward_model(str(tmp_path))
        heads.append(model.score.weight.detach().clone())
    assert "The score head is new: normal, standard deviation 1/sqrt(D + 1) = 0.1741, no bias." in caplog.text
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    spread = torch.stack([load_reward_model(str(tmp_path)).score.weight for _ in range(50)]).std().item()
    assert spread == pytest.approx(33**-0.5, rel=0.1)
    body = dict(model.model.named_parameters())
    assert all(body[name].equal(p) for name, p in causal.model.named_parameters())
    assert model.config.num_labels == 1


def test_what_has_no_head_or_too_many_labels_is_refused(tmp_path):
    build_model().save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelError, match="causal' is a language model without a score head"):
        load_reward_model(str(tmp_path / "causal"), new_head=False)
    build_classifier(num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match=r"three' has 3 labels; a reward model has one \(num_labels: 1\)"):
        load_reward_model(str(tmp_path / "three"))
    with pytest.raises(ModelError, match="does not exist"):
        load_reward_model(str(tmp_path / "absent"))


# --- value heads


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_value_head_beside_language_model_weights_makes_the_same_reward_model(format, tmp_path):
    reward = build_classifier().eval()
    causal = build_model()
    causal.model.load_state_dict(reward.model.state_dict())
    causal.save_pretrained(tmp_path)
    path = save_value_head(reward, tmp_path, format)
    assert [file.name for file in tmp_path.glob("value_head*")] == [f"value_head.{format}"] == [path.name]
    again = to_scorer(load_reward_model(str(tmp_path), new_head=False).eval())
    with torch.no_grad():
        scores = again(batch=pack(GROUPS, feed_last=True)).sums.flatten()
        assert (scores - slow_scores(reward, GROUPS)).abs().max() <= 1e-5


def test_a_value_head_file_has_the_names_and_shapes_of_other_tools(tmp_path):
    model = build_classifier()
    save_value_head(model, tmp_path)
    tensors = load_file(tmp_path / "value_head.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "v_head.summary.weight": [1, 32],
        "v_head.summary.bias": [1],
    }
    assert tensors["v_head.summary.weight"].equal(model.score.weight)
    assert tensors["v_head.summary.bias"].item() == 0
    with pytest.raises(ModelError, match="saved as safetensors or bin, found 'pt'"):
        save_value_head(model, tmp_path, "pt")


def test_the_bias_of_a_value_head_is_added_and_saved_again(tmp_path, caplog):
    model = build_classifier().eval()
    plain = slow_scores(model, GROUPS)
    save_file(
        {"v_head.summary.weight": model.score.weight.detach().clone(), "v_head.summary.bias": torch.tensor([0.75])},
        tmp_path / "value_head.safetensors",
    )
    with caplog.at_level(logging.INFO):
        set_value_head(model, load_value_head(tmp_path))
    assert "bias, 0.75, is added to every score" in caplog.text
    scores = to_scorer(model)(batch=pack(GROUPS, feed_last=True)).sums.flatten()
    assert torch.allclose(scores, plain + 0.75, atol=1e-5)
    save_value_head(model, tmp_path)
    assert load_value_head(tmp_path).bias.item() == 0.75


WRONG_HEADS = {
    "not a sound file": b"no tensors",
    r"expected the tensor 'v_head.summary.weight', found summary\.": {"summary": torch.zeros(1, 32)},
    r"found \[2, 32\] and \[1\]": {"v_head.summary.weight": torch.zeros(2, 32)},
    r"found \[1, 32\] and \[2\]": {"v_head.summary.weight": torch.zeros(1, 32), "v_head.summary.bias": torch.zeros(2)},
}


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("complaint", WRONG_HEADS)
def test_a_wrong_value_head_is_one_line(complaint, format, tmp_path):
    content, path = WRONG_HEADS[complaint], tmp_path / f"value_head.{format}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif format == "bin":
        torch.save(content, path)
    else:
        save_file(content, path)
    with pytest.raises(ModelError, match=complaint) as refused:
        load_value_head(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    torch.save({"v_head.summary.weight": Harm()}, tmp_path / "value_head.bin")
    with pytest.raises(ModelError, match="not a sound file of tensors"):
        load_value_head(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_value_head_that_is_missing_or_of_another_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"neither value_head\.safetensors nor value_head\.bin"):
        load_value_head(tmp_path)
    with pytest.raises(ModelError, match="reads 16 numbers a token, the model has 32"):
        set_value_head(build_classifier(), ValueHead(torch.zeros(1, 16), torch.zeros(1)))


# --- padding


def tokenizers():
    """Name -> (tokenizer, the padding it should get)."""
    plain = build_byte_tokenizer(CHATML)  # ends a turn with <|im_end|>
    ending = build_byte_tokenizer(CHATML, pad_token="<|im_end|>")
    own = build_byte_tokenizer(CHATML, pad_token="</s>")
    single = build_byte_tokenizer(bos=False)  # no template, ends with </s>, has no other special token
    return {"bos": (plain, "<s>"), "end": (ending, "<s>"), "own": (own, "</s>"), "single": (single, "<|pad|>")}


@pytest.mark.parametrize("case", ["bos", "end", "own", "single"])
def test_padding_never_ends_a_response(case):
    tokenizer, wanted = tokenizers()[case]
    model = build_classifier(vocab_size=260, pad_token_id=None, bos_token_id=256, eos_token_id=257)
    pad = set_pad_token(model, tokenizer)
    assert tokenizer.pad_token == wanted
    assert pad == tokenizer.pad_token_id == model.config.pad_token_id
    assert model.get_input_embeddings().num_embeddings == (261 if case == "single" else 260)
    fresh = tokenizers()[case][0]
    assert set_pad_token(model, fresh) == pad == fresh.pad_token_id


def test_a_padding_token_that_ends_responses_is_replaced():
    tokenizer = build_byte_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = build_classifier(vocab_size=260, pad_token_id=end).eval()
    ids = torch.tensor([[70, 71, 72, end]])
    wrong = model(input_ids=ids).logits
    assert torch.allclose(wrong, model(input_ids=ids[:, :3]).logits, atol=1e-6)  # the end was taken for padding
    assert set_pad_token(model, tokenizer) != end
    assert not torch.allclose(model(input_ids=ids).logits, wrong, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("qwen2.5", "<|endoftext|>"), ("llama3", "<|end_of_text|>"), ("llama2", "<s>"), ("gpt2", "<|pad|>")],
)
def test_padding_of_real_tokenizers(name, wanted):
    tokenizer = load_real_tokenizer(name)
    model = build_classifier(vocab_size=len(tokenizer), pad_token_id=None)
    set_pad_token(model, tokenizer)
    assert tokenizer.pad_token == wanted


def test_a_folder_with_a_tokenizer_is_loaded_with_its_padding(tmp_path):
    build_model(vocab_size=260, pad_token_id=None).save_pretrained(tmp_path)
    build_byte_tokenizer(CHATML).save_pretrained(tmp_path)
    assert load_reward_model(str(tmp_path)).config.pad_token_id == 256
    build_classifier(vocab_size=260, pad_token_id=259).save_pretrained(tmp_path)
    assert load_reward_model(str(tmp_path)).config.pad_token_id == 259  # what a reward model was trained with stays


# --- adapters


def adapted(name="llama", task="SEQ_CLS", **changes):
    peft = pytest.importorskip("peft", reason="the lora extra is not installed")
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type=task, r=4, target_modules=["q_proj", "v_proj"], **changes)
    base = build_classifier(name) if task == "SEQ_CLS" else build_model(name)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or ".score.modules_to_save" in parameter_name:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("road", ["packed", "padded"])
def test_an_adapter_and_its_head_get_the_gradients_of_one_sequence_at_a_time(road):
    model = adapted()
    wanted = slow_scores(model, GROUPS)
    loss_of(wanted).backward()
    wanted_gradients = gradients(model)
    assert any("score" in name for name in wanted_gradients)
    assert not any("embed_tokens" in name or "base_layer" in name for name in wanted_gradients)
    model.zero_grad()
    assert to_scorer(model, road) is model
    assert model.road == road
    found = model(batch=pack(GROUPS, feed_last=True)).sums.flatten()
    loss_of(found).backward()
    assert (found - wanted).abs().max() <= 1e-5
    assert worst_gradient_gap(gradients(model), wanted_gradients) <= 1e-4
    with model.disable_adapter():
        off = model(batch=pack(GROUPS, feed_last=True)).sums.flatten()
    assert torch.allclose(off, slow_scores(build_classifier(), GROUPS), atol=1e-5)


def test_a_saved_adapter_is_loaded_with_its_head(tmp_path):
    model = adapted().eval()
    base = build_model()
    base.model.load_state_dict(build_classifier().model.state_dict())
    base.save_pretrained(tmp_path / "base")
    to_scorer(model)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    again = to_scorer(load_reward_model(str(tmp_path / "adapter"), new_head=False).eval())
    batch = pack(GROUPS, feed_last=True)
    with torch.no_grad():
        assert (again(batch=batch).sums - model(batch=batch).sums).abs().max() <= 1e-5
    save_value_head(model, tmp_path)
    assert load_value_head(tmp_path).weight.equal(head_of(model).weight)
    assert head_of(model) is model.get_base_model().score.modules_to_save["default"]


def test_an_adapter_of_a_language_model_with_a_value_head_beside_it(tmp_path):
    model = adapted(task="CAUSAL_LM").eval()
    build_model().save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="without a score head"):
        load_reward_model(str(tmp_path / "adapter"), new_head=False)
    save_value_head(build_classifier(), tmp_path / "adapter")
    weight = load_value_head(tmp_path / "adapter").weight[0]
    with torch.no_grad():
        body = model.get_base_model().model
        wanted = [body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] @ weight for ids in SEQUENCES]
        again = to_scorer(load_reward_model(str(tmp_path / "adapter"), new_head=False).eval())
        found = again(batch=pack(GROUPS, feed_last=True)).sums.flatten()
    assert (found - torch.stack(wanted)).abs().max() <= 1e-5
