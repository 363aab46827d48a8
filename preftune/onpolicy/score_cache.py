"""Scores on disk by content: what was scored of which prompt and answers, by what. One JSON object a line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.lock import Lock
from preftune.onpolicy.scorers.base import Score, Scorer
from preftune.types import Example, Origin

_NOWHERE = Origin("", "", 0)


class CachedScorer:
    """A scorer that is asked only for rows that the file does not hold yet. Rows with a failure are not kept.

    Raises:
        CheckpointError: another process has the file.
        DataError: the file cannot be read or written, or a line in it is no kept score.
    """

    def __init__(self, scorer: Scorer, path: Path) -> None:
        self.scorer, self.path = scorer, path
        self.begun = json.dumps(scorer.settings(), sort_keys=True)
        try:
            self.lock = Lock(path)
            data = path.read_bytes() if path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # torn by a kill
                os.truncate(path, whole)
            self.known = self._read(data[:whole])
            path.open("ab").close()
        except OSError as error:
            raise DataError(f"{path}: scores cannot be kept there ({error.strerror}). Give another file.") from None

    def close(self) -> None:
        """Let others have the file."""
        self.lock.close()

    def settings(self) -> dict[str, Any]:
        return self.scorer.settings()

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        keys = [self._key(example) for example in examples]
        places: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key not in self.known:
                places.setdefault(key, place)
        found = self.scorer.score([examples[place] for place in places.values()]) if places else []
        fresh = dict(zip(places, found, strict=True))
        self._keep({key: scores for key, scores in fresh.items() if all(score.failure is None for score in scores)})
        return [fresh[key] if key in fresh else list(map(Score, self.known[key])) for key in keys]

    def _key(self, example: Example) -> str:
        said = repr((self.begun, replace(example, origin=_NOWHERE, scores=(), weight=1.0)))
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def _keep(self, fresh: dict[str, list[Score]]) -> None:
        values = {key: [score.value for score in scores if score.value is not None] for key, scores in fresh.items()}
        lines = [json.dumps({"row": key, "scores": own}) + "\n" for key, own in values.items()]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.known |= values

    def _read(self, data: bytes) -> dict[str, list[float]]:
        known = {}
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                kept = json.loads(line)
                known[str(kept["row"])] = [float(value) for value in kept["scores"]]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path} line {number}: expected a kept score, found something else. Give another file."
                ) from None
        return known
