"""`preftune export`: a trained model as one folder that needs nothing else."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

_EPILOG = """examples:
  preftune export runs/lora --out models/mine
  preftune export runs/demo/checkpoint-40 --out models/demo --dtype bfloat16
  preftune export models/mine --out models/mine-small-files --max-shard-size 500MB
  preftune export runs/simpo --out models/gguf --format gguf --dtype q8_0     # llama.cpp, Ollama

MODEL is a run folder, a checkpoint, a model, an adapter (merged into its base model, which its config names), a reward
model, or a hub name.
"""


def main(arguments: Sequence[str]) -> int:
    """Export, and print what was written.

    Raises:
        PreftuneError: the model cannot be loaded, or the folder cannot be written.
    """
    options = _parser().parse_args(arguments)
    from transformers.utils.logging import disable_progress_bar

    from preftune.export.write import ExportOptions, export_model

    disable_progress_bar()
    facts = export_model(
        options.model,
        options.out,
        ExportOptions(
            format=options.format,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            overwrite=options.overwrite,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        ),
    )
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune export",
        description="Write a trained model as one folder: whole weights, tokenizer, chat template, card.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, checkpoint, model, adapter or hub name")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--format", choices=("safetensors", "gguf"), default="safetensors", help="gguf: for llama.cpp and Ollama"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "q8_0"),
        default="auto",
        help="of the weights (as they are); q8_0 of GGUF alone",
    )
    parser.add_argument("--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="largest file (5GB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are pickle files (*.bin)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--json", action="store_true", help="print what export.json holds")
    return parser


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB|KiB|MiB|GiB)", text):
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 500MB, found {text!r}")
    return text


def _print(facts: dict[str, Any], target: str) -> None:
    merged = f", merged into {facts['merged_into']}" if facts["merged_into"] else ""
    print(
        f"{target}: {facts['kind']} {facts['architecture']}, {facts['parameters']:,} parameters in {facts['dtype']}"
        f"{merged}"
    )
    for name, size in facts["files"].items():
        print(f"  {size / 2**20:10.2f} MiB  {name}")
