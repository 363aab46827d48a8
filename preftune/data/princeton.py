"""`tokenization: princeton`: the ids of the SimPO reference repository, for reproducing the paper.

What it does differently, and what is therefore off by default:

    * the prompt is rendered without the answer's header, which begins the response and counts in its length
    * an empty system message is put in front where the template's text speaks of "system" or has <|im_start|>
    * the whole tail of the template stays, and EOS is appended unless the response ends with it: Zephyr gets two
    * special tokens spelt out in a text are tokens
    * when a pair is too long, the prompt becomes its last (keep_end) or first (keep_start) `max_prompt_length` tokens,
      BOS or not; if that is not enough, every response is cut to `max_length - max_prompt_length`, EOS lost

Follows scripts/run_simpo.py and scripts/simpo_trainer.py of princeton-nlp/SimPO. Departures: a tokenizer without BOS
gets none (there: an error); where a token reaches over the boundary for one response of a pair alone, both keep the
shorter prompt (there: one prompt each, of which one id is scored in one and not in the other).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from preftune.data.chat import ChatFormat, Turn
from preftune.data.encode import Encoded, to_group
from preftune.data.truncate import check_limit
from preftune.errors import DataError, ModelError, RecipeError
from preftune.types import Example, TokenizedGroup


def encode_examples_princeton(examples: Sequence[Example], chat: ChatFormat) -> list[Encoded]:
    """The group of each example, uncut, or what is wrong with it.

    Raises:
        ModelError: the tokenizer has no chat template, or no EOS.
    """
    if chat.template is None:
        raise ModelError("'tokenization: princeton' needs a chat template, and the tokenizer has none. Name one.")
    if chat.tokenizer.eos_token_id is None:
        raise ModelError("'tokenization: princeton' appends EOS, and the tokenizer has none. Set its eos_token.")
    rendered = [_render(example, chat) for example in examples]
    good = [row for row in rendered if not isinstance(row, DataError)]
    prompts = iter(chat.encode([prompt for prompt, _ in good]))
    fulls = iter(chat.encode([prompt + response for prompt, responses in good for response in responses]))
    return [
        row if isinstance(row, DataError) else _group(example, next(prompts), [next(fulls) for _ in row[1]], chat)
        for example, row in zip(examples, rendered, strict=True)
    ]


@dataclass(frozen=True)
class PrincetonTruncation:
    """The reference repository's cutting, in its order; equality fits."""

    mode: Literal["keep_end", "keep_start"]
    length: int
    prompt: int

    def cut(self, group: TokenizedGroup) -> TokenizedGroup:
        prompt, longest = group.prompt_ids, max(map(len, group.response_ids))
        if len(prompt) + longest <= self.length:
            return group
        prompt = prompt[: self.prompt] if self.mode == "keep_start" else prompt[-self.prompt :]
        if len(prompt) + longest <= self.length:
            return replace(group, prompt_ids=prompt)
        room = self.length - self.prompt
        return replace(group, prompt_ids=prompt, response_ids=[ids[:room] for ids in group.response_ids])


def build_princeton_truncation(
    max_length: int | None, max_prompt_length: int | None, truncation: str
) -> PrincetonTruncation:
    """The rule for these limits; without them 512 and 128, as there.

    Raises:
        RecipeError: a value is out of range, or another truncation than the repository's two is asked for.
    """
    length = 512 if max_length is None else check_limit("max_length", max_length, at_least=2)
    prompt = 128 if max_prompt_length is None else check_limit("max_prompt_length", max_prompt_length, at_least=1)
    if prompt >= length:
        raise RecipeError(
            f"'max_prompt_length' {prompt} leaves nothing of 'max_length' {length} for cut responses under "
            "'tokenization: princeton'. Lower it."
        )
    if truncation == "keep_start":
        return PrincetonTruncation("keep_start", length, prompt)
    if truncation in ("keep_end", "prompt_then_response"):  # the default of the repository, and ours
        return PrincetonTruncation("keep_end", length, prompt)
    raise RecipeError(f"'truncation: {truncation}' is not in 'tokenization: princeton'. Use keep_end or keep_start.")


def _render(example: Example, chat: ChatFormat) -> tuple[str, list[str]] | DataError:
    """Prompt and responses, each rendered on its own, BOS cut from the responses."""
    if example.tools or any(message.tool_calls or message.role == "tool" for message in example.prompt):
        return DataError(
            f"{example.origin}: 'tokenization: princeton' knows no tools, and this row has some. Leave tokenization "
            "out, or ignore the column with columns: {tools: null}."
        )
    turns: list[Turn] = [{"role": message.role, "content": message.content} for message in example.prompt]
    speaks_of_system = "system" in str(chat.template) or "<|im_start|>" in str(chat.template)
    if speaks_of_system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    try:
        prompt = chat.closed_text(turns, example.origin)
        alone = [
            chat.closed_text([{"role": "assistant", "content": answer}], example.origin) for answer in example.responses
        ]
    except DataError as error:
        return error
    bos = chat.tokenizer.bos_token
    return prompt, [text.removeprefix(bos) if bos else text for text in alone]


def _group(example: Example, prompt: list[int], fulls: list[list[int]], chat: ChatFormat) -> TokenizedGroup:
    boundary = min(len(prompt) - (full[: len(prompt)] != prompt) for full in fulls)
    while any(full[:boundary] != fulls[0][:boundary] for full in fulls):
        boundary -= 1
    shared, eos, bos = fulls[0][:boundary], chat.tokenizer.eos_token_id, chat.tokenizer.bos_token_id
    if bos is not None and shared[:1] != [bos]:
        shared = [bos, *shared]
    responses = [full[boundary:] for full in fulls]
    responses = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in responses]
    return to_group(example, shared, responses)
