"""The same greedy answer in the terminal, on the page and from the server, of every kind of model there is."""

import io

import pytest

from preftune.cli.main import main
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.export.write import export_model
from preftune.web.places import Places
from tests.data.conftest import find_data_folder
from tests.export.conftest import save_adapter
from tests.serve.api_server import in_thread
from tests.web.conftest import Page
from tests.web.test_page import texts

QUESTION, TOKENS = "Why is the sky blue?", 16
SIZES = ModelSettings(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The demo's kind of model, small and random; a LoRA checkpoint on it; that checkpoint merged."""
    folder = tmp_path_factory.mktemp("surfaces")
    tokenizer = train_tokenizer(["Why is the sky blue?", "天为什么是蓝的？"] * 4, SIZES.vocab_size)
    model = build_model(tokenizer, 1, SIZES)
    for weight in model.parameters():
        weight.data.mul_(6)  # as drawn it answers with one token over and over
    model.save_pretrained(folder / "demo")
    tokenizer.save_pretrained(folder / "demo")
    save_adapter(folder / "demo", folder / "run" / "checkpoint-8")
    export_model(str(folder / "run"), folder / "merged")
    return {"demo": folder / "demo", "LoRA checkpoint": folder / "run", "merged": folder / "merged"}


def in_the_terminal(place, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert main(["chat", str(place), "--temperature", "0", "--max-tokens", str(TOKENS)]) == 0
    return capsys.readouterr().out.strip()


def on_the_page(place, tmp_path):
    page = Page(Places(tmp_path, models=(str(place),)))
    return texts(page.ask(place, question=QUESTION, temperature=0, max_tokens=TOKENS), sides=1)[0].strip()


def from_the_server(place):
    with in_thread(place) as running:
        answer = running.client().chat.completions.create(
            model=running.names[0],
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=TOKENS,
        )
    return answer.choices[0].message.content.strip()


@pytest.mark.parametrize("kind", ["demo", "LoRA checkpoint", "merged", "real"])
def test_every_surface_gives_the_same_answer(kind, places, monkeypatch, capsys, tmp_path):
    place = find_data_folder() / "models" / "stories260K-llama" if kind == "real" else places[kind]
    said = in_the_terminal(place, monkeypatch, capsys)
    assert said != ""
    assert on_the_page(place, tmp_path) == said
    assert from_the_server(place) == said


def test_a_merged_model_answers_as_its_checkpoint_and_not_as_its_base(places, monkeypatch, capsys):
    base, adapter, merged = (in_the_terminal(places[kind], monkeypatch, capsys) for kind in places)
    assert adapter == merged != base
