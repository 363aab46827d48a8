"""Llama shapes of gpu.py, and the operations of a step that nobody can leave out. Standard library only.

Useful operations: a prompt passes the body once, the head sees the positions that predict a response token. Matrix
products cost 6 FLOPs a parameter and token (output, gradient of input, gradient of weight), attention 12 FLOPs a layer,
query width and pair of a token and one it sees (scores and values, forward and twice in backward).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from workload import Pair, response_tokens, useful_tokens


@dataclass(frozen=True)
class Shape:
    """A Llama with grouped queries and an untied head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int

    @property
    def body_parameters(self) -> int:
        """Entries of the matrices that every token passes."""
        width = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * width
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """All of them: body, norms, embedding and head."""
        return self.body_parameters + (2 * self.layers + 1) * self.hidden + 2 * self.head_parameters

    def with_layers(self, layers: int | None) -> Shape:
        return replace(self, layers=layers) if layers else self

    def config(self, longest: int) -> dict[str, int | bool]:
        """Arguments of a `LlamaConfig`."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocab,
            "max_position_embeddings": longest,
            "tie_word_embeddings": False,
        }

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


SHAPES = {
    "8b": Shape(4096, 32, 32, 8, 14336, 128_256),  # Llama 3 8B
    "3b": Shape(3072, 28, 24, 8, 8192, 128_256),
    "1b": Shape(2048, 16, 32, 8, 8192, 128_256),
    "160m": Shape(768, 12, 12, 12, 2048, 32_000),
    "tiny": Shape(64, 2, 4, 2, 128, 512),
}

# Dense bfloat16 with float32 sums, FLOPs a second, from the vendors' data sheets; by a part of the device's name.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_of(device: str) -> float | None:
    """The data sheet's rate of a device, or None for one that is not listed."""
    return next((rate for name, rate in PEAKS.items() if name.lower() in device.lower()), None)


def useful_flops(shape: Shape, pairs: list[Pair]) -> float:
    """FLOPs of one step on these pairs, see the module."""
    products = 6.0 * (shape.body_parameters * useful_tokens(pairs) + shape.head_parameters * response_tokens(pairs))
    return products + 12.0 * shape.layers * shape.hidden * sum(seen_tokens(pair) for pair in pairs)


def seen_tokens(pair: Pair) -> int:
    """Pairs of a token and one it sees, itself included: a response sees the prompt and itself."""
    prompt, responses = len(pair.prompt), (len(pair.chosen), len(pair.rejected))
    return prompt * (prompt + 1) // 2 + sum(prompt * n + n * (n + 1) // 2 for n in responses)
