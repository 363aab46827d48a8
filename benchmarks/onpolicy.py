"""The on-policy chain on a small real model: does the reward of fresh answers rise, and with every seed?

    PREFTUNE_TEST_DATA=path/to/data python benchmarks/onpolicy.py        into benchmarks/results/onpolicy.{md,json}
    PREFTUNE_TEST_DATA=path/to/data python benchmarks/onpolicy.py --seeds 0 --prompts 16 --rounds 1 --out /tmp/x

For each seed a reward model is trained on the emoji pairs; the chain then samples five answers to each prompt, scores
them, sets best against worst, trains SimPO, and measures one fresh answer to each held-out prompt, round by round. The
seed sets the reward model's order and head, the training order, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import yaml

RESULTS = report.ROOT / "benchmarks" / "results"
EVALS = ("gpt", "gpt_multi_task", "sharegpt_diverse_correct_gpt_refine", "sharegpt_simple")  # held out, 244 prompts
COMMON = {"chat_template": "plain", "max_length": 512, "max_prompt_length": 256, "total_batch_size": 32}
COMMON |= {"save_strategy": "no", "logging_steps": 1, "warmup_ratio": 0.1}


def run(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT)}
    done = subprocess.run([sys.executable, "-m", "preftune", *words], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"onpolicy.py: preftune {' '.join(words)} ended with {done.returncode}")


def rounds_of(seed: int, folder: Path, data: Path, prompts: int, rounds: int) -> list[dict[str, Any]]:
    """The table of one seed."""
    model, pairs = data / "models/stories260K-llama", data / "preferences/emoji"
    reward = {"model_name_or_path": str(model), "objective": "reward", "num_train_epochs": 3, "seed": seed, **COMMON}
    reward |= {
        "dataset": str(pairs / "dpo_emoji_english_gpt.train.jsonl"),
        "output_dir": "reward",
        "learning_rate": 1e-3,
    }
    (folder / "reward.yaml").write_text(yaml.safe_dump(reward))
    run(["train", "reward.yaml"], folder)
    chain = {
        "model_name_or_path": str(model),
        "prompts": f"{pairs / 'dpo_emoji_english_gpt.train.jsonl'}#{prompts}",
        "eval_prompts": [str(pairs / f"dpo_emoji_english_{name}.eval.jsonl") for name in EVALS],
        "rounds": rounds,
        "sample": {"max_tokens": 48},
        "annotate": {"reward_model": "reward"},
        "pairs": {"test_share": 0.1},
        "train": {"objective": "simpo", "num_train_epochs": 2, "seed": seed, "learning_rate": 3e-4, **COMMON},
        "output_dir": "chain",
    }
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    run(["onpolicy", "chain.yaml"], folder)
    return json.loads((folder / "chain" / "rounds.json").read_text())


def render(found: dict[int, list[dict[str, Any]]], prompts: int, context: dict[str, Any], seconds: float) -> str:
    rows = []
    for seed, table in found.items():
        for row in table:
            accuracy = row.get("accuracy")
            over = f"{row['over_start']:.0%}" if row["round"] else ""
            cells = [
                str(seed),
                str(row["round"] or "start"),
                f"{row['reward']:.3f}",
                str(row["answers"]),
                over,
                f"{row['tokens']:.1f}",
            ]
            rows.append([*cells, str(row.get("pairs", "")), "" if accuracy is None else f"{accuracy:.0%}"])
    header = [
        "seed",
        "round",
        "mean reward",
        "of answers",
        "better than the start's",
        "tokens",
        "pairs",
        "held-out accuracy",
    ]
    answers = next(iter(found.values()))[0]["answers"]
    return "\n".join(
        [
            "# On-policy rounds",
            "",
            *report.heading(context, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))),
            "",
            "stories260K (260 K parameters, trained on children's stories), a reward model of the same size trained on "
            f"the emoji pairs, five answers to each of {prompts} prompts a round, SimPO for two epochs. Reward: of one "
            f"fresh answer to each of {answers} held-out prompts. {seconds:.0f} s in all.",
            "",
            report.markdown_table(header, rows),
            "",
            "What it shows: the chain moves the model towards what its reward model scores, on prompts that no round "
            "has seen. What it does not: that the answers are better; a reward model of this size knows nothing of it.",
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    data = os.environ.get("PREFTUNE_TEST_DATA")
    if not data:
        print("onpolicy.py: set PREFTUNE_TEST_DATA to the folder that holds models/ and preferences/", file=sys.stderr)
        return 2
    context, started, found = report.describe_run("onpolicy.py", argv), time.perf_counter(), {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="onpolicy-") as folder:
            found[seed] = rounds_of(seed, Path(folder), Path(data), options.prompts, options.rounds)
    context["load_after"] = report.load_average()
    page = render(found, options.prompts, context, time.perf_counter() - started)
    print(page)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "onpolicy.md").write_text(page, encoding="utf-8")
    record = json.dumps({**context, "rounds": found}, indent=1) + "\n"
    (options.out / "onpolicy.json").write_text(record, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
