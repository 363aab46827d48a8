"""Trajectories of every row over the models that a run has left: its start, its checkpoints, its end.

For runs without `margins.jsonl`, for rows that were not trained on, and where a pair was seen once or twice only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from preftune.autopsy.trajectories import Trajectory
from preftune.errors import DataError, RecipeError
from preftune.evaluation.preferences import pair_logps
from preftune.model.load import load_model
from preftune.objectives.base import Baseline, Reads
from preftune.recipe import Recipe
from preftune.train.checkpoint import LOG, SUMMARY, checkpoints, problem, step_of
from preftune.train.data import load_examples, tokenize_for
from preftune.train.margins import group_key
from preftune.train.models import load_reference_model, load_trained_model
from preftune.train.record import read_log
from preftune.train.tokenizer import load_run_tokenizer
from preftune.types import Example, Feedback, Layout, ResponseLogps


def score_checkpoints(run: Path, recipe: Recipe, data: str | None = None) -> tuple[list[Trajectory], list[Example]]:
    """A trajectory of every row that the run would train on, in the order of the rows, and their examples.

    The first margin is of step 0. With `data`, of the rows there, read with the recipe's settings.

    Raises:
        RecipeError: the objective is not of pairs and log-probs.
        DataError: the run has left no model, or the data is wrong.
    """
    rule: Any = recipe.build_objective()
    if rule.layout != Layout.PAIRED or rule.reads != Reads.LOGPS:
        raise RecipeError(
            f"--checkpoints scores pairs under a language model, and this run is of '{recipe.objective}'. Leave it "
            "out: its margins are those of training."
        )
    tokenizer, new_tokens = load_run_tokenizer(recipe)
    examples = load_examples(recipe, recipe.dataset, "train") if data is None else _all_rows(recipe, data)
    groups, _ = tokenize_for(recipe, tokenizer, examples)
    reference = None
    if rule.needs_reference:
        named = load_reference_model(recipe, new_tokens)
        reference = pair_logps(_start(recipe, tokenizer, new_tokens) if named is None else named, groups)
    scores = torch.tensor([list(group.scores) if len(group.scores) == 2 else [0.0, 0.0] for group in groups])
    steps, margins = [], []
    for step, model in _models(run, recipe, tokenizer, new_tokens):
        policy = pair_logps(model, groups)
        steps.append(step)
        margins.append(_margins(rule, policy, reference, scores))
    by_pair = zip(*margins, strict=True)
    lengths = [[len(ids) for ids in group.response_ids] for group in groups]
    found = {
        (key := group_key(group)): Trajectory(*key, *tokens, tuple(steps), own)
        for group, tokens, own in zip(groups, lengths, by_pair, strict=True)
    }
    return list(found.values()), examples


def _all_rows(recipe: Recipe, data: str) -> list[Example]:
    """Of other data: what the recipe says of the parts of its own does not hold there."""
    # it evaluates still: what the recipe says of evaluation asks for rows
    own = replace(recipe, eval_dataset=data, test_split_size=None, dataset_splits=None, dataset_configs=None)
    return load_examples(own, data, "train")


def _models(run: Path, recipe: Recipe, tokenizer: Any, new_tokens: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(step, model), the oldest first; one is in memory at a time."""
    own = sorted((path for path in checkpoints(run) if problem(path) is None), key=step_of)
    ended = (run / SUMMARY).is_file()
    if not own and not ended:
        raise DataError(f"{run}: it has no complete checkpoint and has not ended; there is no model to score with.")
    yield 0, _start(recipe, tokenizer, new_tokens)
    for path in own:
        yield step_of(path), load_model(str(path), torch_dtype="float32")
    last = max((record["step"] for record in read_log(run / LOG)), default=0)
    if ended and last not in map(step_of, own):
        yield last, load_model(str(run), torch_dtype="float32")


def _start(recipe: Recipe, tokenizer: Any, new_tokens: Sequence[int]) -> Any:
    """The model as training began with it."""
    set_seed(recipe.training["seed"])
    return load_trained_model(recipe, tokenizer, new_tokens)


def _margins(rule: Any, policy: ResponseLogps, reference: ResponseLogps | None, scores: torch.Tensor) -> list[float]:
    baseline = None if rule.baseline == Baseline.NONE else torch.tensor(0.0)  # shifts losses, not rewards
    rewards = rule(policy, reference, Feedback(scores, policy.lengths > 0, baseline)).rewards
    return (rewards[:, 0] - rewards[:, 1]).tolist()
