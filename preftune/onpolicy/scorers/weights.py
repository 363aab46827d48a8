"""Which weights a folder holds, so that a job that goes on notices other ones."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_mark(name: str) -> str | None:
    """A hash of the sizes, beginnings and ends of a folder's weight files; None of a hub name."""
    files = sorted(path for path in Path(name).expanduser().rglob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()
