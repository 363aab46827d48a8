"""Two roads through a model, prompts and single tokens in, logits out.

`SharedDecoder` keeps the keys and values itself (`cells.py`) and runs all answers in one pass. `PlainDecoder` is for
models whose layers cannot use that (state-space, convolution, chunked attention, caches of their own): each answer has
the model's own cache and runs by itself. `build_decoder` holds the first against the model's own forward pass and takes
the second where they differ.

Lines, of prompts and of answers, are numbered from 0; where one is closed, the last takes its number.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from preftune.generation.attention import NAME, Reading, Writing
from preftune.generation.cells import Cells
from preftune.generation.few_rows import FewRows
from preftune.model.policy import attention, obstacle_to_own_attention, some_ids, tolerance_of

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """A model with its prompts and the answers that are being written."""

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        """Take up prompts, numbered on from those there are, all or none; logits (B, V) of what follows each."""
        ...

    def open_answer(self, prompt: int) -> None:
        """Begin an answer to a prompt, numbered on."""
        ...

    def write(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to every answer; logits (B, V) of what follows."""
        ...

    def close_answer(self, line: int) -> None: ...

    def close_prompt(self, line: int) -> None: ...


class SharedDecoder:
    """All answers in one pass over cells of our own; every prompt is computed and kept once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cells = Cells()
        self.few_rows = FewRows(model)
        self.layers_served = 0  # of the last pass

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        ids = torch.tensor([[*prompt, *[prompt[-1]] * (width - len(prompt))] for prompt in prompts])
        first = self.cells.open_prompts(lengths)
        ends = sorted(set(lengths))
        keep = torch.tensor([end - 1 for end in ends], device=self.model.device)
        positions = torch.arange(width).expand(len(prompts), -1)
        try:
            logits = self._run(ids, positions, Reading(self.cells, first, lengths), logits_to_keep=keep)
        except BaseException:  # a line that nobody knows of would shift the numbers of all that follow
            for line in reversed(range(first, first + len(prompts))):
                self.cells.close_prompt(line)
            raise
        return logits[range(len(prompts)), [ends.index(length) for length in lengths]]

    def open_answer(self, prompt: int) -> None:
        self.cells.open_answer(prompt)

    def write(self, tokens: Sequence[int]) -> Tensor:
        self.cells.lengthen()
        plan = Writing(self.cells, self.model.device)
        with self.few_rows(len(tokens)):
            logits = self._run(torch.tensor(tokens)[:, None], (plan.prompt_lengths + plan.written)[:, None], plan)
        self.cells.answer_lengths = [length + 1 for length in self.cells.answer_lengths]
        return logits[:, -1]

    def close_answer(self, line: int) -> None:
        self.cells.close_answer(line)

    def close_prompt(self, line: int) -> None:
        self.cells.close_prompt(line)

    def _run(self, ids: Tensor, positions: Tensor, plan: Reading | Writing, **more: Any) -> Tensor:
        device = self.model.device
        with _attention_by_cells(self.model):
            out = self.model(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                use_cache=False,
                return_dict=True,
                pass_over=plan,
                **more,
            )
        self.layers_served = plan.layers_served
        return out.logits


@contextmanager
def _attention_by_cells(model: Any) -> Iterator[None]:
    """A model that is being trained puts its usual attention in place by itself (`preftune.model.policy`)."""
    usual = getattr(model, "usual_attention", None)
    if usual is not None:
        model.usual_attention = NAME
    try:
        with attention(model, NAME):
            yield
    finally:
        if usual is not None:
            model.usual_attention = usual


class PlainDecoder:
    """Every answer with the model's own cache, by itself; a prompt is computed once and its cache copied."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.prompts: list[tuple[Any, int]] = []  # cache, length
        self.answers: list[tuple[Any, int]] = []

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        read, logits = [], []
        for prompt in prompts:
            out = self.model(input_ids=self._ids(prompt), use_cache=True, return_dict=True)
            read.append((_cache_of(out), len(prompt)))
            logits.append(out.logits[:, -1])
        self.prompts += read
        return torch.cat(logits)

    def open_answer(self, prompt: int) -> None:
        cache, length = self.prompts[prompt]
        self.answers.append((copy.deepcopy(cache), length))

    def write(self, tokens: Sequence[int]) -> Tensor:
        logits = []
        for line, token in enumerate(tokens):
            cache, length = self.answers[line]
            real = torch.ones(1, length + 1, dtype=torch.long, device=self.model.device)
            given = self.model.prepare_inputs_for_generation(
                self._ids([token]), past_key_values=cache, attention_mask=real, use_cache=True, is_first_iteration=False
            )
            out = self.model(**given, return_dict=True)
            self.answers[line] = _cache_of(out), length + 1
            logits.append(out.logits[:, -1])
        return torch.cat(logits)

    def close_answer(self, line: int) -> None:
        self.answers[line] = self.answers[-1]
        self.answers.pop()

    def close_prompt(self, line: int) -> None:
        self.prompts[line] = self.prompts[-1]
        self.prompts.pop()

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.device)


def _cache_of(out: Any) -> Any:
    cache = getattr(out, "past_key_values", None)
    return cache if cache is not None else out.cache_params


def build_decoder(model: Any) -> Decoder:
    """The fast road where it gives what the model's own forward pass gives; else the plain one, and a line in the log.

    Args:
        model: a causal language model of transformers in evaluation mode, not a wrapper around one.
    """
    problem = _problem(model)
    if problem is None:
        return SharedDecoder(model)
    logger.warning("%s answers one sequence at a time: %s", type(model).__name__, problem)
    return PlainDecoder(model)


def _problem(model: Any) -> str | None:
    """Why the model cannot use our cells, in one line."""
    config = model.config.get_text_config()
    obstacle = obstacle_to_own_attention(model, config)
    if obstacle is not None:
        return obstacle
    ids = some_ids(config)
    prompts, answers = [ids[:24], ids[30:33]], [ids[40:44], ids[50:54], ids[60:64]]
    prompt_of = (0, 1, 0)
    try:
        decoder = SharedDecoder(model)
        found = [decoder.read(prompts)]
        for prompt in prompt_of:
            decoder.open_answer(prompt)
        found += [decoder.write(tokens) for tokens in zip(*answers, strict=True)]
    except Exception as cause:  # models are other people's programs
        return (
            f"its layers do not take the engine's cells ({type(cause).__name__}: {(str(cause) or '-').splitlines()[0]})"
        )
    if decoder.layers_served != config.num_hidden_layers:
        return f"only {decoder.layers_served} of its {config.num_hidden_layers} layers use plain attention."
    wanted = [
        _own_logits(model, [*prompts[p], *tokens], len(tokens) + 1)
        for p, tokens in zip(prompt_of, answers, strict=True)
    ]
    ours = torch.stack([found[0][list(prompt_of)], *found[1:]], dim=1)
    gap = (ours.float().log_softmax(-1) - torch.stack(wanted).float().log_softmax(-1)).abs()
    worst, allowed = gap.nan_to_num(nan=0.0, posinf=torch.inf).max().item(), tolerance_of(model)
    if not worst <= allowed:
        return f"log-probs over the engine's cells differ from its own by {worst:.2g} nats (allowed {allowed:g})."
    return None


def _own_logits(model: Any, ids: list[int], last: int) -> Tensor:
    """(last, V) at the last places of one sequence."""
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, return_dict=True).logits[
        0, -last:
    ]
