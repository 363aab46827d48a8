"""`preftune export`: a trained model as one folder that needs nothing else.

In: a run folder, checkpoint, adapter, model or hub name. Out: a folder with the whole weights in safetensors, config,
generation settings, tokenizer with chat template, value head, model card and recipe; or with one GGUF file and a
Modelfile for Ollama in place of the first four. What was written is read back and held against what was meant before
the folder appears under its name.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from preftune import __version__
from preftune.data.chat import read_chat_format
from preftune.errors import MissingExtraError, ModelError
from preftune.export.card import exported_card
from preftune.export.check import check_tokenizer, check_weights
from preftune.export.ollama import modelfile
from preftune.export.target import MANIFEST, check_room, check_target, staged
from preftune.export.weights import WholeModel, load_whole
from preftune.model.ends import ending_ids
from preftune.model.load import one_line
from preftune.model.place import find_model, run_folder
from preftune.model.value_head import BIAS, FILES, WEIGHT, load_value_head, save_value_head, value_head_file
from preftune.serve.chat import trained_system

log = logging.getLogger(__name__)
SPARE = 32 * 2**20  # tokenizer, card and plots
GGUF = "model.gguf"
CARRIED = ("recipe.yaml", "summary.json", "log.jsonl", "watch.jsonl", "samples.md")
CARRIED_FOLDERS = ("plots", "samples")


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Args:
        format: safetensors or gguf.
        dtype: of the weights: auto (as they are), float32, bfloat16 or float16; of GGUF also q8_0.
        max_shard_size: the largest file of weights, such as 5GB or 500MB.
        overwrite: replace an earlier export.
        trust_remote_code: run code that comes with the model.
        allow_pickle: read weights that are there as pickle files alone.
    """

    format: str = "safetensors"
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    overwrite: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False


def export_model(name: str, target: str | Path, options: ExportOptions | None = None) -> dict[str, Any]:
    """Write the model into the folder `target`, and return what its export.json holds.

    Raises:
        ModelError: the model cannot be loaded or merged, the folder cannot be written, or what was written is not what
            was meant; of GGUF: llama.cpp has no such model or tokenizer.
        MissingExtraError: GGUF needs the extra `gguf`.
    """
    options, target = options or ExportOptions(), Path(target).expanduser()
    if options.format == "gguf" and find_spec("gguf") is None:
        raise MissingExtraError("--format gguf", "gguf")
    if options.dtype == "q8_0" and options.format != "gguf":
        raise ModelError("--dtype q8_0 is of GGUF files. Add --format gguf, or give another dtype.")
    name = find_model(name)
    run = run_folder(name)
    check_target(target, [folder for folder in (Path(name), run) if folder is not None and folder.exists()],
                 options.overwrite)  # fmt: skip
    whole = load_whole(
        name,
        dtype="auto" if options.dtype == "q8_0" else options.dtype,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )
    check_room(target, _bytes_of(whole) + SPARE)
    with staged(target) as folder:
        facts = _facts(name, whole, options)
        if options.format == "gguf":
            facts |= _write_gguf(name, whole, options, folder, target.absolute().name)
        else:
            _write(name, whole, options, folder)
        _carry_run(run, folder)
        (folder / "README.md").write_text(exported_card(target.absolute().name, run, facts), encoding="utf-8")
        facts["files"] = {
            str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()
        }
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return facts


def _write(name: str, whole: WholeModel, options: ExportOptions, folder: Path) -> None:
    """Weights, config, tokenizer and value head, checked as they lie there."""
    try:
        whole.model.save_pretrained(folder, max_shard_size=options.max_shard_size)
    except (ValueError, RuntimeError) as cause:
        raise ModelError(f"'{name}' cannot be saved in transformers' files: {one_line(cause)}") from cause
    check_weights(whole.model, folder)
    if whole.tokenizer is None:
        log.warning("'%s' has no tokenizer, and so the export has none.", name)
    else:
        whole.tokenizer.save_pretrained(folder)
        check_tokenizer(whole.tokenizer, folder)
    _carry_value_head(name, whole, folder, options.allow_pickle)


def _write_gguf(name: str, whole: WholeModel, options: ExportOptions, folder: Path, title: str) -> dict[str, Any]:
    """The GGUF file, checked as it lies there, and the Modelfile; what export.json says of them."""
    from preftune.export.gguf_file import check_gguf, read_gguf, write_gguf  # the extra `gguf`

    if whole.reward or value_head_file(name) is not None:
        raise ModelError(f"'{name}' has a score head, which a GGUF file of a language model has no place for. Leave "
                         "--format out.")  # fmt: skip
    if whole.tokenizer is None:
        raise ModelError(f"'{name}' has no tokenizer, and a GGUF file holds one. Add it to the folder.")
    chat = read_chat_format(whole.tokenizer)
    ends = ending_ids(whole.model, chat)
    dtype = options.dtype if options.dtype == "q8_0" else str(whole.model.dtype).removeprefix("torch.")
    file = read_gguf(whole.model, whole.tokenizer, chat, title, ends)
    write_gguf(file, folder / GGUF, dtype)
    check_gguf(file, folder / GGUF, dtype)
    names = whole.tokenizer.convert_ids_to_tokens(list(ends))
    system = trained_system(Path(name))
    text, recognised = modelfile(chat, GGUF, names, system, file.vocabulary.adds_bos)
    if not recognised:
        log.warning("The Modelfile has no TEMPLATE: the model's is not questions and answers between fixed texts.")
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return {"dtype": dtype, "tokenizer": f"{file.vocabulary.model}, {file.vocabulary.pre}", "template": recognised}


def _carry_value_head(name: str, whole: WholeModel, folder: Path, allow_pickle: bool) -> None:
    """The score head once more as a file of its own, where there is such a file."""
    file = value_head_file(name)
    if file is None:
        return
    if whole.reward:
        save_value_head(whole.model, folder)
        return
    if file.suffix != ".safetensors" and not allow_pickle:
        raise ModelError(f"'{file}' is a pickle, which can hold a program. Add --allow-pickle if you trust its origin.")
    head = load_value_head(name)
    save_file({WEIGHT: head.weight, BIAS: head.bias}, folder / FILES["safetensors"], metadata={"format": "pt"})


def _carry_run(run: Path | None, folder: Path) -> None:
    """What a reader of the card wants to see of the run."""
    if run is None:
        return
    for file in CARRIED:
        if (run / file).is_file():
            shutil.copyfile(run / file, folder / file)
    for part in CARRIED_FOLDERS:
        for file in sorted((run / part).glob("*")) if (run / part).is_dir() else []:
            if file.is_file() and file.suffix in (".png", ".md"):
                (folder / part).mkdir(exist_ok=True)
                shutil.copyfile(file, folder / part / file.name)


def _bytes_of(whole: WholeModel) -> int:
    return sum(weight.numel() * weight.element_size() for weight in whole.model.parameters())


def _facts(name: str, whole: WholeModel, options: ExportOptions) -> dict[str, Any]:
    return {
        "preftune": __version__,
        "format": options.format,
        "model": _said(name),
        "kind": "reward model" if whole.reward else "language model",
        "architecture": type(whole.model).__name__,
        "parameters": whole.model.num_parameters(),
        "dtype": str(whole.model.dtype).removeprefix("torch."),
        "merged_into": whole.base and _said(whole.base),
        "options": asdict(options),
    }


def _said(name: str) -> str:
    """Of a folder its own name: the rest concerns one machine."""
    return Path(name).resolve().name if Path(name).exists() else name
