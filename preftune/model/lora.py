"""LoRA adapters: which layers they go on, a new one, a saved one, and one that anybody can load.

PEFT does the work and keeps the files; the model inside is changed in place. Here is what PEFT leaves open: the names
of layers, what may not be combined, and whether a saved adapter belongs to the model.

Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024,
arXiv:2402.09353; PiSSA: Meng et al. 2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from preftune.errors import MissingExtraError, ModelError, RecipeError
from preftune.model.new_tokens import embed_rows, modules_of_tokens

logger = logging.getLogger(__name__)
# PEFT imports bitsandbytes where it is installed, which warns on every CPU of kernels that are not used here
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# nothing to do about: embeddings that have grown are trained whole, and so are saved in any case
warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
try:
    from peft import (
        LoraConfig,
        PeftConfig,
        PeftModel,
        PeftType,
        TaskType,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )
except ImportError as error:
    raise MissingExtraError("LoRA", "lora") from error

ALL, DEFAULT, EMBEDDING = "ALL", "DEFAULT", "EMBEDDING"
_ALIASES = {"all": ALL, "all-linear": ALL, "default": DEFAULT, "auto": DEFAULT, "embedding": EMBEDDING}
_INIT = re.compile(r"gaussian|olora|pissa(_niter_[1-9]\d*)?")
_SCORE = "score"  # the head of a sequence-classification model; always trained whole
_FILE = "adapter_model.safetensors"

# Names of query, key and value projections, one by one or fused: q_proj, k_proj, query_key_value, qkv_proj, Wqkv,
# W_pack, c_attn, q_a_proj and kv_b_proj of multi-head latent attention, to_q, ...
_QKV = re.compile(r"(w_?|to_)?(q|k|v|kv|qk|qkv|query|key|value)(_.*)?|c_attn|w_?pack|att_proj|in_proj_qkv.*", re.I)


@dataclass(frozen=True)
class LoraSettings:
    """A new LoRA adapter.

    Args:
        r: rank, >= 1.
        alpha: the product B·A is scaled by alpha / r, or alpha / sqrt(r) with `rslora`.
        dropout: of the adapter's input while training, in [0, 1). Training is without dropout unless the trainer is
            told to keep it (`preftune.model.load.disable_dropout` sets this one to 0 as well).
        target_modules: ALL (every linear layer but the output head), DEFAULT (the query, key and value projections),
            EMBEDDING (the input embeddings), or names: a name fits the modules whose path ends with it. `lm_head` puts
            LoRA on the output head. These words may stand in a list beside names; all-linear is ALL, AUTO is DEFAULT.
        modules_to_save: names of modules that are trained whole and saved beside the adapter.
        rslora, dora: the variants of that name.
        init: True (A random, B zero), gaussian, pissa, pissa_niter_N or olora.

    Raises:
        RecipeError: a field is out of range, named by its key in a recipe.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL
    modules_to_save: Sequence[str] | None = None
    rslora: bool = False
    dora: bool = False
    init: bool | str = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RecipeError(f"'lora_r' must be at least 1, found {self.r}.")
        if not self.alpha > 0:
            raise RecipeError(f"'lora_alpha' must be above 0, found {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"'lora_dropout' must be in [0, 1), found {self.dropout}.")
        if self.init is not True and not (isinstance(self.init, str) and _INIT.fullmatch(self.init)):
            raise RecipeError(
                f"'lora_init' must be true, gaussian, pissa, pissa_niter_N (such as pissa_niter_16) or olora, found "
                f"{self.init!r}."
            )


def add_adapter(model: PreTrainedModel, settings: LoraSettings, task: str = "CAUSAL_LM") -> PeftModel:
    """Put a new adapter on `model`; only it is trained then, and for SEQ_CLS the score head.

    Adapter weights are float32 whatever the precision of the model, modules to save are copies in the model's own.

    Args:
        task: CAUSAL_LM, or SEQ_CLS for a reward model.

    Raises:
        ModelError: the model has an adapter already, a name fits no layer or not a linear one, or the settings cannot
            be had on this model (LoRA on tied embeddings, PiSSA and OLoRA on quantised weights).
    """
    if hasattr(model, "peft_config"):
        raise ModelError(
            "The model has an adapter already. Go on training it (adapter_name_or_path, without use_peft), or merge "
            "it into its base model first."
        )
    whole = list(settings.modules_to_save or ())
    for name in whole:
        _require(model, name, "lora_modules_to_save", dict(model.named_modules()))
    targets = target_modules(model, settings.target_modules, whole)
    experts = sum(p.numel() for name, p in model.named_parameters() if "expert" in name and p.ndim == 3)
    if experts:
        logger.info("LoRA goes on linear layers: %s numbers of fused experts stay as they are.", f"{experts:,}")
    config = LoraConfig(
        task_type=TaskType(task),
        r=settings.r,
        lora_alpha=int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=[_exact(model, name) for name in whole] or None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=settings.init,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in _matched(model, targets)),
    )
    return _attach(model, config, "An adapter with these settings")


def load_adapter(model: PreTrainedModel, path: str, revision: str = "main") -> PeftModel:
    """Put a saved LoRA adapter on `model`, to go on training it.

    Args:
        path: a folder with adapter_config.json, or a hub name.
        revision: of a hub name.

    Raises:
        ModelError: there is no LoRA adapter, or it does not fit: layers that only one of the two has, other sizes, a
            reward model's adapter on a language model.
    """
    config = _read_config(path, revision)
    scores = type(model).__name__.endswith("ForSequenceClassification")
    if config.task_type == TaskType.SEQ_CLS and not scores:
        raise ModelError(f"The adapter in '{path}' is of a reward model and cannot go on {type(model).__name__}.")
    new_head = scores and config.task_type != TaskType.SEQ_CLS  # trained as a language model, on a new score head
    config.task_type, config.inference_mode = TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM, False
    trained_on, base = config.base_model_name_or_path, model.config.name_or_path
    if trained_on and base and not same_place(trained_on, base):
        logger.warning("The adapter in '%s' was trained on '%s' and goes on '%s' now.", path, trained_on, base)
    config.base_model_name_or_path = base or None
    misfit = f"The adapter in '{path}' does not fit {type(model).__name__}"
    try:
        state = load_peft_weights(_place(path), device="cpu", revision=revision)
        _embed_as_saved(model, state)
        adapted = _attach(model, config, f"The adapter in '{path}'")
        if new_head:
            own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            state |= {key: value for key, value in own.items() if f".{_SCORE}." in key}
        result = set_peft_model_state_dict(adapted, state)
    except KeyError as cause:  # of a module that is trained whole
        raise ModelError(f"{misfit}: the adapter has no {_short(str(cause.args[0]))}.") from cause
    except (OSError, ValueError, RuntimeError, SafetensorError) as cause:
        raise ModelError(f"{misfit}: {one_line(cause)}") from cause
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        who, key = ("the adapter", missing[0]) if missing else ("the model", result.unexpected_keys[0])
        count = len(missing) + len(result.unexpected_keys)
        raise ModelError(
            f"{misfit}: {who} has no {_short(key)}, and {count} names differ in all. Load the base model that it was "
            f"trained on{f', {trained_on}' if trained_on else ''}."
        )
    return adapted


def empty_adapter(model: PreTrainedModel, path: str, revision: str = "main") -> PeftModel:
    """A saved adapter's shapes on a model without weights, as they are trained.

    Raises:
        ModelError: there is no LoRA adapter, or it does not fit.
    """
    config = _read_config(path, revision)
    config.inference_mode, config.init_lora_weights = False, True
    return _attach(model, config, f"The adapter in '{path}'")


def save_plain_lora(model: PeftModel, folder: str | Path) -> None:
    """Write the adapter as plain LoRA over the untouched base model, in PEFT's files.

    PiSSA and OLoRA start by moving part of the base weights into the adapter. PEFT saves such an adapter as it is, and
    repeats that start on the base model when it is loaded, which gives the same numbers at best nearly (another
    precision of the base) and for pissa_niter_N not at all (random projections). The difference to the start,
    s·(B·A - B₀·A₀), is plain LoRA of twice the rank. Any other adapter is saved as it is.
    """
    folder = Path(folder)
    start = getattr(model, "start_of_lora", None)
    if not start:
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    state = {
        name: t.detach().cpu() for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    for name, first in start.items():
        key, grown = name.replace(".default.", "."), 0 if ".lora_A." in name else 1
        first = first.to(state[key].dtype)
        state[key] = torch.cat([state[key], first if grown == 0 else -first], dim=grown)
    config = copy.deepcopy(model.peft_config["default"])
    wider = 2**0.5 if config.use_rslora else 2  # keeps the scale, alpha / sqrt(r) or alpha / r
    config.r, config.lora_alpha = 2 * config.r, wider * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: wider * alpha for name, alpha in config.alpha_pattern.items()}
    config.init_lora_weights, config.inference_mode = True, True
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in state.items()}, folder / _FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)


def _embed_as_saved(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Rows for tokens that the adapter was trained with beside its base model's: it holds the embeddings whole."""
    for name in modules_of_tokens(model):
        for key, saved in state.items():
            if key.endswith(f".{name}.weight") and saved.ndim == 2:
                embed_rows(model, saved.shape[0])


# --- which layers


def target_modules(model: PreTrainedModel, asked: str | Sequence[str], whole: Collection[str] = ()) -> list[str]:
    """The names for PEFT: last parts of paths where these fit exactly the layers that are meant, else whole paths.

    Args:
        asked: as `LoraSettings.target_modules`; a text may hold several names between commas or spaces.
        whole: modules that are trained whole; ALL and DEFAULT leave them out.

    Raises:
        ModelError: a name fits nothing or something else than a linear or embedding layer, or there are no query, key
            and value projections to be found.
    """
    words = re.split(r"[,\s]+", asked.strip()) if isinstance(asked, str) else list(asked)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not _is_head(model, name, module)
    }
    body = {name for name in layers if not any(_ends(name, part) or f".{part}." in f".{name}" for part in whole)}
    names: list[str] = []
    for word in words:
        kind = _ALIASES.get(word.lower())
        if kind == ALL:
            names += _shortest(model, body)
        elif kind == DEFAULT:
            found = {name for name in body if _is_qkv(model, name)}
            if not found:
                raise ModelError(
                    f"lora_target_modules: DEFAULT found no query, key or value projection in {type(model).__name__}. "
                    f"Set ALL, or names among: {_last_parts(body)}."
                )
            names += _shortest(model, found)
        elif kind == EMBEDDING:
            table = model.get_input_embeddings()
            names += _shortest(model, {path for path, module in model.named_modules() if module is table})
        else:
            _check_target(model, word)
            names.append(word)
    return list(dict.fromkeys(names))


def _is_head(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    return module is model.get_output_embeddings() or name == _SCORE


def _is_qkv(model: PreTrainedModel, name: str) -> bool:
    """A projection by its name, somewhere inside an attention module by its name or its class's."""
    path, _, last = name.rpartition(".")
    parts = path.split(".")
    above = [".".join(parts[: i + 1]) for i in range(len(parts))]
    words = [word.lower() for word in (*parts, *(type(model.get_submodule(module)).__name__ for module in above))]
    return any("attention" in word or "attn" in word for word in words) and _QKV.fullmatch(last) is not None


def _check_target(model: PreTrainedModel, name: str) -> None:
    modules = dict(model.named_modules())
    _require(model, name, "lora_target_modules", modules)
    for path in _matched(model, [name]):
        if path == _SCORE:
            raise ModelError("lora_target_modules: the score head is trained whole. Leave 'score' out.")
        if not isinstance(modules[path], (nn.Linear, Conv1D, nn.Embedding)):
            inside = {n for n, m in modules[path].named_modules() if isinstance(m, (nn.Linear, Conv1D))}
            raise ModelError(
                f"lora_target_modules: '{name}' is a {type(modules[path]).__name__}, and LoRA goes on linear layers. "
                f"Give names among: {_last_parts(inside) or 'none in it'}."
            )


def _require(model: PreTrainedModel, name: str, key: str, modules: dict[str, nn.Module]) -> None:
    if _matched(model, [name]):
        return
    words = {part.rpartition(".")[2] for part in modules} - {""}
    close = difflib.get_close_matches(name.rpartition(".")[2], sorted(w for w in words if not w.isdigit()), n=1)
    linear = {n for n, module in modules.items() if isinstance(module, (nn.Linear, Conv1D))}
    raise ModelError(
        f"{key}: {type(model).__name__} has no module '{name}'. "
        f"{f'Did you mean {close[0]!r}? ' if close else ''}Its linear layers: {_last_parts(linear)}."
    )


def _refuse_tied(model: PreTrainedModel, targets: Collection[str]) -> None:
    """LoRA on one side of a tied weight cannot be merged: the shared weight would change on the other side too."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    for path in targets:
        if model.get_submodule(path) in (head, embeddings):
            raise ModelError(
                f"lora_target_modules: '{path}' of {type(model).__name__} is tied, input embeddings and output head "
                "are one weight, and LoRA on one of them could not be merged. Leave it out, or name it in "
                "lora_modules_to_save, which trains a copy of its own."
            )


def _matched(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """Paths that PEFT fits these target names to."""
    return [path for path, _ in model.named_modules() if any(_ends(path, name) for name in names)]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _shortest(model: PreTrainedModel, paths: Collection[str]) -> list[str]:
    short = sorted({path.rpartition(".")[2] for path in paths})
    return short if set(_matched(model, short)) == set(paths) else sorted(paths)


def _exact(model: PreTrainedModel, name: str) -> str:
    """A name for PEFT's modules_to_save, which fits ends of paths inside a word too: 'norm' is 'input_layernorm'."""
    loose = [path for path, _ in model.named_modules() if path.endswith(name)]
    meant = _matched(model, [name])
    if loose == meant:
        return name
    if len(meant) == 1:
        return meant[0]
    raise ModelError(f"lora_modules_to_save: '{name}' fits {len(loose)} modules: {', '.join(loose[:5])}. Give paths.")


def _last_parts(paths: Collection[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


# --- PEFT


def _attach(model: PreTrainedModel, config: LoraConfig, what: str) -> PeftModel:
    """The model with an adapter as `config` has it; `what` it is, for the message.

    Raises:
        ModelError: it cannot be put there, or not be merged or saved afterwards.
    """
    init, names = str(config.init_lora_weights), config.target_modules
    targets = [] if names is None or isinstance(names, str) else _matched(model, names)  # a text: a pattern of PEFT
    _refuse_tied(model, targets)
    splits = init.startswith(("pissa", "olora"))
    if splits and getattr(model, "is_quantized", False):
        raise ModelError(f"lora_init: {init} splits the base weights, and these are quantised. Set lora_init: true.")
    if init == "olora" and any(isinstance(model.get_submodule(path), Conv1D) for path in targets):
        raise ModelError(f"lora_init: olora cannot split the Conv1D layers of {type(model).__name__}. Set pissa.")
    try:
        with _same_draws(init, model.device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # of tied copies, mixed layer kinds
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError) as cause:
        raise ModelError(f"{what} does not fit {type(model).__name__}: {one_line(cause)}") from cause
    if splits:  # for save_plain_lora
        factors = [(n, p) for n, p in adapted.named_parameters() if ".lora_A." in n or ".lora_B." in n]
        adapted.start_of_lora = {name: parameter.detach().cpu().clone() for name, parameter in factors}
    return adapted


@contextmanager
def _same_draws(init: str, device: torch.device) -> Iterator[None]:
    """pissa_niter_N projects at random, and must split the weights the same way when the adapter is loaded again."""
    if not init.startswith("pissa_niter"):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _read_config(path: str, revision: str) -> LoraConfig:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        raise ModelError(f"'{path}' has no adapter_config.json: it is not an adapter folder in PEFT's format.")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"The adapter folder '{path}' does not exist.")
    try:
        config = PeftConfig.from_pretrained(_place(path), revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ModelError(f"No adapter can be loaded from '{path}': {one_line(cause)}") from cause
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ModelError(f"The adapter in '{path}' is of the kind {kind}; LoRA adapters can be trained here.")
    return config


def _place(path: str) -> str:
    """A folder, or else a hub name as it is."""
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _short(key: str) -> str:
    return key.removeprefix("base_model.model.").replace(".default.", ".")


def one_line(cause: BaseException) -> str:
    """What went wrong: of the sizes that do not fit the first, which PyTorch writes below a title."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0] if lines else repr(cause))[:400]
