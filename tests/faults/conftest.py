"""A folder with a very small model, pairs and a recipe, and the run that nothing happens to."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.faults.child import run
from tests.faults.faults import skip_plots

PAIRS = [
    {"prompt": f"What is {a} plus {b}?", "chosen": f"{a} 加 {b} 等于 {a + b}。", "rejected": f"It is {a + b}."}
    for a in range(5)
    for b in range(4)
]
RECIPE = {
    "model_name_or_path": "model",
    "dataset": "pairs.jsonl",
    "total_batch_size": 8,  # steps of 8, 8, 4
    "max_steps": 8,
    "save_steps": 2,
    "save_total_limit": 1,
    "logging_steps": 3,  # windows and checkpoints do not fall together
    "learning_rate": 1.0e-3,
    "disable_dropout": False,
}


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    from preftune.demo.corpus import corpus_texts
    from preftune.demo.model import build_model
    from preftune.demo.settings import ModelSettings
    from preftune.demo.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("faults")
    tokenizer = train_tokenizer(corpus_texts())
    sizes = ModelSettings(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = build_model(tokenizer, seed=0, sizes=sizes)
    model.config.attention_dropout = 0.1  # random numbers are drawn
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    code, said = run(["train", "recipe.yaml", "output_dir=whole"], folder, skip_plots)
    assert code == 0, said
    return folder
