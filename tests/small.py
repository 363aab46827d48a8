"""Small random models, groups of chosen shapes, and the slow way to log-probs that the fast roads are held against."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from preftune.types import Origin, TokenizedGroup

VOCABULARY = 211
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA2 = {
    "head_dim": 8,
    "sliding_window": 12,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
}
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral-window": ("MistralConfig", {"sliding_window": 12}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", GEMMA2),  # soft-caps, alternating windows, tied
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 16, "sliding_window": 12, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "cohere2": ("Cohere2Config", {"sliding_window": 12, "logit_scale": 0.25}),
}


def build_model(name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object):
    """A random model with eager attention, no dropout, and weights large enough that log-probs differ."""
    kind, extra = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**SHAPE, **extra, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).train()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08)
            elif "sink" in parameter_name:
                parameter.normal_(0, 1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def build_group(prompt: int, *responses: int, opening: int = 0, seed: int = 0, row: int = 1) -> TokenizedGroup:
    """A group with these many tokens; the responses have their first `opening` tokens in common."""
    draw = random.Random(f"{prompt} {responses} {opening} {seed} {row}")

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    common = ids(opening)
    return TokenizedGroup(ids(prompt), [common + ids(n - opening) for n in responses], Origin("small", "train", row))


def build_groups(count: int, responses: int = 2, seed: int = 0, longest: int = 20) -> list[TokenizedGroup]:
    """Groups of random lengths."""
    draw = random.Random(seed)
    shapes = [[draw.randint(1, longest) for _ in range(responses + 1)] for _ in range(count)]
    return [build_group(*shape, seed=seed, row=row) for row, shape in enumerate(shapes, start=1)]


def slow_logps(model, groups: Sequence[TokenizedGroup]) -> Tensor:
    """(G, K) sums of log-probs, one sequence at a time through the whole model: no packing, no padding, all logits."""
    sums = []
    for group in groups:
        for response in group.response_ids:
            ids = torch.tensor([group.prompt_ids + response])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]
            sums.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums).view(len(groups), -1)


def lengths_of(groups: Sequence[TokenizedGroup]) -> Tensor:
    return torch.tensor([[len(ids) for ids in group.response_ids] for group in groups])


def gradients(model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst_gradient_gap(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative difference of any parameter's gradient; parameters that get next to none are left out."""
    assert found.keys() == wanted.keys()
    assert all(gradient.isfinite().all() for gradient in (*found.values(), *wanted.values()))
    total = torch.stack([g.norm() for g in wanted.values()]).norm()
    gaps = [
        (found[name] - wanted[name]).norm() / wanted[name].norm()
        for name in wanted
        if wanted[name].norm() > 1e-6 * total
    ]
    return torch.stack(gaps).max().item()
