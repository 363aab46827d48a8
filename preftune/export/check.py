"""What was written is what was meant: weights by tensor, tokenizer by the ids it gives."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.chat import PROBE_QUESTION, PROBE_TEXT, read_chat_format
from preftune.errors import ModelError, PreftuneError
from preftune.model.load import load_tokenizer, one_line
from preftune.types import Message

INDEX = "model.safetensors.index.json"
ANSWER = "The answer is 42.\n  * 答案是 42。"
CONVERSATIONS = (
    (Message("user", PROBE_QUESTION),),
    (Message("user", PROBE_TEXT), Message("assistant", ANSWER), Message("user", "用一句话说。")),
    (Message("system", "Be brief."), Message("user", "Why?")),
)


def check_weights(model: PreTrainedModel, folder: Path) -> None:
    """Every tensor of the model is in the files, bit by bit; one that is tied to another may be left out.

    Raises:
        ModelError: one is missing or differs.
    """
    state = model.state_dict()
    written: dict[tuple[int, torch.Size], bool] = {}
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118, not a dict
                    if key not in state:
                        continue  # renamed by the architecture's own rules; what is missing shows below
                    found = tensors.get_tensor(key)
                    if found.dtype != state[key].dtype or not torch.equal(found, state[key].cpu()):
                        raise ModelError(f"{file.name}: {key} is not what was to be written. Export again.")
                    written[state[key].data_ptr(), state[key].shape] = True
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"The weights in '{folder}' cannot be read back ({one_line(cause)}).") from cause
    missing = [key for key, tensor in state.items() if (tensor.data_ptr(), tensor.shape) not in written]
    if missing and not _renames(model):
        raise ModelError(f"'{folder}' lacks {len(missing)} weights, such as {missing[0]}. Export again.")


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the only one.

    Raises:
        ModelError: there are none.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise ModelError(f"'{folder}' holds no model.safetensors.")


def _renames(model: PreTrainedModel) -> bool:
    """transformers writes some architectures under other names than they have in memory (fused experts)."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer in the folder gives the ids of the one that was saved, of texts and of conversations.

    Raises:
        ModelError: it does not.
    """
    before, after = tokenizer, load_tokenizer(str(folder))
    texts = [PROBE_TEXT, ANSWER, *map(str, list(tokenizer.added_tokens_decoder.values())[:64])]
    for text in texts:
        if before(text)["input_ids"] != after(text)["input_ids"]:
            raise ModelError(
                f"The saved tokenizer gives other ids than before for {text!r}. Use another release of it."
            )
    for conversation in CONVERSATIONS:
        if _prompt(before, conversation) != _prompt(after, conversation):
            raise ModelError("The saved tokenizer writes other prompts than before. Use another release of it.")


def _prompt(tokenizer: PreTrainedTokenizerBase, conversation: tuple[Message, ...]) -> list[int] | str:
    try:
        return read_chat_format(tokenizer).prompt_ids([conversation])[0]
    except PreftuneError as refusal:  # a template that knows no such turns refuses before and after
        return str(refusal)
