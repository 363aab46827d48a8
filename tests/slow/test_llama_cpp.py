"""A GGUF file in llama.cpp itself: the same ids, the same log-probs, the same greedy tokens as with transformers."""

import pytest
import torch

from preftune.data.chat import read_chat_format
from preftune.data.named_templates import set_chat_template
from preftune.export.vocabulary import CONVERSATIONS
from preftune.export.write import ExportOptions, export_model
from preftune.model.load import load_model, load_tokenizer
from tests.data.conftest import find_data_folder, load_real_tokenizer
from tests.export.llama_cpp import greedy, ids_of, served
from tests.small import build_model

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
pytestmark = pytest.mark.slow

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name: architecture, tokenizer, template, changes of the config
MODELS = {
    "llama 3": ("llama", "llama3", "llama3", {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 512}),
    "llama 2, tied": ("llama-tied", "llama2", "mistral", {}),
    "mistral v1": ("mistral-window", "mistral-v1", "zephyr", {"sliding_window": 128}),
    "mistral v3": ("llama", "mistral-v3", "mistral-v3", {}),
    "qwen 2.5, tied": ("qwen2-tied", "qwen2.5", None, {}),
    "qwen 3": ("qwen3", "minimind", None, {}),
    "linear positions": ("qwen2", "minimind", None, {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    }),
}  # fmt: skip
TEXTS = [
    "Why is the sky blue?",
    "用一句话说：为什么天是蓝的？ 1234567 + 8",
    "  def f(x):\n\n\treturn x ** 2  # naïve ½ 👩‍🔬\r\n",
    "it's I'LL we'Ve 'tis",
    "Ünïcödé — “quotes” … ﬁ",
    " ",
    "a" + 40 * " " + "b   c",
]


def build(folder, architecture, tokenizer, template, changes):
    if template is not None:
        set_chat_template(tokenizer, template)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = build_model(architecture, **{"vocab_size": len(tokenizer) + 7, **ids, **changes})
    if model.config.model_type == "qwen2":
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def assert_reads_as_transformers_do(folder, out, context=256, within=5e-3, tokens=24):
    model, tokenizer = load_model(str(folder)).eval(), load_tokenizer(str(folder))
    chat = read_chat_format(tokenizer)
    with served(out / "model.gguf", context) as client:
        wanted = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS}
        assert {text: ids_of(client, text) for text in TEXTS} == wanted
        for conversation in CONVERSATIONS:
            ids = chat.prompt_ids([conversation])[0]
            text = chat.prompt_text(chat.turns(conversation))
            if chat.bos_id is not None and chat.bos_in_template and text.count(tokenizer.bos_token) == 1:
                text = text.removeprefix(tokenizer.bos_token)  # as Ollama and llama.cpp's own chat do
            assert ids_of(client, text, add_special=True) == ids
        found, best = greedy(client, ids, tokens)
        with torch.inference_mode():
            logps = model(input_ids=torch.tensor([ids + found])).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    assert len(best) >= 1
    gaps = [abs(logps[place, token].item() - logp) for place, tops in enumerate(best) for token, logp in tops.items()]
    print(f"log-probs differ by up to {max(gaps):.2g}")
    assert max(gaps) < within
    for place, token in enumerate(found):
        assert logps[place].max() - logps[place, token] < within


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_ids_and_log_probs(name, tmp_path):
    architecture, tokenizer, template, changes = MODELS[name]
    load_real_tokenizer.cache_clear()  # templates are set on them
    folder = build(tmp_path / "model", architecture, load_real_tokenizer(tokenizer), template, changes)
    load_real_tokenizer.cache_clear()
    export_model(str(folder), tmp_path / "out", ExportOptions(format="gguf"))
    assert_reads_as_transformers_do(folder, tmp_path / "out", context=128 if "v1" in name else 256)


@pytest.mark.parametrize(("dtype", "within"), [("auto", 0.05), ("float16", 0.05), ("bfloat16", 0.3), ("q8_0", 0.6)])
def test_the_real_model_tells_the_same_story(dtype, within, tmp_path):
    folder = find_data_folder() / "models" / "stories260K-llama"
    export_model(str(folder), tmp_path / "out", ExportOptions(format="gguf", dtype=dtype))
    model, tokenizer = load_model(str(folder)).eval(), load_tokenizer(str(folder))
    ids = tokenizer("Once upon a time")["input_ids"]
    with served(tmp_path / "out" / "model.gguf") as client:
        assert ids_of(client, "Once upon a time", add_special=True) == ids
        found, best = greedy(client, ids, 60)
    if dtype == "auto":
        with torch.inference_mode():
            told = model.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :]
        assert found == told.tolist()
    with torch.inference_mode():
        logps = model(input_ids=torch.tensor([ids + found])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    for place, tops in enumerate(best):
        assert {token: pytest.approx(logp, abs=within) for token, logp in tops.items()} == {
            token: logps[place, token].item() for token in tops
        }
