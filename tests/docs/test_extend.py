"""docs/extend.md, run: its files are written, its commands executed, its Python run, in the page's order."""

from __future__ import annotations

import importlib
import inspect
import json
import runpy
import sys

import pytest

import preftune.objectives
from preftune.cli.main import main
from preftune.demo.corpus import corpus_texts
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from tests.docs.pages import ROOT, blocks, commands

PAGE = ROOT / "docs/extend.md"
SIZES = ModelSettings(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `my-model` and `pairs.jsonl`; objectives are found in it too."""
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed=0, sizes=SIZES).save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    rows = [{"prompt": f"Count to {n}.", "chosen": f"I count to {n}.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    objectives = str(tmp_path / "preftune/objectives")
    monkeypatch.setattr(preftune.objectives, "__path__", [*preftune.objectives.__path__, objectives])
    yield tmp_path
    sys.modules.pop("preftune.objectives.squared_margin", None)


def run_tests(file):
    tests = [value for name, value in runpy.run_path(str(file)).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        assert not inspect.signature(test).parameters
        test()


def test_the_page_does_what_it_says(folder, capsys):
    ran = []
    for block in blocks(PAGE, "python", "json", "yaml", "jinja", "bash"):
        if block.file is None:
            for words in commands(block.text):
                assert main(words) == 0, f"{block}: {capsys.readouterr().err}"
                ran.append(words[0])
            continue
        file = folder / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        importlib.invalidate_caches()
        if file.name.startswith("test_"):
            run_tests(file)
        elif file.parent == folder and file.suffix == ".py":
            runpy.run_path(str(file))
    assert ran == ["objectives", "train", "check", "check", "train"]
    for name in ("squared", "template"):
        assert (folder / "runs" / name / "model.safetensors").is_file()
    template = (folder / "runs/template/chat_template.jinja").read_text()
    assert "'<' + message.role + '> '" in template
