"""The prompts of a recipe: from its rows, with or without answers, to token ids that leave room for a response."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.data.decontaminate import drop_contaminated
from preftune.data.encode import encode_examples
from preftune.data.preferences import bad_row_rule
from preftune.data.truncate import Truncation, header_length
from preftune.errors import DataError
from preftune.recipe import Recipe
from preftune.train.data import benchmark_questions, load_examples, look_at
from preftune.types import Example, Message, Origin, TokenizedGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends before the answer, and its token ids."""

    ids: list[int]
    messages: tuple[Message, ...]
    origin: Origin

    def answered(self, response_ids: list[int]) -> TokenizedGroup:
        return TokenizedGroup(self.ids, [response_ids], self.origin)

    def to_chat(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in self.messages]


def load_prompts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, dataset: str | Sequence[str] | Mapping[str, Any], split: str
) -> list[Prompt]:
    """The prompts of a recipe's dataset, cut or left out where they are too long.

    Raises:
        PreftuneError: the data or a setting of it is wrong, or no prompt is left.
    """
    examples = load_examples(recipe, dataset, split)
    if split == "train":
        look_at(recipe, tokenizer, examples)
    weighted = next((example for example in examples if example.weight != 1.0), None)
    if weighted is not None:
        raise DataError(
            f"{weighted.origin}: the row has the weight {weighted.weight:g}, and ppo counts all prompts the same. "
            "Ignore the column with columns: {weight: null}."
        )
    questions = benchmark_questions(recipe.decontaminate)
    if questions is not None:
        examples, others = drop_contaminated(examples, questions)
        logger.info("%d prompts with a benchmark's question are left out.", len(others))
    prompts = _cut(_encoded(recipe, examples, read_chat_format(tokenizer)), recipe, tokenizer)
    if recipe.dedupe:
        prompts = list({tuple(prompt.ids): prompt for prompt in reversed(prompts)}.values())[::-1]
    if not prompts:
        raise DataError(
            f"'dataset': of {len(examples)} prompts none is left for '{split}'. Raise max_length, or lower "
            "response_length."
        )
    return prompts


def prompt_room(recipe: Recipe) -> int:
    """Tokens that a prompt may have."""
    return recipe.max_prompt_length or recipe.max_length - recipe.objective_args["response_length"]


def _encoded(recipe: Recipe, examples: Sequence[Example], chat: ChatFormat) -> list[Prompt]:
    rule = recipe.on_bad_row or bad_row_rule(
        recipe.dataset, recipe.dataset_configs, recipe.dataset_splits, recipe.dataset_catalog
    )
    prompts, bad = [], []
    for example, group in zip(examples, encode_examples(examples, chat), strict=True):
        if isinstance(group, DataError):
            if rule == "error":
                raise group
            bad.append(group)
        else:
            prompts.append(Prompt(group.prompt_ids, example.prompt, example.origin))
    if bad:
        logger.warning("%d prompts that the chat template refuses are left out; the first: %s", len(bad), bad[0])
    return prompts


def _cut(prompts: Sequence[Prompt], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """As rows of pairs are cut, with one token in the place of a response."""
    room, chat = prompt_room(recipe), read_chat_format(tokenizer)
    rule = Truncation(recipe.truncation, room + 1, room, header_length(chat), chat.bos_id, None)
    kept, cut = [], 0
    for prompt in prompts:
        if len(prompt.ids) > room and recipe.truncation == "error":
            raise DataError(
                f"{prompt.origin}: the prompt has {len(prompt.ids)} tokens, and response_length leaves {room} of "
                f"max_length {recipe.max_length}. Raise it, or choose another truncation."
            )
        group = rule.cut(prompt.answered([0]))
        cut += group is not None and len(group.prompt_ids) < len(prompt.ids)
        if group is not None:
            kept.append(replace(prompt, ids=group.prompt_ids))
    if cut or len(kept) < len(prompts):
        left_out = len(prompts) - len(kept)
        logger.warning("Of %d prompts %d are cut to %d tokens, and %d left out.", len(prompts), cut, room, left_out)
    return kept
