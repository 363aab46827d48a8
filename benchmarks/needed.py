"""The matrix products of a training step that nobody can leave out, and their time at measured rates.

Needed are, for every weight matrix, three products (output, gradient of input, gradient of weight) over the tokens
that must pass it: body matrices see each prompt once and each response once, the head sees response tokens only. That
is 6 FLOPs per parameter and token. Attention, norms, activations, soft-max and optimizer count as nothing, so that no
step can reach the floor. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from workload import ModelSize, Pair, response_tokens, useful_tokens

FORMS = ("forward", "input_gradient", "weight_gradient")

Rates = dict[str, dict[str, dict[str, float]]]  # by matrix and form: flops_per_wall_s, flops_per_cpu_s


@dataclass(frozen=True)
class Matrix:
    """`copies` weight matrices of the same (outputs, inputs)."""

    name: str
    outputs: int
    inputs: int
    copies: int
    in_head: bool = False

    @property
    def parameters(self) -> int:
        return self.outputs * self.inputs * self.copies


@dataclass(frozen=True)
class Seconds:
    """Wall clock, and CPU time of all threads."""

    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


def matrices(size: ModelSize) -> list[Matrix]:
    """The weight matrices of the model, by shape."""
    return [
        Matrix("attention", size.hidden, size.hidden, 4 * size.layers),
        Matrix("mlp up, gate", size.mlp, size.hidden, 2 * size.layers),
        Matrix("mlp down", size.hidden, size.mlp, size.layers),
        Matrix("head", size.vocab, size.hidden, 1, in_head=True),
    ]


def needed_flops(size: ModelSize, pairs: list[Pair]) -> float:
    """FLOPs of one step on these pairs that no design can avoid."""
    return 6.0 * (size.body_parameters * useful_tokens(pairs) + size.head_parameters * response_tokens(pairs))


def floor_seconds(size: ModelSize, pairs: list[Pair], rates: Rates) -> Seconds:
    """Time of the needed products at the measured rates."""
    total = Seconds(0.0, 0.0)
    for matrix in matrices(size):
        tokens = response_tokens(pairs) if matrix.in_head else useful_tokens(pairs)
        flops = 2.0 * matrix.parameters * tokens
        for form in FORMS:
            rate = rates[matrix.name][form]
            total += Seconds(flops / rate["flops_per_wall_s"], flops / rate["flops_per_cpu_s"])
    return total
