"""Reward models that answer: any model that gives one number to a text.

One trained here or elsewhere for sequence classification with one label, decoder or encoder, or a language model or an
adapter with a value-head file beside it. A decoder that reads its last token takes packed batches, where a row's prompt
is computed once; any other is run as it is, padded.

A decoder gets the ids that training gives it (`preftune.data.tokenize`). An encoder whose tokenizer has no chat
template gets prompt and response as two texts, the way such models are trained. A score depends on its prompt and
response alone, never on what else is in the row or the batch.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from preftune.data import tokenize_examples
from preftune.data.chat import BLANK_LINE, read_chat_format
from preftune.data.pack import pack
from preftune.data.system import with_system
from preftune.errors import ModelError
from preftune.model.heads import load_reward_model, to_scorer
from preftune.model.load import load_tokenizer
from preftune.model.place import model_folder
from preftune.serve.chat import trained_system
from preftune.types import Example, Message, TokenizedGroup

log = logging.getLogger(__name__)

BATCH_TOKENS = 16384


@dataclass(frozen=True)
class RewardModel:
    """A model that scores, and how it wants to be asked.

    context: the longest sequence it reads, in tokens, or None.
    packs: it takes packed batches.
    pairs: its tokenizer is given prompt and response as two texts.
    system: of its training, for prompts that have no system text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    packs: bool
    pairs: bool
    system: str | None = None


@dataclass(frozen=True)
class Scores:
    """values: for each example the scores of its responses, in order; cut: how many responses were too long."""

    values: list[list[float]]
    cut: int


def open_reward_model(name: str, *, use_safetensors: bool | None = None) -> RewardModel:
    """Load a reward model and its tokenizer, on the GPU if there is one.

    Args:
        name: a run folder, checkpoint, model or adapter, or a hub name.
        use_safetensors: True reads no pickle files of a hub name.

    Raises:
        ModelError: there is none, or it gives another number of scores than one.
    """
    disable_progress_bar()
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(model_folder(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(name)
    model = load_reward_model(
        name,
        torch_dtype="float32" if device == "cpu" else "auto",
        use_safetensors=use_safetensors,
        tokenizer=tokenizer,
        new_head=False,
    )
    model = model.to(device).eval()
    try:
        packs = bool(to_scorer(model))
    except ModelError as reason:
        log.info("%s It is run as it is, padded.", reason)
        packs = False
    separated = None not in (tokenizer.cls_token_id, tokenizer.sep_token_id)
    pairs = separated and not packs and not tokenizer.chat_template
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if pairs:  # position embeddings of some encoders start behind the padding's
        context = min(context or sys.maxsize, tokenizer.model_max_length)
    return RewardModel(model, tokenizer, context, packs, pairs, trained_system(Path(name)))


# --- scores


def prompt_ids(reward: RewardModel, example: Example) -> list[int]:
    """Its prompt as the model gets it, uncut.

    Raises:
        DataError: it cannot be put into the chat template.
    """
    [asked] = with_system([example], reward.system)
    if reward.pairs:
        return list(reward.tokenizer(_joined(asked.prompt), verbose=False)["input_ids"])
    return read_chat_format(reward.tokenizer).prompt_ids([asked.prompt])[0]


@torch.inference_mode()
def score_examples(
    reward: RewardModel,
    examples: Sequence[Example],
    *,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
) -> Scores:
    """Score all responses; long rows run first, in batches of up to `batch_tokens` tokens.

    Raises:
        DataError: a row cannot be put into the chat template.
        ModelError: a score is not a finite number.
    """
    limits = [limit for limit in (max_length, reward.context) if limit is not None]
    asked = with_system(examples, reward.system)
    alone = [replace(example, responses=(text,), scores=()) for example in asked for text in example.responses]
    if reward.pairs:
        flat, cut = _score_pairs(reward, alone, min(limits, default=None), batch_tokens)
    else:
        groups, report = tokenize_examples(alone, reward.tokenizer, max_length=min(limits, default=None))
        cut = report.rows_cut
        run = _score_packed if reward.packs else _score_padded
        flat = run(reward, groups, batch_tokens)
    for value, example in zip(flat, alone, strict=True):
        if not math.isfinite(value):
            raise ModelError(f"{example.origin}: the score is {value}, expected a finite number. Check the weights.")
    values = iter(flat)
    return Scores([[next(values) for _ in example.responses] for example in examples], cut)


def _score_packed(reward: RewardModel, alone: Sequence[TokenizedGroup], batch_tokens: int) -> list[float]:
    """Groups of one response each; on the packed road neighbours that have the same prompt run together."""
    padded = reward.model.road == "padded"
    groups: list[TokenizedGroup] = []
    places: list[list[int]] = []
    for place, group in enumerate(_as_read(reward, alone)):
        if groups and not padded and groups[-1].prompt_ids == group.prompt_ids:
            wider = replace(groups[-1], response_ids=groups[-1].response_ids + group.response_ids)
            if wider.packed_length(feed_last=True) <= batch_tokens:
                groups[-1] = wider
                places[-1].append(place)
                continue
        groups.append(group)
        places.append([place])
    widths = [len(group.prompt_ids) + max(map(len, group.response_ids)) for group in groups]
    tokens = [group.packed_length(feed_last=True) for group in groups]
    found = [0.0] * len(alone)
    for batch in _batches(tokens, widths, batch_tokens, padded):
        packed = pack([groups[number] for number in batch], feed_last=True).to(reward.model.device)
        sums = reward.model(batch=packed).sums.tolist()
        for number, values in zip(batch, sums, strict=True):
            for place, value in zip(places[number], values, strict=False):  # gaps at the end of a narrower group
                found[place] = value
    return found


def _as_read(reward: RewardModel, groups: Sequence[TokenizedGroup]) -> Sequence[TokenizedGroup]:
    """Responses up to the token that the model reads: some were trained with the end of a turn as their padding."""
    pad = reward.model.config.get_text_config().pad_token_id
    if not any(group.response_ids[0][-1] == pad for group in groups):
        return groups
    log.info("The model's padding token ends the responses; it was trained to read the token before, and so it does.")
    return [replace(group, response_ids=[_without_padding(group.response_ids[0], pad)]) for group in groups]


def _without_padding(ids: list[int], pad: int) -> list[int]:
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def _score_padded(reward: RewardModel, groups: Sequence[TokenizedGroup], batch_tokens: int) -> list[float]:
    sequences = [group.prompt_ids + group.response_ids[0] for group in groups]
    return run_padded(reward, [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences], batch_tokens)


def _score_pairs(
    reward: RewardModel, examples: Sequence[Example], limit: int | None, batch_tokens: int
) -> tuple[list[float], int]:
    """Prompt and response as two texts; too long, the longer of them loses its end."""
    prompts = [_joined(example.prompt) for example in examples]
    answers = [example.responses[0] for example in examples]
    whole = reward.tokenizer(prompts, answers, verbose=False)
    cut = [limit is not None and len(ids) > limit for ids in whole["input_ids"]]
    if any(cut):
        whole = reward.tokenizer(prompts, answers, truncation=True, max_length=limit)
    rows = [{name: whole[name][number] for name in whole} for number in range(len(examples))]
    return run_padded(reward, rows, batch_tokens), sum(cut)


def _joined(messages: Sequence[Message]) -> str:
    return BLANK_LINE.join(message.content for message in messages)


def run_padded(reward: RewardModel, rows: Sequence[dict[str, list[int]]], batch_tokens: int) -> list[float]:
    """Padded batches through the model's own forward pass."""
    pad = reward.model.config.get_text_config().pad_token_id
    pad = reward.tokenizer.pad_token_id if pad is None else pad
    lengths = [len(row["input_ids"]) for row in rows]
    found = [0.0] * len(rows)
    for batch in _batches(lengths, lengths, batch_tokens, padded=True):
        width = lengths[batch[0]]
        columns = {
            name: [rows[number][name] + [fill] * (width - lengths[number]) for number in batch]
            for name, fill in {**dict.fromkeys(rows[0], 0), "input_ids": pad}.items()
        }
        tensors = {name: torch.tensor(column, device=reward.model.device) for name, column in columns.items()}
        for number, value in zip(batch, reward.model(**tensors).logits[:, 0].tolist(), strict=True):
            found[number] = value
    return found


def _batches(tokens: Sequence[int], widths: Sequence[int], limit: int, padded: bool) -> Iterable[list[int]]:
    """Numbers of the groups that run together, widest first. tokens: of each group; widths: of its longest sequence.

    A terminal is shown how far they are.
    """
    batches: list[list[int]] = []
    load = 0
    for number in sorted(range(len(tokens)), key=lambda number: -widths[number]):
        # padded, every sequence takes the width of the batch's widest, which comes first
        cost = widths[batches[-1][0]] if padded and batches else tokens[number]
        if not batches or load + cost > limit:
            batches.append([])
            load, cost = 0, tokens[number]
        batches[-1].append(number)
        load += cost
    console = Console(stderr=True)
    return track(batches, "scoring", console=console, transient=True, disable=not console.is_terminal)
