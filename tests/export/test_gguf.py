"""`preftune export --format gguf`: transformers reads the same model from the file; what it cannot say is refused."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from preftune.cli.main import main
from preftune.data.chat import read_chat_format
from preftune.data.named_templates import TEMPLATES, set_chat_template
from preftune.demo.tokenizer import train_tokenizer
from preftune.errors import ModelError
from preftune.export.ollama import CHECKED, modelfile, read_segments
from preftune.export.vocabulary import read_vocabulary
from preftune.export.write import ExportOptions, export_model
from preftune.model.load import load_model
from tests.data.conftest import build_byte_tokenizer, find_data_folder, load_real_tokenizer
from tests.export.conftest import save_adapter
from tests.small import build_model

gguf = pytest.importorskip("gguf")
IDS = torch.tensor([[256, 5, 77, 130, 9, 42, 201, 33, 12, 60]])
GGUF = ExportOptions(format="gguf")


def build_bpe_tokenizer():
    """Byte-level BPE with a few merges, that cuts texts as GPT-2 does; ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the moon is here and there"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>")
    set_chat_template(tokenizer, "chatml")
    return tokenizer


def save(folder, name="llama", **changes):
    """A small model with that tokenizer."""
    tokenizer = build_bpe_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = build_model(name, vocab_size=len(tokenizer) + 4, **ids, **changes)
    for key, weight in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "small")


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral-window", "qwen2", "qwen2-tied", "qwen3"])
def test_transformers_reads_the_same_model_from_the_file(name, tmp_path):
    model = load_model(str(save(tmp_path / "base", name)))
    export_model(str(tmp_path / "base"), tmp_path / "out", GGUF)
    # transformers does not read the size of a head there
    changed = {"config": model.config} if name == "qwen3" else {}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", **changed)
    assert (logits(found) - logits(model)).abs().max() < 1e-5


def test_an_adapter_is_merged_into_the_file(small, tmp_path):
    adapter = save_adapter(small, tmp_path / "adapter")
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--format", "gguf"]) == 0
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert (logits(found) - logits(load_model(str(adapter)))).abs().max() < 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.gguf",
        "Modelfile",
        "README.md",
        "export.json",
    }
    assert json.loads((tmp_path / "out" / "export.json").read_text())["merged_into"] == "small"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_other_precisions(dtype, small, tmp_path):
    facts = export_model(str(small), tmp_path / "out", ExportOptions(format="gguf", dtype=dtype))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    wanted = load_model(str(small), torch_dtype="auto" if dtype == "q8_0" else dtype).float()
    assert facts["dtype"] == dtype
    assert (logits(found) - logits(wanted)).abs().max() < (0.1 if dtype == "q8_0" else 1e-5)
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors
    }
    assert kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]


def test_a_file_that_is_not_what_was_meant_is_refused(small, tmp_path, monkeypatch):
    from preftune.export import gguf_file

    write = gguf_file.write_gguf

    def damaged(file, path, dtype):
        write(file, path, dtype)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(gguf_file, "write_gguf", damaged)
    with pytest.raises(ModelError, match="is not what was to be written"):
        export_model(str(small), tmp_path / "out", GGUF)
    assert not (tmp_path / "out").exists()


REFUSED = {
    "gemma2": ({}, "Gemma2ForCausalLM is not written; known are the kinds llama, mistral, qwen2, qwen3"),
    "llama": ({"attention_bias": True}, "self_attn.q_proj.bias has no place in the kind 'llama'"),
    "qwen2": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "of the kind 'yarn'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_a_file_cannot_say_is_refused(name, tmp_path):
    changes, said = REFUSED[name]
    with pytest.raises(ModelError, match=said):
        export_model(str(save(tmp_path / "base", name, **changes)), tmp_path / "out", GGUF)


def test_a_reward_model_is_refused(reward, tmp_path):
    with pytest.raises(ModelError, match="has a score head"):
        export_model(str(reward), tmp_path / "out", GGUF)


def test_q8_0_is_of_gguf_alone(small, tmp_path, capsys):
    assert main(["export", str(small), "--out", str(tmp_path / "out"), "--dtype", "q8_0"]) == 2
    assert "Add --format gguf" in capsys.readouterr().err


# --- tokenizers


def test_the_demos_tokenizer_is_refused_by_how_it_cuts_texts():
    tokenizer = train_tokenizer(["one two 一二"] * 4, 270)
    with pytest.raises(ModelError, match=r"no name for how this tokenizer cuts texts .*, then digits, then words and"):
        read_vocabulary(tokenizer, read_chat_format(tokenizer), len(tokenizer))


@pytest.mark.parametrize(
    ("name", "model", "cut"),
    [
        ("llama3", "gpt2", "llama-bpe"),
        ("qwen2.5", "gpt2", "qwen2"),
        ("minimind", "gpt2", "gpt-2"),
        ("mistral-v3", "llama", "default"),
        ("llama2", "llama", "default"),
    ],
)
def test_real_tokenizers_have_their_names(name, model, cut):
    tokenizer = load_real_tokenizer(name)
    found = read_vocabulary(tokenizer, read_chat_format(tokenizer), len(tokenizer) + 1)
    assert (found.model, found.pre, len(found.tokens)) == (model, cut, len(tokenizer) + 1)
    assert found.adds_bos == (name in ("llama3", "mistral-v3", "llama2"))  # minimind's BOS opens every turn
    assert found.space_prefix is (True if model == "llama" else None)


def test_the_ids_of_the_file_are_those_of_the_tokenizer(tmp_path):
    """The real small model: logits and ids as transformers reads them from the file."""
    folder = find_data_folder() / "models" / "stories260K-llama"
    export_model(str(folder), tmp_path / "out", GGUF)
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf"
    )  # fmt: skip
    for text in ("Once upon a time, there was", "It's 12.\n  Two  spaces", "好 ½"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert (logits(found) - logits(load_model(str(folder)))).abs().max() < 1e-5


def sentencepiece(merges, tokens=()):
    """A tokenizer of bytes, a few letters, and what the merges make of them."""
    made = [*"▁abc", *("".join(merge) for merge in merges), *tokens]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(made)]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges, unk_token="<unk>",
                                   fuse_unk=True, byte_fallback=True))  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("merges", "tokens", "said"),
    [
        ([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")], (), None),
        ([("a", "b"), ("b", "c"), ("ab", "c")], (), "'a' and 'bc' make the token 'abc' and no merge says so"),
        ([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], (), "the merges into 'abc' do not stand together"),
    ],
)
def test_merges_that_no_score_can_say_are_refused(merges, tokens, said):
    tokenizer = sentencepiece(merges, tokens)
    chat = read_chat_format(tokenizer)
    if said is not None:
        with pytest.raises(ModelError, match=said):
            read_vocabulary(tokenizer, chat, len(tokenizer))
        return
    found = read_vocabulary(tokenizer, chat, len(tokenizer))
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert [scores[token] for token in ("ab", "bc", "abc", "a")] == [0.0, -1.0, -2.0, -3.0]


# --- Ollama


OWN = ("qwen2_5_official", "gemma2_official", "simpo_llama3", "simpo_mistral-base", "simpo_mistral-instruct")


@pytest.mark.parametrize("name", [*TEMPLATES, *OWN])
def test_templates_are_recognised_by_what_they_write(name):
    tokenizer = build_byte_tokenizer()
    own = name not in TEMPLATES
    text = (find_data_folder() / "chat_templates" / f"{name}.jinja").read_text() if own else name
    set_chat_template(tokenizer, text)
    chat = read_chat_format(tokenizer)
    found = read_segments(chat, adds_bos=chat.bos_id is not None)
    assert found is not None
    for messages in CHECKED:
        wanted = chat.prompt_text(chat.turns(messages)).removeprefix("<s>")
        assert found.prompt(messages) == wanted


def test_a_modelfile_of_chatml():
    tokenizer = build_byte_tokenizer()
    set_chat_template(tokenizer, "chatml")
    text, recognised = modelfile(read_chat_format(tokenizer), "model.gguf", ["<|im_end|>"], "Be kind.", adds_bos=False)
    assert recognised
    assert text == (
        "# ollama create NAME -f Modelfile\n"
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n'
        "{{ .Content }}<|im_end|>\n<|im_start|>user\n"
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}<|im_start|>user\n'
        '{{ end }}{{ .Content }}{{ else if eq .Role "assistant" }}<|im_end|>\n<|im_start|>assistant\n'
        "{{ .Content }}<|im_end|>\n<|im_start|>user\n"
        '{{ end }}{{ end }}<|im_end|>\n<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'SYSTEM """Be kind."""\n'
    )


NUMBERED = (
    "{% for m in messages %}<{{ loop.index }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.parametrize("template", [NUMBERED, None])
def test_a_template_of_another_kind_gets_no_template_line(template):
    text, recognised = modelfile(read_chat_format(build_byte_tokenizer(template)), "m.gguf", ["</s>"], None, False)
    assert not recognised
    assert "\nTEMPLATE" not in text and "# No TEMPLATE" in text and 'PARAMETER stop "</s>"' in text


def test_a_template_that_cuts_spaces_is_said_to():
    tokenizer = build_byte_tokenizer()
    set_chat_template(tokenizer, "llama3")
    text, _ = modelfile(read_chat_format(tokenizer), "m.gguf", ["</s>"], None, adds_bos=True)
    assert "cuts spaces around a text" in text
