"""Model and tokenizer from a folder or a hub name: dense, quantised (extra `quant`), or an adapter on its base."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from preftune.data.named_templates import TEMPLATE_NAMES, set_chat_template
from preftune.errors import MissingExtraError, ModelError
from preftune.model.usable_attention import usable_attention

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str,
    *,
    torch_dtype: str | None = None,
    attn_implementation: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    quant_type: str = "nf4",
    double_quant: bool = True,
) -> PreTrainedModel | PeftModel:
    """A causal language model; a PEFT model with a trainable adapter where `name` holds an adapter.

    Args:
        name: a folder in transformers format, one with a PEFT adapter (its base model is loaded by
            base_model_name_or_path in its adapter_config.json), or a hub name of either.
        torch_dtype: precision of the weights in memory: float32 (also for None), bfloat16, float16, or auto (as saved).
        attn_implementation: the attention of ordinary forward passes and of the padded road; sdpa by default, and
            where flash attention is asked for and cannot run (one line in the log).
        revision: of a hub name.
        trust_remote_code: run Python code that comes with the model; never set by preftune itself.
        use_safetensors: True reads no pickle files of a hub name (of a folder: `preftune.model.place.refuse_pickle`).
        load_in_4bit, load_in_8bit: hold the linear layers but the head quantised by bitsandbytes, all weights frozen,
            to train an adapter on (QLoRA, Dettmers et al. 2023, arXiv:2305.14314). `torch_dtype` is the precision of
            everything else and of the products (bfloat16 where it is auto). PEFT's recipe casts norms, embeddings and
            head to float32 whatever the precision; here that is `torch_dtype: float32`, since float32 norms alone
            would carry float32 into attention and head.
        quant_type: nf4 or fp4; double_quant: quantise the scales too. Of 4 bits.

    Raises:
        ModelError: nothing can be loaded from there, or bitsandbytes does not run here; the cause in one line.
        MissingExtraError: an adapter needs the extra `lora`, quantised weights the extra `quant`.
    """
    dtype = dtype_of(torch_dtype)
    bits = "load_in_4bit" if load_in_4bit else "load_in_8bit" if load_in_8bit else None
    adapter = find_adapter(name, revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checked_place(name) if adapter is None else checked_place(adapter.base),
            dtype=dtype,
            attn_implementation=usable_attention(attn_implementation),
            revision=revision if adapter is None else adapter.base_revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
            quantization_config=None if bits is None else _quantisation(bits, dtype, quant_type, double_quant),
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        if adapter is not None:
            raise ModelError(f"{adapter.said} cannot be loaded{hub_hint(adapter.base)}: {one_line(cause)}") from cause
        raise ModelError(f"No model can be loaded from '{name}'{hub_hint(name)}: {one_line(cause)}") from cause
    if getattr(model, "is_quantized", False):
        _settle_quantised(model)
    if adapter is None:
        return model
    from preftune.model.lora import load_adapter  # the extra `lora`

    return load_adapter(model, name, revision)


def load_tokenizer(
    name: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; of a folder with an adapter alone, its base model's.

    `chat_template` replaces its own: a name (`preftune.data.named_templates`), Jinja text or a path to it;
    `chat_template_kwargs` are written into it.

    Raises:
        ModelError: nothing can be loaded from there, or the template's file does not exist.
    """
    adapter = find_adapter(name, revision) if not has_tokenizer(name) else None
    place, revision = (checked_place(name), revision) if adapter is None else (adapter.base, adapter.base_revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        raise ModelError(f"No tokenizer can be loaded from '{name}'{hub_hint(name)}: {one_line(cause)}") from cause
    template = None if chat_template is None else _template(chat_template)
    set_chat_template(tokenizer, template, chat_template_kwargs)
    return tokenizer


def dtype_of(name: str | None) -> Any:
    if name in (None, "auto"):
        return name or torch.float32
    if name not in DTYPES:
        raise ModelError(f"'torch_dtype' must be one of auto, {', '.join(DTYPES)}, found {name!r}.")
    return DTYPES[name]


def checked_place(name: str) -> str:
    """Refuse what is plainly a path and does not exist, before a hub is asked for it."""
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise ModelError(f"'{name}' is a file; give the folder that holds config.json and the weights.")
        if not (path / "config.json").exists() and not has_tokenizer(name):
            raise ModelError(f"'{name}' has no config.json: it is not a model folder in transformers format.")
        return str(path)
    if _is_path(name):
        raise ModelError(f"The folder '{name}' does not exist.")
    return name


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def has_tokenizer(name: str) -> bool:
    """A name that is no folder is a hub name."""
    folder = Path(name).expanduser()
    return not folder.is_dir() or any((folder / file).exists() for file in TOKENIZER_FILES)


@dataclass(frozen=True)
class _Adapter:
    """Where an adapter's base model is; `said` is how a message starts that speaks of it."""

    base: str
    base_revision: str
    said: str


def find_adapter(name: str, revision: str) -> _Adapter | None:
    """None where `name` holds no adapter.

    Raises:
        ModelError: it does, and does not name its base model, or one that does not exist.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.exists() or _is_path(name)):
        return None
    file = find_adapter_config_file(str(folder) if folder.is_dir() else name, revision=revision)
    if file is None:
        return None
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as cause:
        raise ModelError(f"{file} is not a JSON object ({one_line(cause)}).") from cause
    mend = "Correct it, or give the base model as model_name_or_path and the adapter as adapter_name_or_path."
    if not base:
        raise ModelError(f"{file} has no base_model_name_or_path. {mend}")
    said = f"{file}: base_model_name_or_path '{base}'"
    if not Path(base).expanduser().exists() and _is_path(base):
        relative = "" if Path(base).expanduser().is_absolute() else f" (looked up from {Path.cwd()})"
        raise ModelError(f"{said} does not exist{relative}. {mend}")
    if (Path(base).expanduser() / "adapter_config.json").is_file():
        raise ModelError(f"{said} is an adapter itself. Merge that one into its base model first.")
    return _Adapter(base, config.get("revision") or "main", said)


def _template(text: str) -> str:
    """A name stays a name."""
    path = Path(text).expanduser()
    if "{" in text or text in TEMPLATE_NAMES:
        return text
    if not path.is_file():
        near = difflib.get_close_matches(text, TEMPLATE_NAMES, n=1)
        meant = f"; did you mean '{near[0]}'?" if near else f". Known names: {', '.join(TEMPLATE_NAMES)}."
        raise ModelError(f"'chat_template' must be a name, Jinja text or a file; '{text}' is none of them{meant}")
    return path.read_text(encoding="utf-8")


def hub_hint(name: str) -> str:
    return "" if Path(name).exists() else " (there is no such folder, so it was asked for on the hub)"


def one_line(cause: BaseException) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"[:400]


def disable_dropout(model: torch.nn.Module) -> int:
    """Set every dropout probability to 0, modules and attention alike; returns how many were above 0."""
    changed = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.p, changed = 0.0, changed + 1
        for name, value in vars(module).items():  # models that call F.dropout keep the probability as a number
            if ("dropout" in name or "layerdrop" in name) and isinstance(value, float) and value:
                setattr(module, name, 0.0)
                changed += 1
    return changed


# --- quantised weights


def _quantisation(key: str, dtype: Any, quant_type: str, double_quant: bool) -> BitsAndBytesConfig:
    """The settings of load_in_4bit or load_in_8bit (`key`), once bitsandbytes has shown that it runs."""
    _check_bitsandbytes(key)
    return BitsAndBytesConfig(
        **{key: True},
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
    )


def _check_bitsandbytes(key: str) -> None:
    """Try one product with quantised weights, and its gradient, on the device that the model goes to.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: it does not run on this machine.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every cast in every layer and step
    try:
        from bitsandbytes import nn
    except ImportError as error:
        raise MissingExtraError(key, "quant") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        layer = nn.Linear4bit(64, 64) if key == "load_in_4bit" else nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        with torch.enable_grad():
            layer.to(device)(torch.ones(1, 64, device=device, requires_grad=True)).sum().backward()
    except Exception as cause:
        raise ModelError(
            f"{key} needs bitsandbytes (extra 'quant'), which does not run on this machine's {device}: "
            f"{one_line(cause)}. Leave {key} out, or install a version of preftune[quant] that fits the machine."
        ) from cause


def _settle_quantised(model: PreTrainedModel) -> None:
    """Freeze all of it: what stays dense is trained through an adapter too."""
    model.requires_grad_(False)
    for module in model.modules():
        # On CPUs with bfloat16 instructions a 4-bit layer packs its weights for inference at the first pass without
        # gradients, and gives none afterwards, silently (bitsandbytes 0.50). The preflight is such a pass.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
