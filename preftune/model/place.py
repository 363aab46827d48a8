"""Where a model is: a folder, the newest checkpoint of a run that has no final model, or a hub name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from preftune.errors import ModelError

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADAPTER = "adapter_config.json"
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
    """A model whose weights are there as pickle files alone, of the model, its adapter or its base.

    Such a file is a program that can run anything when it is read. torch reads tensors alone from it, but that is a
    wall with a history of holes, so it is climbed only when asked. Of hub names the adapters alone are looked at:
    whoever loads a whole model from there says `use_safetensors`.

    Raises:
        ModelError: there is one.
    """
    own = Path(name).expanduser()
    config = own / _ADAPTER if own.exists() else _from_hub(name, _ADAPTER)
    for place, revision in ((name, "main"), *_base(config)):
        folder = Path(place).expanduser()
        on_hub = not folder.exists() and _from_hub(place, _ADAPTER, revision) is not None
        if on_hub and _from_hub(place, "adapter_model.safetensors", revision) is None:
            raise ModelError(
                f"'{place}' is an adapter without adapter_model.safetensors: a pickle, which can hold a program. Add "
                "--allow-pickle if you trust where it comes from."
            )
        for pattern in _PICKLES:
            for file in folder.glob(pattern):
                if not list(folder.glob(f"{file.stem.replace('pytorch_', '').partition('-')[0]}*.safetensors")):
                    raise ModelError(
                        f"'{file}' is a pickle, which can hold a program, and there are no safetensors beside it. Add "
                        "--allow-pickle if you trust where it comes from."
                    )


def weights_mark(name: str) -> dict[str, list[int]]:
    """Path -> size and time of the files with the weights of a folder, an adapter's base too; nothing of a hub name."""
    own = Path(name).expanduser()
    places = (own, *(Path(base).expanduser() for base, _ in _base(own / _ADAPTER)))
    folders = [folder for folder in places if folder.is_dir()]
    files = [path for folder in folders for kind in ("*.safetensors", "*.bin") for path in sorted(folder.glob(kind))]
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _base(config: Path | None) -> list[tuple[str, str]]:
    """The base model that an adapter's config names, with its revision, if it does."""
    try:
        said = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
        return [(base, said.get("revision") or "main")] if (base := said.get("base_model_name_or_path")) else []
    except (OSError, ValueError, AttributeError):
        return []  # no adapter, or one that whoever loads it will complain of


def _from_hub(name: str, file: str, revision: str = "main") -> Path | None:
    """A file of a hub name; None where it is not there."""
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except (HfHubHTTPError, OSError, ValueError):  # whoever loads the model says what is wrong
        return None


def _is_model(path: Path) -> bool:
    return path.name.removeprefix("checkpoint-").isdigit() and _holds_model(path)


def _holds_model(folder: Path) -> bool:
    """Weights with their config, or an adapter, which names its base model."""
    return any((folder / file).exists() for file in ("config.json", "adapter_config.json"))
