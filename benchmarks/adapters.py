"""Eight LoRA candidates of a sweep: trained together over one base model, beside eight runs of their own.

    PREFTUNE_TEST_DATA=path/to/data python benchmarks/adapters.py         into benchmarks/results/adapters.{md,json}
    PREFTUNE_TEST_DATA=path/to/data python benchmarks/adapters.py --cells small --out /tmp/x

Each cell is `preftune sweep` twice over real pairs, run by run and with --together, from empty stores. Both share token
ids and reference log-probs among their runs. The seconds are divided into those of the optimizer steps (between the
first and the last line of a log, for N steps times N / (N - 1)) and all else: starting Python, importing, reading
rows, loading and checking the model, the reference pass, evaluation, saving, plots. Every adapter and loss is
compared with that of its run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import yaml

RESULTS = report.ROOT / "benchmarks" / "results"
RATES, BETAS = (5e-5, 1e-4, 2e-4, 4e-4), (0.05, 0.1)
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
# name: what it is, steps, pairs of a step; of the small model, or of a Llama with random weights
CELLS: dict[str, dict[str, Any]] = {
    "small": {"model": "stories260K, 260 thousand parameters", "max_steps": 40, "total_batch_size": 4},
    "short": {"model": "Llama, 36 million parameters, random weights", "max_steps": 6, "total_batch_size": 2},
    "long": {"model": "Llama, 36 million parameters, random weights", "max_steps": 3, "total_batch_size": 16},
}


def build_llama(folder: Path, tokenizer: Path) -> None:
    """36 million parameters (tied), with the vocabulary of Llama 2."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(**LLAMA, vocab_size=len(words), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def sweep(folder: Path, recipe: Path, name: str, *words: str) -> dict[str, float]:
    """Wall and CPU seconds of a sweep into `folder / name`."""
    tries = [f"learning_rate={','.join(map(str, RATES))}", f"beta={','.join(map(str, BETAS))}"]
    command = [sys.executable, "-m", "preftune", "sweep", str(recipe), "--output", str(folder / name), *words]
    command += [word for one in tries for word in ("--try", one)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"adapters.py: {' '.join(command)} ended with {done.returncode}; see {folder / name}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu}


def measure(cell: dict[str, Any], folder: Path, data: Path) -> dict[str, Any]:
    """Seconds of both ways, and how far their results lie apart."""
    settings = {key: cell[key] for key in ("max_steps", "total_batch_size")}
    model = data / "models/stories260K-llama"
    if "Llama" in cell["model"]:
        model = folder / "model"
        build_llama(model, data / "tokenizers/llama2/hf")
    pairs = data / "preferences/emoji"
    recipe = folder / "r.yaml"
    settings |= {
        "model_name_or_path": str(model),
        "dataset": str(pairs / "dpo_emoji_english_gpt.train.jsonl"),
        "eval_dataset": f"{pairs / 'dpo_emoji_english_gpt.eval.jsonl'}#8",
        "chat_template": "plain",
        "objective": "dpo",
        "use_peft": True,
        "max_length": 512,
        "logging_steps": 1,
        "save_strategy": "no",
        "watch": False,
    }
    recipe.write_text(yaml.safe_dump(settings))
    alone, together = sweep(folder, recipe, "alone"), sweep(folder, recipe, "together", "--together")
    spans = {name: [span(arm) for arm in arms(folder / name)] for name in ("alone", "together")}
    summary = json.loads((arms(folder / "alone")[0] / "model/summary.json").read_text())
    return {
        "tokens_per_step": round(summary["tokens_total"] / cell["max_steps"]),
        "alone": {**alone, "steps": sum(spans["alone"])},
        "together": {**together, "steps": min(spans["together"])},  # one joint loop: the others end later
        **differences(folder),
    }


def span(arm: Path) -> float:
    """Seconds of the steps of a run."""
    lines = [json.loads(line) for line in (arm / "model/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return (steps[-1]["seconds"] - steps[0]["seconds"]) * len(steps) / (len(steps) - 1)


def arms(folder: Path) -> list[Path]:
    return sorted((folder / "arms").iterdir())


def setting_of(arm: Path) -> str:
    return arm.name.rpartition("-")[0]


def differences(folder: Path) -> dict[str, float]:
    """The largest of any weight of an adapter, and of any loss of a step, between the two ways."""
    from safetensors.torch import load_file

    weights = losses = 0.0
    others = {setting_of(arm): arm for arm in arms(folder / "together")}
    for arm in arms(folder / "alone"):
        one, other = (load_file(path / "model/adapter_model.safetensors") for path in (arm, others[setting_of(arm)]))
        weights = max(weights, *((one[key] - other[key]).abs().max().item() for key in one))
        lines = [(path / "model/log.jsonl").read_text().splitlines() for path in (arm, others[setting_of(arm)])]
        for first, second in zip(*lines, strict=True):
            records = json.loads(first), json.loads(second)
            losses = max(
                losses, *(abs(records[0][k] - records[1][k]) for k in ("loss", "eval_loss") if k in records[0])
            )
    return {"weight_difference": weights, "loss_difference": losses}


def render(found: dict[str, dict[str, Any]], context: dict[str, Any]) -> str:
    header = [
        "model",
        "steps of pairs",
        "tokens of a step",
        "way",
        "seconds",
        "of these steps",
        "all else",
        "CPU seconds",
    ]
    rows, lines = [], []
    for name, cell in found.items():
        alone, together = cell["alone"], cell["together"]
        for way, took in (("8 runs alone", alone), ("together", together)):
            rest = took["seconds"] - took["steps"]
            figures = [f"{took['seconds']:.1f}", f"{took['steps']:.1f}", f"{rest:.1f}", f"{took['cpu_seconds']:.1f}"]
            size = f"{cell['max_steps']} of {cell['total_batch_size']}"
            rows.append([cell["model"], size, str(cell["tokens_per_step"]), way, *figures])
        saved = alone["seconds"] - together["seconds"]
        of_steps = (alone["steps"] - together["steps"]) / saved if saved > 0 else float("nan")
        lines.append(
            f"- {name}: {alone['seconds'] / together['seconds']:.2f} times as fast in all ("
            f"{alone['cpu_seconds'] / together['cpu_seconds']:.2f} by CPU seconds), the steps "
            f"{alone['steps'] / together['steps']:.2f} times; {of_steps:.0%} of what is saved are steps. Largest "
            f"difference of a weight {cell['weight_difference']:.1e}, of a loss {cell['loss_difference']:.1e}."
        )
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    about = (
        f"DPO with LoRA (rank 16, all linear layers, float32) on the emoji pairs; {len(RATES)} learning rates "
        f"({', '.join(map(str, RATES))}) times {len(BETAS)} betas, held-out rows at the end. Both ways keep "
        "token ids and reference log-probs once for all their runs. Once each, one after the other."
    )
    page = ["# Adapters together", "", *report.heading(context, threads), "", about, ""]
    return "\n".join([*page, report.markdown_table(header, rows), "", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    data = os.environ.get("PREFTUNE_TEST_DATA")
    if not data:
        print("adapters.py: set PREFTUNE_TEST_DATA to the folder that holds models/ and preferences/", file=sys.stderr)
        return 2
    context, found = report.describe_run("adapters.py", argv), {}
    for name in options.cells:
        with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
            found[name] = {**CELLS[name], **measure(CELLS[name], Path(folder), Path(data))}
        context["load_after"] = report.load_average()
        write(found, context, options.out)
    print(render(found, context))
    return 0


def write(found: dict[str, dict[str, Any]], context: dict[str, Any], folder: Path) -> None:
    """After every cell."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapters.md").write_text(render(found, context), encoding="utf-8")
    (folder / "adapters.json").write_text(json.dumps({**context, "cells": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
