"""What ends a run from outside, said in one line: the disk, another process, a data-loader worker, memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from preftune.errors import PreftuneError, RecipeError, TrainingError
from preftune.model.load import one_line
from preftune.train.checkpoint import checkpoints

GIB = 2**30
# What the libraries say when another process of the run has gone: gloo, NCCL, and the store they meet at.
GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection was likely closed"),
    *("remote process exited or there was a network error", "NCCL communicator was aborted"),
)
# Bytes an optimizer keeps for each trained parameter; all others are taken for Adam with float32 states.
OPTIMIZER_BYTES = {"sgd": 0, "adafactor": 1, "lion": 4, "8bit": 2}
ADAM_BYTES = 8


@contextmanager
def said_plainly(folder: Path) -> Iterator[None]:
    """Turn what comes from outside into a `TrainingError` that says what is left; all else goes through."""
    try:
        yield
    except (PreftuneError, ConnectionError):
        raise
    except (OSError, SafetensorError) as cause:
        gone = "" if folder.is_dir() else f"; the folder '{folder}' is gone"
        raise TrainingError(f"The run cannot write ({one_line(cause)}{gone}). {_go_on(folder)}") from cause
    except torch.OutOfMemoryError as cause:
        raise TrainingError(
            f"Out of memory outside of the micro-batches ({one_line(cause)}): for weights, gradients and optimizer. "
            "Take LoRA (use_peft: true), torch_dtype: bfloat16, or more devices."
        ) from cause
    except RuntimeError as cause:
        said = _outside(str(cause))
        if said is None:
            raise
        raise TrainingError(f"{said} ({one_line(cause)}). {_go_on(folder)}") from cause


def _outside(message: str) -> str | None:
    if message.startswith("DataLoader worker"):
        return "A process that prepares steps has died; dataloader_num_workers: 0 does without"
    if "PytorchStreamWriter" in message or "inline_container" in message:
        return "The run cannot write"
    if "WORLD_SIZE" in os.environ and any(words in message for words in GONE):
        return "Another process of this run has gone; the launcher names the first that failed"
    return None


def _go_on(folder: Path) -> str:
    left = checkpoints(folder)
    if not left:
        return "There is no checkpoint yet: start again."
    return f"{left[0].name} is intact: mend this, and go on with resume_from_checkpoint=auto."


def check_writable(folder: Path) -> None:
    """The run folder can be made and written to.

    Raises:
        RecipeError: it cannot.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise RecipeError(f"'output_dir' {folder}: '{there}' is a file, and a folder was expected. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"'output_dir' {folder}: '{there}' cannot be written to. Choose another, or change its mode.")


def checkpoint_bytes(model: Any, args: Any) -> tuple[int, int]:
    """About how large the final model and a checkpoint become."""
    adapter = hasattr(model, "peft_config")
    saved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not adapter)
    trained = [p for p in model.parameters() if p.requires_grad]
    states = next((size for name, size in OPTIMIZER_BYTES.items() if name in str(args.optim)), ADAM_BYTES)
    masters = sum(4 * p.numel() for p in trained if p.element_size() < 4)
    return saved, saved + masters + states * sum(p.numel() for p in trained)


def check_room(folder: Path, model: Any, args: Any, steps: int, rescue_minutes: float) -> str | None:
    """What is short on the disk for what the run will keep, or None.

    Raises:
        TrainingError: not even the final model and one checkpoint fit.
    """
    final, one = checkpoint_bytes(model, args)
    one = final if args.save_only_model else one
    count = steps // max(int(args.save_steps), 1) + 1 if args.save_strategy == "steps" else 2
    count = 0 if args.save_strategy == "no" else min(count, args.save_total_limit or count)
    kept = max(count - len(checkpoints(folder)), 0)
    free = shutil.disk_usage(folder).free
    least, most = final + one * (count > 0), final + one * (kept + 1) + 2 * one * (rescue_minutes > 0)
    room = f"'{folder}' has {free / GIB:.2f} GiB free"
    if free < least:
        raise TrainingError(
            f"{room}; the final model takes about {final / GIB:.2f} GiB, a checkpoint {one / GIB:.2f}. Choose an "
            "output_dir with more room, or set save_only_model: true or save_strategy: no."
        )
    if free < most:
        return f"{room}; this run may need {most / GIB:.2f} for the model and its checkpoints ({one / GIB:.2f} each)."
    return None
