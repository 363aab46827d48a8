"""Where a model is: a folder, the newest checkpoint of a run that has no final model, or a hub name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from preftune.errors import ModelError

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "value_head.bin")


def find_model(name: str) -> str:
    """A folder that holds a model (`model_folder`), or a hub name as it is.

    Raises:
        ModelError: it is neither.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and _HUB_NAME.fullmatch(name):
        return name
    return str(model_folder(folder))


def model_folder(folder: Path) -> Path:
    """The folder itself, or the newest checkpoint of a run that has no final model.

    Raises:
        ModelError: there is no model.
    """
    if folder.is_file():
        raise ModelError(f"'{folder}' is a file; give the folder that holds config.json and the weights.")
    if not folder.is_dir():
        raise ModelError(f"The folder '{folder}' does not exist. 'preftune demo' makes one: runs/demo.")
    if _holds_model(folder):
        return folder
    numbered = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-[0-9]*") if _is_model(path)}
    if not numbered:
        raise ModelError(f"There is no model in '{folder}': no config.json, adapter_config.json or checkpoint-N.")
    newest = numbered[max(numbered)]
    log.info("The run has no final model; using %s.", newest)
    return newest


def run_folder(model: str | Path) -> Path | None:
    """The folder of the run that a model is from, by its recipe.yaml: the model's own or the one above it."""
    folder = Path(model).expanduser()
    return next((place for place in (folder, folder.parent) if (place / "recipe.yaml").is_file()), None)


def refuse_pickle(name: str) -> None:
    """A local model whose weights are there as pickle files alone, of the model, its adapter or its base.

    Such a file is a program that can run anything when it is read. torch reads tensors alone from it, but that is a
    wall with a history of holes, so it is climbed only when asked.

    Raises:
        ModelError: there is one.
    """
    own = Path(name).expanduser()
    for folder in (own, _base_folder(own)):
        for pattern in _PICKLES:
            for file in folder.glob(pattern) if folder is not None else ():
                if not list(folder.glob(f"{file.stem.replace('pytorch_', '').partition('-')[0]}*.safetensors")):
                    raise ModelError(
                        f"'{file}' is a pickle, which can hold a program, and there are no safetensors beside it. Add "
                        "--allow-pickle if you trust where it comes from."
                    )


def weights_mark(name: str) -> dict[str, list[int]]:
    """Path -> size and time of the files with the weights of a folder, an adapter's base too; nothing of a hub name."""
    own = Path(name).expanduser()
    folders = [folder for folder in (own, _base_folder(own)) if folder is not None and folder.is_dir()]
    files = [path for folder in folders for kind in ("*.safetensors", "*.bin") for path in sorted(folder.glob(kind))]
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _base_folder(folder: Path) -> Path | None:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return Path(base).expanduser()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no adapter, or one that whoever loads it will complain of


def _is_model(path: Path) -> bool:
    return path.name.removeprefix("checkpoint-").isdigit() and _holds_model(path)


def _holds_model(folder: Path) -> bool:
    """Weights with their config, or an adapter, which names its base model."""
    return any((folder / file).exists() for file in ("config.json", "adapter_config.json"))
