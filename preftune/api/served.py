"""What is served: the models of one server by their names, each with its chat format and its ending tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preftune.api.text import TokenTexts
from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import ModelError
from preftune.generation import load_vllm
from preftune.model.ends import ending_ids
from preftune.model.load import load_tokenizer
from preftune.model.place import find_model, refuse_pickle
from preftune.model.value_head import base_of, value_head_file
from preftune.serve.chat import open_chat, trained_system
from preftune.serve.reward import RewardModel, open_reward_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A language model under one name.

    model: of transformers, shared by all names of a server; `use` puts its adapter to work.
    system: the text of training, for conversations without a system message.
    ends: token ids that end an answer.
    context: the longest sequence it reads, in tokens, or None.
    rows: token ids go up to it.
    """

    name: str
    model: Any
    format: ChatFormat
    system: str | None
    ends: tuple[int, ...]
    texts: TokenTexts
    context: int | None
    rows: int
    use: Callable[[], None]


@dataclass(frozen=True)
class Shelf:
    """All models of a server: language models by name, or one reward model."""

    language: Mapping[str, Served]
    reward: Mapping[str, RewardModel]

    @property
    def names(self) -> list[str]:
        return [*self.language, *self.reward]


def open_shelf(
    place: str,
    *,
    name: str | None = None,
    adapters: Mapping[str, str] | None = None,
    system: str | None = None,
    score: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    engine: str = "transformers",
) -> Shelf:
    """Load a model and the adapters beside it.

    Args:
        place: as `preftune.serve.chat.open_chat` takes it, or a reward model.
        name: what requests call it; by default the last part of its path, or the hub name.
        adapters: name to folder or hub name; of the same base model.
        system: None takes that of training, an empty text none; of all names.
        score: it is a reward model, also where its files do not say so.
        engine: transformers (ours), or vllm (the extra), for one language model without adapters.

    Raises:
        ModelError: there is no model in one of the places, a name is there twice, or an adapter does not fit.
    """
    adapters = dict(adapters or {})
    name = name or name_of(place)
    if name in adapters:
        raise ModelError(f"'{name}' names the model and an adapter. Give one of them another name (--name, --adapter).")
    if score or is_reward_model(place):
        if adapters:
            raise ModelError(f"'{place}' is a reward model; --adapter goes with language models.")
        if not allow_pickle:
            refuse_pickle(find_model(place))
        return Shelf({}, {name: open_reward_model(place, use_safetensors=None if allow_pickle else True)})
    if engine == "vllm":
        if adapters:
            raise ModelError("--adapter goes with --engine transformers. Merge an adapter with preftune export.")
        return Shelf({name: _served_by_vllm(name, find_model(place), system, trust_remote_code)}, {})
    chat = open_chat(place, system=system, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if not adapters:
        return Shelf({name: _served(name, chat.model, chat.format, chat.system, lambda: None)}, {})
    from preftune.model.adapters import SharedBase  # the extra `lora`

    shared = SharedBase(chat.model)
    found = {}
    for adapter, where in adapters.items():
        where = find_model(where)
        if not allow_pickle:
            refuse_pickle(where)
        shared.add(adapter, where)
        form = read_chat_format(load_tokenizer(where, trust_remote_code=trust_remote_code))
        found[adapter] = (form, trained_system(Path(where)) if system is None else system or None)
    own = _served(name, shared.model, chat.format, chat.system, lambda: shared.use(None))
    others = {
        adapter: _served(adapter, shared.model, form, text, lambda adapter=adapter: shared.use(adapter))
        for adapter, (form, text) in found.items()
    }
    return Shelf({name: own, **others}, {})


def _served_by_vllm(name: str, place: str, system: str | None, trust_remote_code: bool) -> Served:
    refuse_pickle(place)
    form = read_chat_format(load_tokenizer(place, trust_remote_code=trust_remote_code))
    model = load_vllm(
        place, torch_dtype="auto" if torch.cuda.is_available() else "float32", trust_remote_code=trust_remote_code
    )
    return _served(name, model, form, trained_system(Path(place)) if system is None else system or None, lambda: None)


def name_of(place: str) -> str:
    """The last part of a path, a hub name as it is."""
    folder = Path(place).expanduser()
    return folder.resolve().name if folder.exists() else place


def is_reward_model(place: str) -> bool:
    """Whether a folder's files say that it gives scores and not text."""
    folder = Path(find_model(place))
    if not folder.is_dir():
        return False
    if value_head_file(folder) is not None:
        return True
    kinds = _json(folder / "config.json").get("architectures") or []
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds) or (
        _json(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # whoever loads the model says it
    return found if isinstance(found, dict) else {}


def _served(name: str, model: Any, form: ChatFormat, system: str | None, use: Callable[[], None]) -> Served:
    base = base_of(model)
    config = base.config.get_text_config()
    return Served(
        name,
        model,
        form,
        system,
        ending_ids(model, form),
        TokenTexts(form.tokenizer),
        getattr(config, "max_position_embeddings", None),
        int(config.vocab_size),
        use,
    )
