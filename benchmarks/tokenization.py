"""Rows a second from messages to token ids: preftune beside TRL's CPO preprocessing, same rows, one run.

    .bench-env/bin/python benchmarks/tokenization.py --tokenizer FOLDER --data FILE.jsonl.gz

Runs in the environment of the peers (install_peers.sh). Each side starts from conversational rows (prompt, chosen,
rejected as message lists) and ends with token ids, in one process: preftune with `tokenize_examples` without a cache,
TRL with what `CPOTrainer.__init__` does to its data set (`maybe_extract_prompt`, `maybe_apply_chat_template`,
`tokenize_row`, each a `Dataset.map`, caching off). TRL gives the tokenizer one text at a time, so its threads are of no
use there; preftune is measured with them and without. The sides take turns; the best of `--rounds` counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import report

ROOT = report.ROOT
sys.path.insert(0, str(ROOT))

RESULT = ROOT / "benchmarks" / "results" / "tokenization.json"
PACKAGES = ("trl", "transformers", "tokenizers", "datasets")


def trl_rows(examples):
    return [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in example.prompt],
            "chosen": [{"role": "assistant", "content": example.responses[0]}],
            "rejected": [{"role": "assistant", "content": example.responses[1]}],
        }
        for example in examples
    ]


def trl_side(rows, tokenizer, max_length):
    """A function that preprocesses `rows` as CPOTrainer does, bound to a trainer without a model."""
    import datasets
    from datasets import Dataset
    from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt
    from trl.experimental.cpo import CPOTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    trainer = object.__new__(CPOTrainer)
    trainer.processing_class, trainer.is_encoder_decoder = tokenizer, False
    trainer.max_length = max_length
    source = Dataset.from_list(rows)

    def run():
        data = source.map(maybe_extract_prompt)
        data = data.map(maybe_apply_chat_template, fn_kwargs={"processing_class": tokenizer})
        return data.map(trainer.tokenize_row)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    asked = parser.parse_args()

    from transformers import AutoTokenizer

    from preftune.data import load_rows, to_examples, tokenize_examples

    context = report.describe_run("tokenization.py", None)
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    examples = to_examples(load_rows(asked.data), "paired", on_bad_row="skip")[: asked.rows]

    def ours(threads: bool):
        os.environ["TOKENIZERS_PARALLELISM"] = str(threads).lower()
        return tokenize_examples(examples, tokenizer, max_length=asked.max_length)[0]

    sides = {
        "preftune": lambda: ours(threads=True),
        "preftune_one_thread": lambda: ours(threads=False),
        "trl": trl_side(trl_rows(examples), tokenizer, asked.max_length),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = {}
    for _ in range(asked.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            rows = side()
            seconds[name].append(time.perf_counter() - started)
            tokens[name] = count_tokens(rows)
    speed = {name: len(examples) / min(times) for name, times in seconds.items()}
    result = {
        **context,
        "load_after": report.load_average(),
        "rows": len(examples),
        "data": Path(asked.data).name,
        "vocabulary": len(tokenizer),
        "tokens": tokens,
        "rows_per_second": {name: round(value, 1) for name, value in speed.items()},
        "times_as_fast": {name: round(value / speed["trl"], 2) for name, value in speed.items() if name != "trl"},
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    print(json.dumps(result, indent=2))
    if asked.write:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def count_tokens(rows) -> int:
    """Tokens of all prompts and responses together, each sequence with its prompt; to see that the work is the same."""
    if isinstance(rows, list):
        return sum(len(row.prompt_ids) + len(ids) for row in rows for ids in row.response_ids)
    return sum(len(ids) for column in ("chosen_input_ids", "rejected_input_ids") for ids in rows[column])


if __name__ == "__main__":
    main()
