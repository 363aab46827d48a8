"""Several LoRA adapters on one base model, one of them at work at a time (extra `lora`).

    shared = SharedBase(model)                     # a plain model, or one with an adapter of its own
    shared.add("terse", "runs/terse")
    shared.use("terse")                            # None: the model as it was given

The base's weights are there once. An adapter that would change them (rows for tokens of its own, a start that splits
them) is refused, so that each answers as it does alone.
"""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig

from preftune.errors import ModelError
from preftune.model.load import find_adapter
from preftune.model.lora import PeftConfig, load_adapter, one_line, same_place
from preftune.model.value_head import base_of

OWN = "default"  # PEFT's name of the adapter that a model is loaded with


class SharedBase:
    """A base model and its adapters by name.

    Args:
        model: as loaded by `preftune.model.load.load_model`, on its device.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._in_peft: dict[str | None, str] = {None: OWN} if hasattr(model, "peft_config") else {}

    def add(self, name: str, place: str) -> None:
        """Put the adapter of a folder or hub name beside the others.

        Raises:
            ModelError: there is no LoRA adapter, it is of another base model, does not fit, or would change the base.
        """
        said, base = f"--adapter {name}={place}", base_of(self.model)
        found = find_adapter(place, "main")
        if found is None:
            raise ModelError(f"{said}: there is no adapter_config.json. Serve a whole model by itself.")
        if not same_place(found.base, base.config.name_or_path):
            raise ModelError(
                f"{said}: its base model is '{found.base}', and here it is '{base.config.name_or_path}'. "
                "Serve it by itself."
            )
        start = str(PeftConfig.from_pretrained(place).init_lora_weights)
        if start.startswith(("pissa", "olora")):
            raise ModelError(f"{said}: {start} changes the base weights when it is loaded. Serve it by itself.")
        if self._in_peft:
            self._load(f"preftune{len(self._in_peft)}", place, said)
            self._in_peft[name] = f"preftune{len(self._in_peft)}"
        else:
            self.model = load_adapter(base, place)
            self._in_peft[name] = OWN
        self.model.to(base.device).eval()
        rows = AutoConfig.from_pretrained(found.base).get_text_config().vocab_size
        if rows != base.config.get_text_config().vocab_size:
            raise ModelError(f"{said}: it, or the model beside it, has tokens of its own. Serve it by itself.")

    def use(self, name: str | None) -> None:
        """Let this adapter work; None: the model's own, or none where it has none."""
        adapter, layers = self._in_peft.get(name), self.model.base_model
        if adapter is None:
            layers.disable_adapter_layers()
            return
        layers.enable_adapter_layers()
        self.model.set_adapter(adapter)

    def _load(self, adapter: str, place: str, said: str) -> None:
        try:
            result = self.model.load_adapter(place, adapter_name=adapter, is_trainable=False)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as cause:
            raise ModelError(f"{said}: the adapter does not fit: {one_line(cause)}") from cause
        missing = [key for key in result.missing_keys if f".{adapter}." in key]
        if missing or result.unexpected_keys:
            key = (missing or result.unexpected_keys)[0]
            raise ModelError(f"{said}: the adapter does not fit the model beside '{key}'. Serve it by itself.")
