"""What rows are like before anything is trained on them: repeats, contradictions, lengths, beginnings and ends.

In: the examples as they were read, and the token groups that were made of them. Out: a `Survey` of counts, and no
judgement: `preftune.data.advice` says which of them call for a remedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preftune.data.chat import ChatFormat
from preftune.data.dedupe import drop_duplicates
from preftune.data.truncate import header_length
from preftune.types import Example, Layout, TokenizedGroup

SHORT = 3  # tokens, the end of turn among them


@dataclass(frozen=True)
class LengthBias:
    """Whether the better response is the longer one, in tokens as trained on.

    Args:
        better_longer, worse_longer, equal: pairs by which response has more tokens; 0 for rows with one response. Of
            ranked rows the first and the last response are compared.
        difference: tokens that the better response has more, the median over pairs; None without pairs.
        better_mean, worse_mean: tokens; None where there are no such responses.
        correlation: Pearson's, of the label (better 1, worse 0) with the length; None where either never varies.
    """

    better_longer: int
    worse_longer: int
    equal: int
    difference: float | None
    better_mean: float | None
    worse_mean: float | None
    correlation: float | None

    @property
    def pairs(self) -> int:
        return self.better_longer + self.worse_longer + self.equal

    @property
    def share_longer(self) -> float | None:
        """The share of pairs in which the better response is the longer one, ties counted half; None without pairs."""
        return (self.better_longer + self.equal / 2) / self.pairs if self.pairs else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "pairs": self.pairs, "share_longer": self.share_longer}


@dataclass(frozen=True)
class Survey:
    """Counts of rows; of those that were read, but for those that speak of tokens, which are of the rows kept.

    Args:
        read, kept: rows before and after what tokenising leaves out.
        duplicates: rows equal to an earlier one.
        conflicts: pairs of which an earlier row has it the other way round.
        prompts: different prompts.
        most_repeated: rows of the prompt that stands most often.
        with_system: rows with a system text.
        multi_turn: rows whose prompt holds an answer already.
        short: rows whose first response has at most `SHORT` tokens.
        hollow: rows of whose prompt cutting left nothing but BOS and the answer's header.
        one_bos: prompts that begin as the tokenizer's rule has it: with one BOS, or with none.
        responses: all of them; ended: those with the end-of-turn token (or EOS) last; ended_twice: with it twice.
        bias: None for rows with one response and no label.
    """

    read: int
    kept: int
    duplicates: int
    conflicts: int
    prompts: int
    most_repeated: int
    with_system: int
    multi_turn: int
    short: int
    hollow: int
    one_bos: int
    responses: int
    ended: int
    ended_twice: int
    bias: LengthBias | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bias": self.bias.to_dict() if self.bias else None}


def survey(examples: Sequence[Example], groups: Sequence[TokenizedGroup], layout: Layout, chat: ChatFormat) -> Survey:
    """Count. `examples` are all that were read, `groups` those that are trained on, as they are."""
    prompts = Counter(example.prompt for example in examples)
    header = header_length(chat) + (chat.bos_id is not None)
    responses = [ids for group in groups for ids in group.response_ids]
    ends = {chat.end_id, chat.tokenizer.eos_token_id}
    return Survey(
        read=len(examples),
        kept=len(groups),
        duplicates=len(drop_duplicates(examples)[1]),
        conflicts=_count_conflicts(examples) if layout is Layout.PAIRED else 0,
        prompts=len(prompts),
        most_repeated=max(prompts.values(), default=0),
        with_system=sum(any(message.role == "system" for message in example.prompt) for example in examples),
        multi_turn=sum(any(message.role == "assistant" for message in example.prompt) for example in examples),
        short=sum(len(group.response_ids[0]) <= SHORT for group in groups),
        hollow=sum(len(group.prompt_ids) <= header for group in groups) if chat.template is not None else 0,
        one_bos=sum(_begins_well(group.prompt_ids, chat) for group in groups),
        responses=len(responses),
        ended=sum(ids[-1] in ends for ids in responses),
        ended_twice=sum(len(ids) > 1 and ids[-1] == ids[-2] and ids[-1] in ends for ids in responses),
        bias=measure_bias(groups, layout),
    )


def count_shared_prompts(train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """Held-out rows whose prompt is trained on."""
    trained = {example.prompt for example in train}
    return sum(example.prompt in trained for example in held_out)


def measure_bias(groups: Sequence[TokenizedGroup], layout: Layout) -> LengthBias | None:
    """The length bias of rows; None where nothing says that one response is better than another."""
    if layout is Layout.SINGLE or not groups:
        return None
    if layout is Layout.UNPAIRED:
        better = [len(group.response_ids[0]) for group in groups if group.scores[0] > 0]
        worse = [len(group.response_ids[0]) for group in groups if group.scores[0] <= 0]
        return LengthBias(0, 0, 0, None, _mean(better), _mean(worse), _correlation(better, worse))
    better = [len(group.response_ids[0]) for group in groups]
    worse = [len(group.response_ids[-1]) for group in groups]
    differences = np.subtract(better, worse)
    return LengthBias(
        better_longer=int((differences > 0).sum()),
        worse_longer=int((differences < 0).sum()),
        equal=int((differences == 0).sum()),
        difference=float(np.median(differences)),
        better_mean=_mean(better),
        worse_mean=_mean(worse),
        correlation=_correlation(better, worse),
    )


def _mean(lengths: Sequence[int]) -> float | None:
    return sum(lengths) / len(lengths) if lengths else None


def _correlation(better: Sequence[int], worse: Sequence[int]) -> float | None:
    lengths = np.array([*better, *worse], dtype=float)
    labels = np.array([1.0] * len(better) + [0.0] * len(worse))
    if not lengths.size or np.ptp(lengths) == 0 or np.ptp(labels) == 0:
        return None
    return float(np.corrcoef(labels, lengths)[0, 1])


def _begins_well(prompt: Sequence[int], chat: ChatFormat) -> bool:
    bos = chat.bos_id
    if bos is None:
        own = chat.tokenizer.bos_token_id
        return own is None or prompt[0] != own or own == chat.tokenizer.eos_token_id
    return prompt[0] == bos and prompt[1:2] != [bos]


def _count_conflicts(examples: Sequence[Example]) -> int:
    seen: set[tuple[object, str, str]] = set()
    count = 0
    for example in examples:
        chosen, rejected = example.responses
        count += (example.prompt, rejected, chosen) in seen
        seen.add((example.prompt, chosen, rejected))
    return count
