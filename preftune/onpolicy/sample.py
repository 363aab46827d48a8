"""`preftune sample`: n answers of a model to every prompt of a file, in chunks that a kill does not lose.

A row of the output is read by everything that reads ranked data (`responses`), and by `preftune score`:

    {"prompt_id": "6f0c...", "prompt": [{"role": "user", "content": ...}], "responses": ["...", ...],
     "sampled": {"seeds": [13, ...], "finish": ["stop", ...], "tokens": [57, ...], "prompt_tokens": 21, "empty": []}}

Where some seeds failed, `sampled` has "failed": [{"seed": 13, "error": "..."}] too. Prompts without an answer go, with
the reason, to OUTPUT.failed.jsonl. While the job runs its rows are in OUTPUT.job/ (see `preftune.onpolicy.journal`);
the last process that finishes puts them together.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.onpolicy.answers import Answerer, Replies, Reply
from preftune.onpolicy.journal import Item, Journal, Share, check_output, journal_folder, read_items, write_rows
from preftune.onpolicy.prompts import Prompt

logger = logging.getLogger(__name__)
SEEDS = (13, 21, 42, 79, 100)
CHUNK = 64  # prompts
SPOKEN_SECONDS = 10.0  # between lines of progress


def sample_prompts(
    prompts: Sequence[Prompt],
    answerer: Answerer,
    output: str | Path,
    *,
    seeds: Sequence[int] = SEEDS,
    chunk: int = CHUNK,
    rank: int = 0,
    world: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer the prompts, or what is left of them, and write `output` once all of them are answered.

    The output is the same whether or not the job was interrupted: a chunk is answered by itself, so the batches are the
    same too.

    Args:
        seeds: one answer each.
        chunk: prompts that are answered, and written, together.
        rank, world: this process does every `world`-th chunk.
        settings: more that the answers depend on (the model's name); a job goes on only with the same.

    Returns:
        prompts, answers, failed, tokens, seconds (of this call), output (None while other processes are at work).

    Raises:
        DataError: `output` cannot be written, or there are no prompts or seeds.
        CheckpointError: a job for `output` was begun with other settings, another process is at it, or its journal is
            damaged.
    """
    output = Path(output)
    if not prompts or not seeds:
        raise DataError(f"{output}: there are no {'seeds' if prompts else 'prompts'} to sample with.")
    check_output(output)
    share = Share(len(prompts), chunk, rank, world)
    known = {**(settings or {}), **answerer.settings(), "seeds": list(seeds), "chunk": chunk, "prompts": len(prompts)}
    journal = Journal(journal_folder(output), {**known, "prompts_hash": _hash(prompts)}, share)
    with closing(journal):
        progress = _Progress(sum(map(len, share.chunks())), sum(map(len, journal.left())))
        for numbers in journal.left():
            chosen = [prompts[number] for number in numbers]
            found = answerer.answer(chosen, seeds, progress.told)
            journal.append([_to_item(prompt, replies, seeds) for prompt, replies in zip(chosen, found, strict=True)])
    summary = merge(output, len(prompts), chunk, world)
    return summary | {"seconds": progress.seconds, "tokens_per_second": progress.rate}


def merge(output: Path, prompts: int, chunk: int, world: int) -> dict[str, Any]:
    """Write the output and the failures where every process has finished.

    Raises:
        CheckpointError: a journal is damaged or of other settings than the rest.
    """
    items = read_items(journal_folder(output), prompts, chunk, world)
    if items is None:
        logger.info("This share is done; the process that finishes last writes %s.", output)
        return {"prompts": prompts, "output": None}
    rows, failed = [item for item in items if "error" not in item], [item for item in items if "error" in item]
    if failed:
        write_rows(failed_path(output), failed)
        logger.warning("%d of %d prompts have no answer: %s", len(failed), prompts, failed_path(output))
    missing = sum(len(row["sampled"].get("failed", ())) for row in rows)
    if missing:
        logger.warning("%d answers to other prompts failed; 'failed' of 'sampled' says why.", missing)
    write_rows(output, rows)
    return {
        "prompts": prompts,
        "answers": sum(len(row["responses"]) for row in rows),
        "failed": len(failed),
        "tokens": sum(tokens or 0 for row in rows for tokens in row["sampled"]["tokens"]),
        "output": str(output),
    }


def failed_path(output: Path) -> Path:
    return output.with_name(output.name.removesuffix(".jsonl") + ".failed.jsonl")


def _to_item(prompt: Prompt, found: Replies, seeds: Sequence[int]) -> Item:
    """The row of a prompt, or its failure. Answers without text are left out and their seeds named: no reader takes
    them."""
    if found.error is not None:
        return {**prompt.to_row(), "error": found.error}
    by_seed = list(zip(seeds, found.replies, strict=True))
    failed = [{"seed": seed, "error": reply} for seed, reply in by_seed if isinstance(reply, str)]
    given = [(seed, reply) for seed, reply in by_seed if isinstance(reply, Reply)]
    kept = [(seed, reply) for seed, reply in given if reply.text.strip()]
    if not kept:
        return {**prompt.to_row(), "error": _why_none(failed, len(given))}
    sampled = {
        "seeds": [seed for seed, _ in kept],
        "finish": [reply.finish for _, reply in kept],
        "tokens": [reply.tokens for _, reply in kept],
        "prompt_tokens": found.prompt_tokens,
        "empty": [seed for seed, reply in given if not reply.text.strip()],
    }
    sampled |= {"failed": failed} if failed else {}
    return {**prompt.to_row(), "responses": [reply.text for _, reply in kept], "sampled": sampled}


def _why_none(failed: Sequence[Mapping[str, Any]], empty: int) -> str:
    if not failed:
        return f"all {empty} answers are empty."
    also = f"; {empty} answers are empty" if empty else ""
    return f"seed {failed[0]['seed']}: {failed[0]['error']}{also}"


def _hash(prompts: Sequence[Prompt]) -> str:
    return hashlib.blake2b("".join(prompt.id for prompt in prompts).encode(), digest_size=8).hexdigest()


class _Progress:
    """Says now and then how far this process is."""

    def __init__(self, prompts: int, left: int) -> None:
        self.prompts, self.before, self.done, self.tokens = prompts, prompts - left, 0, 0
        self.started = self.spoken = time.monotonic()
        if self.before and left:
            logger.info("%d of %d prompts are answered already; going on.", self.before, prompts)

    def told(self, prompts: int, tokens: int) -> None:
        self.done, self.tokens, now = self.done + prompts, self.tokens + tokens, time.monotonic()
        if now - self.spoken < SPOKEN_SECONDS or not self.done:
            return
        self.spoken = now
        left = (self.prompts - self.before - self.done) * (now - self.started) / self.done
        hours, minutes, seconds = int(left // 3600), int(left // 60) % 60, int(left % 60)
        logger.info(
            "%d of %d prompts, %.0f tokens/s, about %d:%02d:%02d left",
            self.before + self.done, self.prompts, self.rate, hours, minutes, seconds,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)
