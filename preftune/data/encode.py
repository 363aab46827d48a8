"""Examples to token groups: every prompt is rendered and encoded once, uncut.

A response is what follows its prompt: both are encoded together from the prompt's last special token on, and where
those ids start with the prompt's own, the rest is the response. Where they do not (a token would reach over the
boundary) the response is encoded alone, so that prompt ids are always those a generator is given. Scores stay with
their responses.
"""

from __future__ import annotations

from collections.abc import Sequence

from preftune.data.chat import ChatFormat
from preftune.errors import DataError
from preftune.types import Example, TokenizedGroup

Encoded = TokenizedGroup | DataError  # a row that cannot be rendered becomes its error


def encode_examples(examples: Sequence[Example], chat: ChatFormat) -> list[Encoded]:
    """The group of each example, or what is wrong with it."""
    rendered = [_render(example, chat) for example in examples]
    good = [row for row in rendered if not isinstance(row, DataError)]
    prompt_ids = chat.encode([prompt for prompt, _ in good])
    follows = [
        (anchor, text)
        for (prompt, texts), ids in zip(good, prompt_ids, strict=True)
        for anchor in (_anchor(prompt, ids, chat),)
        for text in texts
    ]
    prompts, responses = iter(prompt_ids), iter(_encode_responses(follows, chat))
    return [
        row
        if isinstance(row, DataError)
        else to_group(example, chat.with_bos(next(prompts)), [next(responses) for _ in row[1]])
        for example, row in zip(examples, rendered, strict=True)
    ]


def to_group(example: Example, prompt_ids: list[int], response_ids: list[list[int]]) -> TokenizedGroup:
    """The example's ids with what is known of it beside its texts."""
    return TokenizedGroup(prompt_ids, response_ids, example.origin, example.scores, weight=example.weight)


def _render(example: Example, chat: ChatFormat) -> tuple[str, list[str]] | DataError:
    """The text of the prompt, and of each response after it."""
    try:
        turns, tools = chat.turns(example.prompt), chat.tool_list(example.tools)
        prompt = chat.prompt_text(turns, example.origin, tools)
        return prompt, [chat.response_text(turns, prompt, text, example.origin, tools) for text in example.responses]
    except DataError as error:
        return error


def _anchor(prompt: str, ids: list[int], chat: ChatFormat) -> tuple[str, list[int]]:
    """The end of a prompt, from its last special token on, as text and ids: all that can shape what follows."""
    for place in range(len(ids) - 1, -1, -1):
        token = chat.special.get(ids[place])
        if token is not None:
            start = prompt.rfind(token)
            return (prompt[start:], ids[place:]) if start >= 0 else (prompt, ids)
    return prompt, ids


def _encode_responses(follows: Sequence[tuple[tuple[str, list[int]], str]], chat: ChatFormat) -> list[list[int]]:
    """The ids of each response after its anchor, ending with the end-of-turn token."""
    together = chat.encode([anchor + response for (anchor, _), response in follows])
    found: list[list[int] | None] = [
        ids[len(before) :] if ids[: len(before)] == before else None
        for ids, ((_, before), _) in zip(together, follows, strict=True)
    ]
    alone = iter(_encode_alone([text for (_, text), ids in zip(follows, found, strict=True) if ids is None], chat))
    responses = [next(alone) if ids is None else ids for ids in found]
    for ids in responses:
        if ids[-1:] != [chat.end_id]:
            ids.append(chat.end_id)
    return responses


def _encode_alone(texts: Sequence[str], chat: ChatFormat) -> list[list[int]]:
    """Ids without a prompt, and without the space that some tokenizers put in front of a text."""
    plain = chat.encode(texts)
    if not chat.lead or not texts:
        return plain
    lead = chat.encode([chat.lead])[0]
    led = chat.encode([chat.lead + text for text in texts])
    return [ids[len(lead) :] if ids[: len(lead)] == lead else own for ids, own in zip(led, plain, strict=True)]
