"""What a PPO checkpoint holds beside the policy's own files, so that a resumed run goes on to the same bits.

trained.pt      weights that are trained, of the policy and of the value model, by name
training.pt     optimizer, schedule
window.json     figures of the steps since the last log line, and how many updates the run has left out
rng_state_R.pt  random states of process R
trainer_state.json  step, history, best figure (transformers' TrainerState)
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.errors import CheckpointError
from preftune.train.ppo.models import Models
from preftune.train.window import FILE as WINDOW

TRAINED, TRAINING, STATE = "trained.pt", "training.pt", "trainer_state.json"


def save_training(folder: Path, models: Models, optimizer: Any, scheduler: Any) -> None:
    torch.save({"policy": _trained(models.policy), "value": _trained(models.value)}, folder / TRAINED)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, folder / TRAINING)


def load_training(folder: Path, models: Models, optimizer: Any, scheduler: Any) -> None:
    """Put everything back.

    Raises:
        CheckpointError: a part is missing.
    """
    trained, training = (_load(folder, name) for name in (TRAINED, TRAINING))
    with torch.no_grad():
        for name, model in (("policy", models.policy), ("value", models.value)):
            for parameter_name, parameter in _trained(model).items():
                parameter.copy_(trained[name][parameter_name])
    optimizer.load_state_dict(training["optimizer"])
    scheduler.load_state_dict(training["scheduler"])


def save_random_state(folder: Path, rank: int) -> None:
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, folder / f"rng_state_{rank}.pt")


def load_random_state(folder: Path, rank: int) -> None:
    """Draw on where the checkpoint stopped.

    Raises:
        CheckpointError: it was saved by another number of processes.
    """
    states = _load(folder, f"rng_state_{rank}.pt")
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_window(folder: Path, window: list[dict[str, float]], skipped: int) -> None:
    (folder / WINDOW).write_text(json.dumps({"steps": window, "skipped": skipped}), encoding="utf-8")


def load_window(folder: Path) -> tuple[list[dict[str, float]], int]:
    """Of a checkpoint that was saved without: an empty one."""
    if not (folder / WINDOW).is_file():
        return [], 0
    found = json.loads((folder / WINDOW).read_text(encoding="utf-8"))
    return found["steps"], found["skipped"]


def _trained(model: Any) -> dict[str, Any]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _load(folder: Path, name: str) -> Any:
    if not (folder / name).is_file():
        raise CheckpointError(
            f"'{folder}' has no {name}: going on without it would be another run. It was saved with save_only_model, "
            "or by another number of processes."
        )
    return torch.load(folder / name, map_location="cpu", weights_only=True)
