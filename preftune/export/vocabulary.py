"""A Hugging Face tokenizer as llama.cpp reads one: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

In: a fast tokenizer and its chat format. Out: tokens, their kinds, merges or scores, and the settings that go with
them. llama.cpp knows how a text is cut before BPE by name, and its SentencePiece has scores in place of merges; what
cannot be said in these words, or would be read otherwise, is refused. The kinds of tokens and the rules for spaces are
those of llama.cpp's vocabulary (llama-vocab.cpp).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from preftune.data.chat import ChatFormat
from preftune.errors import ModelError
from preftune.types import Message

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}|{_REST}"
# How texts are cut before BPE, and whether a word that is a token is taken whole -> llama.cpp's name of it.
CUTS: dict[tuple[tuple[str, ...], bool], str] = {
    (("split " + _LLAMA3, "bytes"), True): "llama-bpe",
    (("split " + _QWEN2, "bytes"), False): "qwen2",
    (("words and bytes",), False): "gpt-2",
    (("digits", "words and bytes"), False): "smollm",
}
CONVERSATIONS = (
    (Message("user", "Whitespace  and\n\n\t12345 naïve ½ 用一句话 👩‍🔬"),),
    (Message("system", "Be brief."), Message("user", "Why?")),
    (Message("user", "你好 there"), Message("assistant", "Hi.\n  * 好"), Message("user", "And 1 + 12?")),
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Args:
        model: gpt2 or llama; pre: the name of the cut before BPE.
        tokens, kinds: one for each row of the embeddings; kinds as in `NORMAL` ... `BYTE`.
        merges: of gpt2, "left right", in order; scores: of llama, higher is merged earlier.
        adds_bos: BOS is put in front of every prompt.
        space_prefix: of llama: a space stands before a text, and before what follows a special token.
        normalised: the tokenizer writes texts in NFC first, and llama.cpp does not.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] | None
    scores: list[float] | None
    adds_bos: bool
    space_prefix: bool | None
    normalised: bool


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, rows: int) -> Vocabulary:
    """The tokenizer in llama.cpp's words.

    Args:
        rows: of the embeddings; those without a token become unused ones.

    Raises:
        ModelError: llama.cpp has no such tokenizer, or would give other ids.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(f"GGUF: {type(tokenizer).__name__} has no tokenizer.json; a fast tokenizer is needed.")
    said = json.loads(backend.to_str())
    if said["model"]["type"] != "BPE":
        raise ModelError(
            f"GGUF: the tokenizer is of the kind {said['model']['type']}; written is BPE, of bytes or of SentencePiece."
        )
    for token in said["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ModelError(f"GGUF: the token {token['content']!r} takes spaces beside it, which no file can say.")
    adds_bos = chat.bos_id is not None and _stands_once(tokenizer, chat)
    if said["model"]["byte_fallback"]:
        return _sentencepiece(backend, said, chat, rows, adds_bos)
    merges = [" ".join(_pair(merge)) for merge in said["model"]["merges"]]
    if not merges:
        raise ModelError("GGUF: the tokenizer has no merges, and a file of byte-level BPE needs some.")
    tokens, kinds = _tokens(backend, said, rows)
    return Vocabulary("gpt2", _cut(said), tokens, kinds, merges, None, adds_bos, None, said["normalizer"] is not None)


def _stands_once(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> bool:
    """BOS is no marker of turns, as <|im_start|> is in some tokenizers."""
    return not chat.bos_in_template or all(
        chat.prompt_text(chat.turns(conversation)).count(str(tokenizer.bos_token)) == 1
        for conversation in CONVERSATIONS
    )


def _cut(said: dict[str, Any]) -> str:
    """llama.cpp's name of how texts are cut before byte-level BPE."""
    if said["normalizer"] not in (None, {"type": "NFC"}):
        raise ModelError(f"GGUF: the tokenizer changes texts first ({said['normalizer']['type']}), which llama.cpp's "
                         "byte-level BPE does not.")  # fmt: skip
    before = said["pre_tokenizer"] or {"type": "none"}
    steps = tuple(map(_step, before.get("pretokenizers", [before])))
    name = CUTS.get((steps, bool(said["model"]["ignore_merges"])))
    if name is None:
        raise ModelError(
            f"GGUF: llama.cpp has no name for how this tokenizer cuts texts before BPE ({', then '.join(steps)}). "
            f"Known are {', '.join(CUTS.values())}."
        )
    return name


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return f"split {pattern}"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return "words and bytes" if use_regex else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
    return json.dumps(step)


def _tokens(backend: Tokenizer, said: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    if max(by_id) >= rows:
        raise ModelError(f"GGUF: the tokenizer has the id {max(by_id)}, and the model {rows} rows of embeddings.")
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in said["added_tokens"]}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    if len(set(tokens)) < rows:
        raise ModelError("GGUF: two tokens have the same text.")
    return tokens, [added.get(number, NORMAL if number in by_id else UNUSED) for number in range(rows)]


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


# --- SentencePiece ---


def _sentencepiece(backend: Tokenizer, said: dict[str, Any], chat: ChatFormat, rows: int, adds_bos: bool) -> Vocabulary:
    tokens, kinds = _tokens(backend, said, rows)
    for number, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token) and kinds[number] == NORMAL:
            kinds[number] = BYTE
        elif token == said["model"]["unk_token"]:
            kinds[number] = UNKNOWN
    if kinds.count(BYTE) != 256:
        raise ModelError(f"GGUF: the tokenizer has {kinds.count(BYTE)} of the 256 byte tokens.")
    scores = _scores([_pair(merge) for merge in said["model"]["merges"]], tokens, kinds)
    _check_runs(backend, dict(zip(tokens, scores, strict=True)))
    prefix = _space_prefix(backend, said, chat)
    return Vocabulary("llama", "default", tokens, kinds, None, scores, adds_bos, prefix, False)


def _scores(merges: list[Sequence[str]], tokens: list[str], kinds: list[int]) -> list[float]:
    """Scores that merge in the order of the merges.

    SentencePiece joins whatever two neighbours make a token, the best first, of equals the leftmost. That is the same
    where all merges into one token stand together, and every way to make a token from two is among them. Runs of spaces
    are equals, and their merges stand together; `_check_runs` holds the result against the tokenizer.
    """
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    rank: dict[str, int] = {}
    last = None
    for left, right in merges:
        made = _equals(left + right)
        if made != last and made in rank:
            raise ModelError(f"GGUF: the merges into {made!r} do not stand together, so that no score can say them.")
        rank.setdefault(made, len(rank))
        last = made
    known = {(left, right) for left, right in merges}
    for token in normal:
        for at in range(1, len(token)):
            pair = token[:at], token[at:]
            if pair not in known and pair[0] in normal and pair[1] in normal:
                raise ModelError(f"GGUF: {pair[0]!r} and {pair[1]!r} make the token {token!r} and no merge says so; "
                                 "llama.cpp would join them.")  # fmt: skip
    return [float(-rank.get(_equals(token), len(rank))) if kind == NORMAL else 0.0
            for token, kind in zip(tokens, kinds, strict=True)]  # fmt: skip


def _equals(token: str) -> str:
    return SPACE if set(token) == {SPACE} else token


def _check_runs(backend: Tokenizer, scores: dict[str, float]) -> None:
    """Runs of spaces, up to three times the longest that is a token, are cut alike by scores and by merges."""
    longest = max((len(token) for token in scores if _equals(token) == SPACE), default=0)
    for length in range(1, 3 * longest + 1):
        parts = [SPACE] * length
        while ways := [
            (scores[left + right], -at) for at, (left, right) in enumerate(pairwise(parts)) if left + right in scores
        ]:
            at = -max(ways)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if parts != [token.value for token in backend.model.tokenize(SPACE * length)]:
            raise ModelError(f"GGUF: llama.cpp would cut a run of {length} spaces otherwise than this tokenizer.")


def _space_prefix(backend: Tokenizer, said: dict[str, Any], chat: ChatFormat) -> bool:
    """The setting with which llama.cpp reads prompts as the tokenizer does."""
    before = said["pre_tokenizer"]
    if before is not None and (before["type"] != "Metaspace" or before["split"] or before["replacement"] != SPACE):
        raise ModelError(f"GGUF: the tokenizer cuts texts before BPE ({json.dumps(before)}), which llama.cpp's "
                         "SentencePiece does not.")  # fmt: skip
    texts = [chat.prompt_text(chat.turns(conversation)) for conversation in CONVERSATIONS]
    wanted = chat.encode(texts)
    for prefix in (True, False):
        if [_read(backend, said, text, prefix) for text in texts] == wanted:
            return prefix
    raise ModelError("GGUF: llama.cpp would put other spaces before the texts of a prompt than this tokenizer does.")


def _read(backend: Tokenizer, said: dict[str, Any], text: str, prefix: bool) -> list[int]:
    """The ids of a text as llama.cpp's SentencePiece gives them: special tokens first, then what lies between."""
    added = {token["content"]: token["id"] for token in said["added_tokens"]}
    parts = re.split(f"({'|'.join(map(re.escape, sorted(added, key=len, reverse=True)))})", text) if added else [text]
    ids: list[int] = []
    for part in filter(None, parts):
        if part in added:
            ids.append(added[part])
        else:
            escaped = (SPACE if prefix else "") + part.replace(" ", SPACE)
            ids += [token.id for token in backend.model.tokenize(escaped)]
    return ids
