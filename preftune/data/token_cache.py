"""Token ids on disk, by the content they were made from.

The name of a file is a hash of everything that shapes the ids: the tokenizer, its template, the rules, the texts, and
`FORMAT`. Ids are kept uncut, so that one file serves every `max_length` and truncation. A file that cannot be read is
made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data.chat import ChatFormat
from preftune.data.encode import Encoded, to_group
from preftune.errors import DataError
from preftune.types import Example

FORMAT = 3  # counted up when the rules that make ids change

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
    """A folder of token ids."""

    folder: Path

    def path(self, examples: Sequence[Example], chat: ChatFormat, tokenization: str) -> Path:
        """Where the ids of these examples are, or would be."""
        digest = hashlib.sha256()
        for part in (str(FORMAT), tokenization, _fingerprint(chat)):
            digest.update(part.encode())
        for example in examples:
            turns = [astuple(message) for message in example.prompt]
            digest.update(json.dumps([turns, example.responses, example.tools]).encode())
        return self.folder / f"tokens-{digest.hexdigest()[:32]}.npz"

    def load(self, path: Path, examples: Sequence[Example]) -> list[Encoded] | None:
        """The groups, with the origins, scores and weights of `examples`; None where there is no whole file."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                ids, lengths, counts = (stored[name] for name in ("ids", "lengths", "counts"))
                problems = json.loads(str(stored["problems"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("the token cache %s cannot be read (%s): tokenising again", path, error)
            return None
        parts = iter([part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else [])
        groups: list[Encoded] = []
        for number, (example, count) in enumerate(zip(examples, counts.tolist(), strict=True)):
            if count == 0:
                groups.append(DataError(f"{example.origin}: {problems[str(number)]}"))
                continue
            prompt = next(parts)
            groups.append(to_group(example, prompt, [next(parts) for _ in range(count - 1)]))
        return groups

    def save(self, path: Path, groups: Sequence[Encoded], examples: Sequence[Example]) -> None:
        """Write the groups under a name that only a whole file gets."""
        lists: list[list[int]] = []
        counts: list[int] = []
        problems: dict[str, str] = {}
        for number, (group, example) in enumerate(zip(groups, examples, strict=True)):
            if isinstance(group, DataError):
                counts.append(0)
                problems[str(number)] = str(group).removeprefix(f"{example.origin}: ")
            else:
                counts.append(1 + len(group.response_ids))
                lists += [group.prompt_ids, *group.response_ids]
        flat = np.fromiter((number for ids in lists for number in ids), np.int32)
        arrays: dict[str, Any] = {
            "ids": flat,
            "lengths": np.array([len(ids) for ids in lists], np.int64),
            "counts": np.array(counts, np.int64),
            "problems": np.array(json.dumps(problems)),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _fingerprint(chat: ChatFormat) -> str:
    """All of the tokenizer that shapes ids."""
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = (chat.template, chat.bos_id, chat.bos_in_template, chat.end_id, chat.end_text, chat.tail, chat.lead)
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return json.dumps([vocabulary, rules, chat.folds_system, names, type(tokenizer).__name__])
