"""A language model as one GGUF file, the format of llama.cpp, and the file read back.

In: a whole model, its tokenizer and chat format. Out: a file with weights, vocabulary, chat template and stop tokens.
The names of tensors and keys are those of llama.cpp's `llama`, `qwen2` and `qwen3`; nothing is guessed: a setting or
weight that they cannot say is refused. This module is the door of the extra `gguf`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.chat import ChatFormat
from preftune.errors import ModelError
from preftune.export.vocabulary import Vocabulary, read_vocabulary

log = logging.getLogger(__name__)
Q8_0 = "q8_0"
KINDS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> llama.cpp's name
OUTSIDE = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BIASED = {"llama": (), "qwen2": ("attn_q", "attn_k", "attn_v"), "qwen3": ()}
TYPES = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
    Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
ROPES = ("default", "linear", "llama3")
ENDS = ("eos", "eot", "eom")  # the three tokens that a file names as ends


@dataclass(frozen=True)
class GgufFile:
    """What is to stand in the file: keys as llama.cpp names them, tensors by name, the vocabulary."""

    kind: str
    keys: dict[str, int | float | bool | str]
    tensors: dict[str, Tensor]
    vocabulary: Vocabulary


def read_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, name: str, ends: tuple[int, ...]
) -> GgufFile:
    """What the file of this model holds.

    Args:
        name: of the model, as programs show it.
        ends: ids of the tokens that end an answer.

    Raises:
        ModelError: the architecture, one of its settings or the tokenizer cannot be said in a GGUF file.
    """
    kind = KINDS.get(model.config.model_type)
    if kind is None:
        raise ModelError(
            f"GGUF: {type(model).__name__} is not written; known are the kinds {', '.join(KINDS)}. Export it without "
            "--format gguf, and convert the folder with llama.cpp's own program."
        )
    keys, tensors = _shape_keys(model, kind), _tensors(model, kind)
    vocabulary = read_vocabulary(tokenizer, chat, tensors["token_embd.weight"].shape[0])
    if vocabulary.normalised:
        log.info("The tokenizer writes texts in NFC first, llama.cpp does not: texts in another form get other ids.")
    keys["general.name"] = name
    keys["tokenizer.ggml.add_bos_token"] = vocabulary.adds_bos
    keys["tokenizer.ggml.add_eos_token"] = False
    if vocabulary.space_prefix is not None:
        keys["tokenizer.ggml.add_space_prefix"] = vocabulary.space_prefix
    special = {"bos": tokenizer.bos_token_id, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    if len(ends) > len(ENDS):
        raise ModelError(f"GGUF: {len(ends)} tokens end an answer, and a file names {len(ENDS)}.")
    special |= dict(zip(ENDS, ends, strict=False))
    keys |= {f"tokenizer.ggml.{role}_token_id": number for role, number in special.items() if number is not None}
    if tokenizer.chat_template:
        keys["tokenizer.chat_template"] = tokenizer.get_chat_template()
    return GgufFile(kind, keys, tensors, vocabulary)


def _shape_keys(model: PreTrainedModel, kind: str) -> dict[str, Any]:
    config = model.config
    rope = dict(config.rope_parameters)
    if config.hidden_act != "silu" or rope["rope_type"] not in ROPES:
        raise ModelError(
            f"GGUF: '{config.hidden_act}' with positions of the kind '{rope['rope_type']}' is not written; known are "
            f"silu, and {', '.join(ROPES)}."
        )
    if rope["rope_type"] == "llama3" and kind != "llama":
        raise ModelError(f"GGUF: '{kind}' has no place for positions of the kind 'llama3'.")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = {
        "context_length": _context(model),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": model.get_input_embeddings().weight.shape[0],
    }
    if rope["rope_type"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return {f"{kind}.{key}": value for key, value in keys.items()}


def _context(model: PreTrainedModel) -> int:
    """The longest context, up to a sliding window: llama.cpp has none for these kinds."""
    config = model.config
    layers = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None) if not layers or "sliding_attention" in layers else None
    if window and window < config.max_position_embeddings:
        log.warning("llama.cpp has no sliding window here: the context ends at %d tokens, where it begins.", window)
        return int(window)
    return int(config.max_position_embeddings)


def _tensors(model: PreTrainedModel, kind: str) -> dict[str, Tensor]:
    """The weights by llama.cpp's names, and for llama its order of a head's rows in the query and key projections."""
    config, found = model.config, {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and weight.data_ptr() == model.get_input_embeddings().weight.data_ptr():
            continue  # tied: the embeddings are the head
        new = _new_name(name, kind)
        if kind == "llama" and new.endswith(("attn_q.weight", "attn_k.weight")):
            weight = by_pairs(weight, config.num_attention_heads if "attn_q" in new else config.num_key_value_heads)
        found[new] = weight.detach().cpu()
    if config.rope_parameters["rope_type"] == "llama3":
        rotary = model.model.rotary_emb
        head = 2 * rotary.inv_freq.numel()
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
        found["rope_freqs.weight"] = (plain / rotary.inv_freq.double().cpu()).float()
    return found


def _new_name(name: str, kind: str) -> str:
    if name in OUTSIDE:
        return f"{OUTSIDE[name]}.weight"
    start, _, inner = name.partition("layers.")
    number, _, inner = inner.partition(".")
    inner, _, part = inner.rpartition(".")
    new = LAYER.get(inner) if start == "model." else None
    if new is None or part not in ("weight", "bias") or (part == "bias" and new not in BIASED[kind]):
        raise ModelError(f"GGUF: the weight {name} has no place in the kind '{kind}'.")
    return f"blk.{number}.{new}.{part}"


def by_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from (first half, second half) to pairs that are turned together."""
    rows = weight.shape[0]
    return weight.view(heads, 2, rows // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


# --- the file ---


def write_gguf(file: GgufFile, path: Path, dtype: str) -> None:
    """Write the file.

    Args:
        dtype: float32, float16, bfloat16 (that of the weights), or q8_0. Norms, biases and positions are float32.
    """
    writer = gguf.GGUFWriter(path, file.kind)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in file.keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    vocabulary = file.vocabulary
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    for name, weight in file.tensors.items():
        kind, data = _stored(weight, dtype)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(weight: Tensor, dtype: str) -> tuple[gguf.GGMLQuantizationType, np.ndarray[Any, Any]]:
    """The numbers of a tensor as they stand in the file."""
    if weight.ndim == 1:
        weight = weight.float()
    elif dtype == Q8_0 and weight.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0] == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        return kind, gguf.quants.quantize(weight.float().numpy(), kind)
    return TYPES[weight.dtype], weight.contiguous().view(torch.uint8).numpy()


def check_gguf(file: GgufFile, path: Path, dtype: str) -> None:
    """The file holds what was meant: every key, token, merge and score, and every tensor bit by bit.

    Tensors in q8_0 are within half a step of what they were, a step being 1/127 of the largest of 32 numbers.

    Raises:
        ModelError: it does not.
    """
    reader = _Reader(path)
    vocabulary = file.vocabulary
    lists = {
        "tokens": vocabulary.tokens,
        "token_type": vocabulary.kinds,
        "merges": vocabulary.merges,
        "scores": vocabulary.scores,
        "model": vocabulary.model,
        "pre": vocabulary.pre,
    }
    wanted = file.keys | {f"tokenizer.ggml.{key}": value for key, value in lists.items() if value is not None}
    for key, value in wanted.items():
        field = reader.get_field(key)
        value = float(np.float32(value)) if isinstance(value, float) else value
        if field is None or field.contents() != value:
            raise ModelError(f"{path.name}: {key} is not what was to be written. Export again.")
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != file.tensors.keys():
        raise ModelError(f"{path.name}: it holds {len(found)} tensors instead of {len(file.tensors)}. Export again.")
    for name, weight in file.tensors.items():
        if list(map(int, found[name].shape))[::-1] != list(weight.shape) or not _same(found[name], weight, dtype):
            raise ModelError(f"{path.name}: {name} is not what was to be written. Export again.")


class _Reader(gguf.GGUFReader):
    """The package's reader over a plain array: a vocabulary is a million pieces, dear ones in a memory map."""

    def _get(self, *asked: Any, **more: Any) -> Any:
        self.data = np.asarray(self.data)
        return super()._get(*asked, **more)


def _same(found: gguf.ReaderTensor, weight: Tensor, dtype: str) -> bool:
    if found.tensor_type == gguf.GGMLQuantizationType.Q8_0:
        blocks = weight.float().view(*weight.shape[:-1], -1, 32)
        step = blocks.abs().amax(-1, keepdim=True) / 127
        read = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type)).view(blocks.shape)
        return bool(((read - blocks).abs() <= 0.5 * step + 127 * step * 2**-11 + 1e-9).all())  # the step is a float16
    kind, data = _stored(weight, dtype)
    return found.tensor_type == kind and found.data.tobytes() == data.tobytes()
