"""Makes docs/ppo.png: PPO with three strengths of the KL penalty, on a small random model and a rule. A minute on CPU.

python docs/make_ppo.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "ppo.png"
STRENGTHS = (0.02, 0.1, 1.0)
RULE = """
def letters(prompts, responses):
    return [sum("a" <= character <= "z" for character in text) / 8 for text in responses]
"""
SETTINGS: dict[str, Any] = {
    "model_name_or_path": "model",
    "dataset": "prompts.jsonl",
    "objective": "ppo",
    "reward_function": "letter_rules:letters",
    "response_length": 8,
    "max_length": 64,
    "temperature": 1.0,
    "total_batch_size": 32,
    "num_mini_batches": 2,
    "max_steps": 24,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}


def runs() -> dict[float, list[dict[str, float]]]:
    """The log of a run for each strength, in a folder of its own."""
    sys.path.insert(0, str(ROOT))
    from preftune import train
    from preftune.train.record import read_log
    from tests.data.conftest import CHATML, build_byte_tokenizer
    from tests.small import build_model

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("letter_rules.py").write_text(RULE)
        Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(16)))
        tokenizer = build_byte_tokenizer(CHATML)
        build_model(vocab_size=len(tokenizer), num_hidden_layers=2).save_pretrained("model")
        tokenizer.save_pretrained("model")
        logs = {}
        for strength in STRENGTHS:
            train(None, **SETTINGS, kl_coef=strength, output_dir=f"run-{strength}")
            logs[strength] = read_log(Path(f"run-{strength}") / "log.jsonl")
        os.chdir(ROOT)
    return logs


def draw(logs: dict[float, list[dict[str, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("objective/scores", "score (share of letters)"), ("objective/kl", "KL of a response (nats)"))
    for axes, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for strength, log in logs.items():
            axes.plot([line["step"] for line in log], [line[name] for line in log], label=f"kl_coef {strength:g}")
        axes.set_xlabel("step (32 x 2 responses each)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    found = runs()
    draw(found)
    for strength, log in found.items():
        last = log[-3:]
        means = {name: sum(line[name] for line in last) / 3 for name in ("objective/scores", "objective/kl")}
        print(strength, {name: round(value, 3) for name, value in means.items()})
