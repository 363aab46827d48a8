"""What a run would make of its data, found out without training: `check_data(recipe)` gives a `CheckReport`.

The rows are read and encoded by the functions of a run, so an error here is the error there. Of the model only the
tokenizer and, where there is one, the config are read.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from preftune.data import ColumnMapping, TokenizationReport, read_chat_format
from preftune.data.advice import advise
from preftune.data.bad_rows import SkippedRows
from preftune.data.plan import Cut
from preftune.data.savings import Savings, measure_savings
from preftune.data.survey import Survey, count_shared_prompts, survey
from preftune.errors import PreftuneError, RecipeError
from preftune.model.memory import MemoryEstimate, embedded_tokens, load_config
from preftune.objectives.base import Baseline, Reads
from preftune.recipe import Recipe, load_recipe, resolve_batch
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.data import load_examples, look_at, tokenize_for
from preftune.train.forewarn import forewarnings
from preftune.train.loader import check_prompts
from preftune.train.memory import RunMemory
from preftune.train.models import check_fits, refuse_adapter
from preftune.train.step import Packing
from preftune.train.stream import first_examples
from preftune.train.tokenizer import load_run_tokenizer
from preftune.types import Example, TokenizedGroup

_PADDED_GROUPS = 2  # pairs of a padded batch where the recipe says nothing, as in the published recipes


@dataclass(frozen=True)
class HeldOut:
    """The evaluation rows. `seen`: those whose prompt is trained on."""

    rows: int
    dropped: int
    seen: int


@dataclass(frozen=True)
class CheckReport:
    """All that is known of a run's data before it starts.

    Args:
        mappings: what was understood of the columns, by source.
        skipped: bad rows that were left out.
        groups: the rows as they are trained on.
        steps: optimizer steps of the whole run; batch: groups of one of them.
        memory: None where it cannot be estimated, and `no_memory` says why.
        notes, warnings: what a run would log of its data, and with `warnings` what else calls for a remedy.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    mappings: dict[str, ColumnMapping]
    skipped: SkippedRows
    tokens: TokenizationReport
    groups: list[TokenizedGroup]
    survey: Survey
    savings: Savings
    steps: int
    batch: int
    held_out: HeldOut | None
    memory: MemoryEstimate | None
    no_memory: str
    notes: list[str]
    warnings: list[str]

    @property
    def dropped(self) -> dict[str, int]:
        """Reason to the number of rows that were left out: bad ones, and those that tokenising left out."""
        bad = {str(problem): count for problem, count in self.skipped.counts.items()}
        return {**bad, **{reason: len(rows) for reason, rows in self.tokens.dropped.items()}}

    def to_dict(self, examples: int = 3) -> dict[str, Any]:
        """For JSON, with the ids of the first rows.

        mapping is that of the first source, sources holds those of all; rows, dropped and truncated are counts.
        `scored` of a response is how many of its ids, from the end, enter the log-prob.
        """
        report = self.tokens.to_dict()
        return {
            "objective": self.recipe.objective,
            "mapping": next(iter(self.mappings.values())).to_dict(),
            "sources": {name: mapping.to_dict() for name, mapping in self.mappings.items()},
            "rows": self.tokens.rows,
            "dropped": sum(self.dropped.values()),
            "dropped_by": self.dropped,
            "bad_rows": self.skipped.to_dict(),
            "truncated": self.tokens.rows_cut,
            "truncated_prompts": self.tokens.prompts_cut,
            "truncated_responses": self.tokens.responses_cut,
            "lengths": report["lengths"],
            "bos": self.tokens.bos,
            "end_of_turn": self.tokens.end_of_turn,
            "survey": self.survey.to_dict(),
            "savings": self.savings.to_dict(),
            "batch": self.batch,
            "steps": self.steps,
            "tokens_per_epoch": self.savings.tokens,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "memory_gib": None if self.memory is None else self.memory.to_dict(),
            "warnings": self.warnings,
            "notes": self.notes,
            "examples": [_shown(group) for group in self.groups[:examples]],
        }


def check(recipe: str | Path | None = None, *, split: str = "train", **keys: Any) -> CheckReport:
    """Look at the data of a recipe: `check("my.yaml", max_length=512)`, or by keys alone.

    Raises:
        PreftuneError: as a run would, where data, tokenizer or settings are wrong.
    """
    loaded = load_recipe(recipe, keys)
    return check_data(loaded, *load_run_tokenizer(loaded), split=split)


def check_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = (), *, split: str = "train"
) -> CheckReport:
    """Read and encode the rows of a recipe as a run does, and report.

    Args:
        tokenizer, new_tokens: from `load_run_tokenizer`.
        split: what of the dataset is looked at; `train` is what is trained on.

    Raises:
        PreftuneError: a run would stop here.
    """
    if recipe.objective == "ppo":
        raise RecipeError(
            "'objective' ppo reads prompts alone, and check looks at responses. Set objective: sft to check."
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batch = resolve_batch(recipe, ranks)
    skipped: SkippedRows = SkippedRows()
    mappings: dict[str, ColumnMapping] = {}
    with _logged() as (notes, warnings):
        examples = _load_looked_at(recipe, split, skipped, mappings)
        look_at(recipe, tokenizer, examples)
        groups, tokens = tokenize_for(recipe, tokenizer, examples)
        held_out, held_groups = None, []
        if recipe.evaluates and split == "train":
            held_out, held_groups = _read_held_out(recipe, tokenizer, examples)
        config = load_config(recipe.model_name_or_path, recipe.model_revision, recipe.trust_remote_code)
        _check_run(recipe, config, tokenizer, new_tokens, groups + held_groups)
        foreseen = forewarnings(recipe, ranks)
    chat = read_chat_format(tokenizer)
    counts = survey(examples, groups, recipe.build_objective().layout, chat)
    packing = packing_of(recipe)
    savings = measure_savings(
        groups,
        [packing.cost(group) for group in groups],
        global_batch=batch.total,
        cut=Cut(max_tokens=recipe.micro_batch_tokens or default_micro_batch_tokens(_device())),
        padded_groups=recipe.training.get("per_device_train_batch_size") or _PADDED_GROUPS,
        ranks=ranks,
        seed=recipe.training["seed"],
        feed_last=packing.feed_last,
    )
    memory, no_memory = _memory(recipe, config, savings)
    warnings += advise(counts, tokens, chat, skipped, recipe.max_length)
    warnings += _of_run(batch.total, len(groups), held_out)
    warnings += foreseen
    return CheckReport(
        recipe, tokenizer, mappings, skipped, tokens, groups, counts, savings,
        _steps(recipe, savings.steps), batch.total, held_out, memory, no_memory, notes, warnings,
    )  # fmt: skip


def count_bad_rows(recipe: Recipe, split: str = "train") -> SkippedRows | None:
    """All bad rows, where a run stops at the first; None where the data cannot be read at all."""
    skipped = SkippedRows()
    try:
        with _logged():
            _load_looked_at(replace(recipe, on_bad_row="skip"), split, skipped)
    except PreftuneError:
        pass  # every row is bad, or the next source is wrong: what was counted stands
    return skipped if skipped.total else None


def _load_looked_at(
    recipe: Recipe, split: str, skipped: SkippedRows, mappings: dict[str, ColumnMapping] | None = None
) -> list[Example]:
    """The rows of the split; of a stream the first ones."""
    if recipe.streaming and split == "train":
        return first_examples(recipe, skipped=skipped, mappings=mappings)
    return load_examples(recipe, recipe.dataset, split, skipped=skipped, mappings=mappings)


def _shown(group: TokenizedGroup) -> dict[str, Any]:
    """Every id of a response is scored: the answer's header is part of the prompt, or in princeton's ids a target."""
    responses = [{"ids": ids, "scored": len(ids)} for ids in group.response_ids]
    return {"origin": str(group.origin), "prompt_ids": group.prompt_ids, "responses": responses}


def _read_held_out(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, trained: Sequence[Example]
) -> tuple[HeldOut, list[TokenizedGroup]]:
    skipped = SkippedRows()
    held = load_examples(recipe, recipe.eval_dataset or recipe.dataset, "test", skipped=skipped)
    kept, _ = tokenize_for(recipe, tokenizer, held)
    seen = count_shared_prompts(trained, held)
    return HeldOut(len(kept), skipped.total + len(held) - len(kept), seen), kept


def _check_run(
    recipe: Recipe,
    config: PretrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    new_tokens: Sequence[int],
    groups: list[TokenizedGroup],
) -> None:
    """What a run refuses between its data and its first step, as far as it needs no weights."""
    refuse_adapter(recipe)
    if config is not None and (embedded := embedded_tokens(config)) is not None:
        embedded = max(embedded, *new_tokens) + 1 if new_tokens and min(new_tokens) <= embedded else embedded
        check_fits(config, embedded, recipe.model_name_or_path, tokenizer, groups)
    if recipe.build_objective().baseline == Baseline.PROBES:
        check_prompts(groups)


def packing_of(recipe: Recipe) -> Packing:
    feeds_last = recipe.build_objective().reads == Reads.SCORES
    return Packing(share_prompt=recipe.share_prompt, padded=recipe.road == "padded", feed_last=feeds_last)


def _steps(recipe: Recipe, steps_per_epoch: int) -> int:
    asked = recipe.training.get("max_steps", -1)
    return asked if asked > 0 else math.ceil(recipe.training["num_train_epochs"] * steps_per_epoch)


def _of_run(batch: int, rows: int, held_out: HeldOut | None) -> Iterator[str]:
    if rows < batch:
        yield f"There are fewer rows ({rows}) than one optimizer step takes ({batch}). Lower total_batch_size."
    if held_out is not None and held_out.seen:
        yield (
            f"{held_out.seen} of {held_out.rows + held_out.dropped} evaluation rows have a prompt that is trained on: "
            "their figures say little of new prompts. Take these out of one of the sets."
        )


# --- memory


def _memory(recipe: Recipe, config: PretrainedConfig | None, cut: Savings) -> tuple[MemoryEstimate | None, str]:
    """The estimate, or why there is none."""
    if config is None:
        return None, f"'{recipe.model_name_or_path}' has no config.json to be had"
    several = cut.micro_batches > cut.steps
    try:
        return RunMemory(recipe, config).estimate(cut.fullest, several=several, device=_device().type), ""
    except PreftuneError as error:
        return None, str(error)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- what is logged on the way


@contextmanager
def _logged() -> Iterator[tuple[list[str], list[str]]]:
    """Take up the package's log lines as notes and warnings, in place of showing them."""
    log = logging.getLogger("preftune")
    notes: list[str] = []
    warnings: list[str] = []

    class _Taker(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            (warnings if record.levelno >= logging.WARNING else notes).append(record.getMessage())

    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [_Taker()], False
    log.setLevel(logging.INFO)
    try:
        yield notes, warnings
    finally:
        log.handlers, log.propagate = before[0], before[1]
        log.setLevel(before[2])
