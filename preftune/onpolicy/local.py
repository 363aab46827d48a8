"""Sampling by a model in this process, one process of several where torchrun started them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from preftune.data.bad_rows import OnBadRow
from preftune.generation import Sampling, load_vllm
from preftune.model.load import load_model, load_tokenizer
from preftune.onpolicy.answers import EngineAnswerer
from preftune.onpolicy.journal import check_output
from preftune.onpolicy.prompts import load_prompts
from preftune.onpolicy.sample import CHUNK, SEEDS, sample_prompts
from preftune.serve.chat import model_folder, trained_system


def sample_file(
    model: str,
    prompts: Sequence[str | Path],
    output: str | Path,
    *,
    seeds: Sequence[int] = SEEDS,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    max_tokens: int = 4096,
    system: str | None = None,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    on_bad_row: OnBadRow | None = None,
    limit: int | None = None,
    chunk: int = CHUNK,
    slots: int = 32,
    torch_dtype: str | None = None,
    engine: str = "transformers",
) -> dict[str, Any]:
    """Answer every prompt of the sources, or go on doing so; see `preftune.onpolicy.sample`.

    Under torchrun (RANK, WORLD_SIZE, LOCAL_RANK) each process does its share of the chunks.

    Args:
        model: a folder (also a run that has only checkpoints) or a hub name.
        prompts: what `load_preferences` reads, with answers or without.
        system: for prompts without one; None takes that of the model's training, "" takes none.
        torch_dtype: of the weights; None is float32 on CPU, as saved on a GPU.
        engine: transformers (ours), or vllm (the extra).

    Raises:
        PreftuneError: the model, a source or a setting is wrong, or a job with other settings was begun.
    """
    sampling = Sampling(max_tokens, temperature, top_p, top_k)
    check_output(Path(output))
    name = str(model_folder(Path(model))) if Path(model).is_dir() else model
    chosen = load_prompts(
        prompts,
        split=split,
        columns=columns,
        on_bad_row=on_bad_row,
        system=trained_system(Path(name)) if system is None else system,
        limit=limit,
    )
    device = f"cuda:{_variable('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    dtype = torch_dtype or ("float32" if device == "cpu" else "auto")
    rank, world = process_place()
    loaded: Any = (
        load_vllm(name, torch_dtype=dtype)
        if engine == "vllm"
        else load_model(name, torch_dtype=dtype).to(device).eval()  # type: ignore[arg-type]
    )
    return sample_prompts(
        chosen,
        EngineAnswerer(loaded, load_tokenizer(name), sampling, slots),
        output,
        seeds=seeds,
        chunk=chunk,
        rank=rank,
        world=world,
        settings={"engine": engine, "model": name, "weights": weights_mark(name), "torch_dtype": dtype},
    )


def process_place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return _variable("RANK", 0), _variable("WORLD_SIZE", 1)


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def weights_mark(folder: str) -> str | None:
    """A hash of a folder's weight files: a model that was trained on is another model, a copy is the same.

    Of every byte, a second or two a GB and several files at once: a run may have trained one layer in the middle of a
    file alone, or some rows of a matrix.
    """
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    with ThreadPoolExecutor() as pool:
        for path, own in zip(files, pool.map(_hash_of, files), strict=True):
            digest.update(f"{path.name} ".encode() + own)
    return digest.hexdigest()


def _hash_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
