"""What can be seen of answers without a judge: text in, one number an answer out.

repeats     fewer than 70 % of its 4-grams of words (of characters, in Chinese or Japanese) are distinct
refuses     it opens like a refusal, in English or Chinese
chinese     it has more Chinese characters than Latin words
parses      its JSON can be read: the whole of it, or its first fenced block
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

GRAM, DISTINCT_FLOOR = 4, 0.7
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|\w+|[^\w\s]", re.UNICODE)
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]+")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am) (?:very |so |really )?(?:sorry|afraid)|sorry\b|as an ai\b|unfortunately,? i (?:can|am)"
    r"|i (?:cannot|can ?not|can'?t|won'?t|will not|am unable|am not able|must decline)"
    r"|(?:很|非常)?抱歉|对不起|我(?:不能|无法|没法|没有办法)|作为(?:一个|一名)?(?:ai|人工智能))",
    re.IGNORECASE,
)


def units(text: str) -> list[str]:
    """Words, punctuation marks, and single characters of scripts that are written without spaces."""
    return _UNIT.findall(text)


def distinct_share(texts: Sequence[Sequence[str]], size: int) -> float:
    """Distinct n-grams of all texts together by their number (Li et al. 2016, arXiv:1510.03055); 1 for none."""
    grams = [tuple(text[at : at + size]) for text in texts for at in range(len(text) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repeats(text: str) -> bool:
    return distinct_share([units(text)], GRAM) < DISTINCT_FLOOR


def refuses(text: str) -> bool:
    return bool(_REFUSAL.match(text.replace("\u2019", "'")))


def is_chinese(text: str) -> bool:
    return len(_HAN.findall(text)) > len(_LATIN.findall(text))


def asks_for_json(prompt: str) -> bool:
    return bool(re.search(r"\bjson\b", prompt, re.IGNORECASE))


def parses(text: str) -> bool:
    """Whether an answer to a request for JSON can be read by a program: an object or a list, bare or fenced."""
    fenced = _FENCE.search(text)
    try:
        found = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, (dict, list))
