"""`preftune chat` with a tiny random model: its words are noise, the road to them is what is tested."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preftune.cli.main import main
from preftune.data.chat import read_chat_format
from preftune.errors import ModelError
from preftune.model.place import model_folder
from preftune.serve.chat import Chat, Sampling
from preftune.types import Message

WORDS = ["<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "a", "b", "c", "d"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="c"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", additional_special_tokens=WORDS[1:4]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=4,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def talk(folder):
    from preftune.model.load import load_model, load_tokenizer

    model = load_model(str(folder)).eval()
    return Chat(model, read_chat_format(load_tokenizer(str(folder))), sampling=Sampling(temperature=0, max_tokens=4))


def lines(monkeypatch, text, terminal=False):
    stream = io.StringIO(text)
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdin", stream)


def test_each_line_of_a_pipe_is_answered_by_itself(folder, monkeypatch, capsys):
    lines(monkeypatch, "a\n\nb\na\n")
    assert main(["chat", str(folder), "--temperature", "0", "--max-tokens", "3"]) == 0
    answers = capsys.readouterr().out.split("\n")
    assert answers[-1] == "" and len(answers) == 4
    assert answers[0] == answers[2]


def test_the_same_seed_gives_the_same_answer(folder, monkeypatch, capsys):
    said = []
    for _ in range(2):
        lines(monkeypatch, "a\nb\n")
        assert main(["chat", str(folder), "--seed", "3", "--max-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_terminal_has_history_until_reset_and_leaves_by_exit(folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(Chat, "ask", lambda self, question, say: asked.append(question))
    monkeypatch.setattr(Chat, "reset", lambda self: asked.append("forgotten"))
    lines(monkeypatch, "a\n/reset\nb\n/exit\nc\n", terminal=True)
    assert main(["chat", str(folder)]) == 0
    assert asked == ["a", "forgotten", "b"]


def test_the_conversation_is_remembered(talk):
    first = talk.ask("a")
    talk.ask("b")
    assert talk.turns[:3] == [Message("user", "a"), Message("assistant", first), Message("user", "b")]


def test_without_history_a_question_stands_alone(talk):
    talk.history = False
    talk.ask("a")
    talk.ask("b")
    assert [turn.role for turn in talk.turns] == ["user", "assistant"]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk):
    for _ in range(12):
        talk.ask("a b c a b")
    assert talk.turns[0].role == "user"
    assert len(talk._prompt_ids()) <= 32


def test_a_question_longer_than_the_context_is_refused(talk):
    with pytest.raises(ModelError, match="Ask a shorter one"):
        talk.ask("a " * 40)
    assert talk.turns == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none", "ModelError: The folder 'none' does not exist. 'preftune demo' makes one: runs/demo.\n"),
        (
            "empty",
            "ModelError: There is no model in 'empty': no config.json, adapter_config.json or checkpoint-N.\n",
        ),
    ],
)
def test_a_folder_without_a_model_is_one_line(tmp_path, monkeypatch, capsys, name, line):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["chat", name]) == 2
    assert capsys.readouterr().err == line


def test_a_run_without_a_final_model_gives_its_newest_checkpoint(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "config.json").touch()
    assert model_folder(tmp_path).name == "checkpoint-10"


@pytest.fixture
def lora_run(folder, tmp_path):
    """The folder of a LoRA run: an adapter beside its tokenizer, and a checkpoint with another one."""
    from preftune.model.load import load_model, load_tokenizer
    from preftune.model.lora import LoraSettings, add_adapter, save_plain_lora

    for seed, place in ((1, tmp_path), (2, tmp_path / "checkpoint-3")):
        torch.manual_seed(seed)
        adapted = add_adapter(load_model(str(folder)), LoraSettings(r=2, init="gaussian"))
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight)
        save_plain_lora(adapted, place)
        load_tokenizer(str(folder)).save_pretrained(place)
    return tmp_path


def answers(place, monkeypatch, capsys):
    lines(monkeypatch, "a b\nc\nd d\n")
    assert main(["chat", str(place), "--temperature", "0", "--max-tokens", "6"]) == 0
    return capsys.readouterr().out


def test_the_folder_of_a_lora_run_answers_with_its_adapter_on_its_base_model(lora_run, folder, monkeypatch, capsys):
    from preftune.model.load import load_model

    merged = lora_run.parent / f"{lora_run.name}-merged"
    load_model(str(lora_run)).merge_and_unload().save_pretrained(merged)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / file, merged / file)
    said = answers(lora_run, monkeypatch, capsys)
    assert said == answers(merged, monkeypatch, capsys) != answers(folder, monkeypatch, capsys)


def test_of_a_lora_run_without_a_final_adapter_the_newest_checkpoint_answers(lora_run, monkeypatch, capsys):
    last = answers(lora_run / "checkpoint-3", monkeypatch, capsys)
    (lora_run / "adapter_config.json").unlink()
    assert model_folder(lora_run) == lora_run / "checkpoint-3"
    assert answers(lora_run, monkeypatch, capsys) == last


@pytest.mark.parametrize("words", [["--temperature", "-1"], ["--max-tokens", "0"], ["--temperature", "hot"]])
def test_a_wrong_option_leaves_with_2(words, capsys):
    assert main(["chat", "x", *words]) == 2
    assert "usage: preftune chat" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "checkpoint-5"])
def test_the_system_text_of_training_is_the_default(tmp_path, place):
    from preftune.serve.chat import trained_system

    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "recipe.yaml").write_text("system_prompt: Be brief.\n")
    assert trained_system(tmp_path / place) == "Be brief."
    (tmp_path / "recipe.yaml").write_text("system_prompt: null\n")
    assert trained_system(tmp_path / place) is None


def test_a_hubs_name_has_no_system_text_of_the_folder_that_one_is_in(tmp_path, monkeypatch):
    from preftune.serve.chat import trained_system

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("system_prompt: Be brief.\n")
    assert trained_system(Path("gpt2")) is None
