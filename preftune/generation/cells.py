"""Keys and values of prompts and of the answers to them: a prompt's are computed once, kept once, and read once a step.

Two ranges of cells in every layer:

    prompts  (P, Hkv, Lp, D)   one line a prompt, whatever the number of its answers
    answers  (B, Hkv, La, D)   one line an answer that is being written

Lines in use stand at the front: where one is given up, the last takes its place. Cells grow when they are too short and
are given back when the last prompt is gone.

A query of one step sees its prompt's line and its own. The queries of all answers to a prompt meet its keys in one
matrix product, so the keys of a long prompt are read once and not once an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

SPARE = 64  # cells that a line of answers grows by at least; it then grows by half


@dataclass
class Lines:
    """Keys and values of one layer, of prompts or of answers; `keys` and `values` are (lines, Hkv, cells, D)."""

    keys: Tensor
    values: Tensor

    @classmethod
    def like(cls, key: Tensor, value: Tensor) -> Lines:
        """No line yet, of the shape of (B, Hkv, T, D)."""
        return cls(*(x.new_empty(0, x.shape[1], 0, x.shape[3]) for x in (key, value)))

    def grow(self, lines: int, cells: int) -> None:
        if self.keys.shape[0] >= lines and self.keys.shape[2] >= cells:
            return
        self.keys, self.values = (_grown(x, lines, cells) for x in (self.keys, self.values))

    def move(self, source: int, target: int, cells: int) -> None:
        for x in (self.keys, self.values):
            x[target, :, :cells] = x[source, :, :cells]


def _grown(x: Tensor, lines: int, cells: int) -> Tensor:
    more = x.new_zeros(max(lines, x.shape[0]), x.shape[1], max(cells, x.shape[2]), x.shape[3])
    more[: x.shape[0], :, : x.shape[2]] = x
    return more


@dataclass
class Layer:
    """One attention layer's cells."""

    prompts: Lines
    answers: Lines


@dataclass
class Cells:
    """The cells of all layers, and how many of each line are filled."""

    layers: dict[int, Layer] = field(default_factory=dict)
    prompt_lengths: list[int] = field(default_factory=list)
    answer_lengths: list[int] = field(default_factory=list)
    prompt_of: list[int] = field(default_factory=list)  # of each answer
    capacity: dict[str, tuple[int, int]] = field(default_factory=lambda: {"prompts": (0, 0), "answers": (0, 0)})

    def layer(self, number: int, key: Tensor, value: Tensor) -> Layer:
        """The layer's cells with room for what is asked of them; (B, Hkv, T, D) show their shape."""
        if number not in self.layers:
            self.layers[number] = Layer(Lines.like(key, value), Lines.like(key, value))
        layer = self.layers[number]
        layer.prompts.grow(*self.capacity["prompts"])
        layer.answers.grow(*self.capacity["answers"])
        return layer

    def open_prompts(self, lengths: list[int]) -> int:
        """Lines for prompts; gives the first."""
        first = len(self.prompt_lengths)
        self.prompt_lengths += lengths
        self._reserve("prompts", len(self.prompt_lengths), max(lengths), 0)
        return first

    def open_answer(self, prompt: int) -> None:
        """A line for an answer, the last one."""
        self.prompt_of.append(prompt)
        self.answer_lengths.append(0)

    def lengthen(self) -> None:
        """Room for one more cell in every answer's line."""
        self._reserve("answers", len(self.answer_lengths), max(self.answer_lengths) + 1, SPARE)

    def close_answer(self, line: int) -> None:
        """Give up a line; the last one takes its place."""
        last = len(self.answer_lengths) - 1
        if line != last:
            for layer in self.layers.values():
                if layer.answers.keys.shape[0] > last:  # a line that was never written needs no moving
                    layer.answers.move(last, line, self.answer_lengths[last])
        for kept in (self.answer_lengths, self.prompt_of):
            kept[line] = kept[last]
            kept.pop()

    def close_prompt(self, line: int) -> None:
        """Give up a prompt to which no answer is being written; the last one takes its place."""
        last = len(self.prompt_lengths) - 1
        if line != last:
            for layer in self.layers.values():
                layer.prompts.move(last, line, self.prompt_lengths[last])
            self.prompt_of = [line if prompt == last else prompt for prompt in self.prompt_of]
        self.prompt_lengths[line] = self.prompt_lengths[last]
        self.prompt_lengths.pop()
        if not self.prompt_lengths:
            self.layers.clear()
            self.capacity = {"prompts": (0, 0), "answers": (0, 0)}

    def _reserve(self, kind: str, lines: int, cells: int, spare: int) -> None:
        had_lines, had_cells = self.capacity[kind]
        if lines > had_lines:
            had_lines = max(lines, had_lines + had_lines // 2)
        if cells > had_cells:
            had_cells = max(cells, had_cells + had_cells // 2 if spare else cells, spare)
        self.capacity[kind] = had_lines, had_cells
