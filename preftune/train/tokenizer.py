"""The tokenizer of a run: its chat template, the tokens that the template needs, and the proof that it survives.

In: a recipe. Out: the tokenizer as it will be saved with the model, and the ids that it got. A template of a base model
is a choice: the recipe's, or chatml. Its markers become tokens, which the model must then embed
(`preftune.model.new_tokens`), unless the recipe wants them as text.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from preftune.data.chat import PROBE_QUESTION, ChatFormat, read_chat_format, without_clock
from preftune.data.encode import encode_examples
from preftune.data.named_templates import BASE_TEMPLATE, TEMPLATES, add_markers, missing_markers, set_chat_template
from preftune.data.sources import excerpt
from preftune.errors import DataError, ModelError
from preftune.model.load import load_tokenizer, one_line
from preftune.recipe import Recipe
from preftune.train.forewarn import warning_of_ppo
from preftune.types import Example, Message

logger = logging.getLogger(__name__)
COMPARED = 16  # rows whose prompts are compared at the start of a run
ROLE_WORDS = 3  # words before a question that are no more than the name of its speaker


def load_run_tokenizer(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """The tokenizer of a recipe with its template, and the ids of tokens that are new to the model.

    Raises:
        PreftuneError: it cannot be loaded, or the template or its settings are wrong.
    """
    place = recipe.tokenizer_name_or_path or recipe.model_name_or_path
    tokenizer = load_tokenizer(
        place,
        revision=recipe.model_revision,
        trust_remote_code=recipe.trust_remote_code,
        chat_template=recipe.chat_template,
    )
    warning = warning_of_ppo(recipe)
    if warning is not None:
        logger.warning(warning)
    name = recipe.chat_template
    if name is None and not tokenizer.chat_template and recipe.tokenization != "princeton":
        name = BASE_TEMPLATE
        set_chat_template(tokenizer, name)
        logger.info("'%s' has no chat template: %s is used. Name another, or plain, in chat_template.", place, name)
    set_chat_template(tokenizer, None, recipe.chat_template_kwargs)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = without_clock(tokenizer.chat_template)  # whoever samples gets the trained prompt
    return tokenizer, _with_markers(tokenizer, name, recipe) if name in TEMPLATES else ()


def _with_markers(tokenizer: PreTrainedTokenizerBase, name: str, recipe: Recipe) -> tuple[int, ...]:
    missing = missing_markers(tokenizer, name)
    if not missing:
        return ()
    said = ", ".join(missing)
    if not recipe.add_template_tokens:
        logger.info("The tokenizer has no token for %s of the template %s: they are ordinary text.", said, name)
        return ()
    added = add_markers(tokenizer, name)
    logger.info(
        "New tokens for the template %s: %s (ids %d to %d). To keep the vocabulary, set add_template_tokens: false.",
        name, said, min(added), max(added),
    )  # fmt: skip
    return added


def check_same_prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    """Hold the prompt ids of training against those to sample from, for rows from all over the data.

    The ids to sample from are those of the tokenizer when it has been saved and loaded again, as after the run.

    Raises:
        ModelError: they differ, or the tokenizer cannot be saved and loaded.
    """
    rows = examples[:: max(1, len(examples) // COMPARED)]
    chat, sampler = read_chat_format(tokenizer), read_chat_format(_reloaded(tokenizer))
    _say_own_text(chat)
    for row, group in zip(rows, encode_examples(rows, chat), strict=True):
        if isinstance(group, DataError):
            continue  # a bad row, which is refused or left out
        sampled = sampler.prompt_ids([row.prompt])[0]
        if group.prompt_ids == sampled:
            continue
        common = next(n for n in range(len(sampled) + 1) if group.prompt_ids[: n + 1] != sampled[: n + 1])
        raise ModelError(
            f"{row.origin}: the prompt that is trained on is not the one that is sampled from: of its "
            f"{len(group.prompt_ids)} tokens the first {common} are the same. The tokenizer changes when it is saved "
            "and loaded: use another release of it, or set chat_template."
        )


def _reloaded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
            return type(tokenizer).from_pretrained(folder)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
            raise ModelError(f"The tokenizer cannot be saved and loaded again: {one_line(cause)}.") from cause


def _say_own_text(chat: ChatFormat) -> None:
    """Some templates write a system text where a conversation has none (Qwen 2.5), or dates (Llama 3.1)."""
    if chat.template is None:
        return
    opening = chat.prompt_text(chat.turns([Message("user", PROBE_QUESTION)])).partition(PROBE_QUESTION)[0]
    for token in chat.special.values():
        opening = opening.replace(token, " ")
    if len(opening.split()) > ROLE_WORDS:
        logger.info("The chat template writes a text of its own before the first question: %s", excerpt(opening, 120))
