"""The rows of a step that was not taken, once more: one sequence at a time, through the model's own logits.

In: the folder that `preftune.train.nonfinite` has written (`rows.json` and the weights before the step). Out: for each
row its log-probs, its loss and the norm of its gradient, the first module whose output is not finite, and the weights
that are not finite themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ModelError
from preftune.model.load import disable_dropout, load_model
from preftune.objectives.base import Baseline, Objective, Reads
from preftune.recipe import Recipe, load_recipe
from preftune.train.nonfinite import ROWS, load_rows
from preftune.types import Feedback, ResponseLogps, TokenizedGroup


@dataclass(frozen=True)
class Replayed:
    """Of one row: log-probs (nats, one a response), loss (None: it needs the rest of the step), norm of the gradient.

    first: the first module whose output was not finite; None where all were.
    """

    row: str
    logps: list[float]
    loss: float | None
    grad_norm: float
    first: str | None

    @property
    def finite(self) -> bool:
        values = [*self.logps, self.grad_norm, *([] if self.loss is None else [self.loss])]
        return self.first is None and bool(torch.tensor(values).isfinite().all())


def replay(folder: Path, model: str | None = None) -> tuple[int, list[Replayed], list[str]]:
    """The step, its rows, and the names of the weights that hold values that are not finite.

    Args:
        folder: RUN/nonfinite/step-N.
        model: other weights than those in the folder.

    Raises:
        ModelError: there are no rows or no weights there, or the run trained a value head.
    """
    if not (folder / ROWS).is_file():
        raise ModelError(
            f"'{folder}' has no {ROWS}: RUN/nonfinite/step-N was expected, which a run that stopped names."
        )
    recipe = load_recipe(folder.parent.parent / "recipe.yaml")
    objective = recipe.build_objective()
    if objective.reads == Reads.SCORES:
        raise ModelError(
            f"'{folder}' is of a reward model, and replay reads log-probs. Score the rows: preftune score."
        )
    if model is None and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"'{folder}' holds no weights (they are sharded). Name a checkpoint: --model RUN/checkpoint-N."
        )
    policy = _load(recipe, model or str(folder))
    step, groups = load_rows(folder)
    bad = [name for name, weight in policy.named_parameters() if not weight.isfinite().all()]
    return step, [_once_more(policy, group, recipe, objective) for group in groups], bad


def _load(recipe: Recipe, name: str) -> Any:
    dtype = "float32" if recipe.torch_dtype == "float16" else recipe.torch_dtype
    model = load_model(name, torch_dtype=dtype, trust_remote_code=recipe.trust_remote_code)
    disable_dropout(model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").train()


def _once_more(model: Any, group: TokenizedGroup, recipe: Recipe, objective: Objective) -> Replayed:
    model.zero_grad(set_to_none=True)
    low = torch.bfloat16 if recipe.training.get("bf16") else torch.float16
    half = bool(recipe.training.get("bf16") or recipe.training.get("fp16"))
    with _first_bad_output(model) as first, torch.autocast(model.device.type, low, enabled=half):
        sums = torch.stack([_logp(model, group.prompt_ids + ids, len(ids)) for ids in group.response_ids])
    loss = _loss(objective, group, sums)
    (sums.sum() if loss is None else loss).backward()
    norms = [weight.grad.float().norm() for weight in model.parameters() if weight.grad is not None]
    return Replayed(
        str(group.origin),
        sums.tolist(),
        None if loss is None else loss.item(),
        torch.stack(norms).norm().item(),
        first[0] if first else None,
    )


def _logp(model: Any, ids: list[int], scored: int) -> Tensor:
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -scored - 1 : -1]
    targets = torch.tensor(ids[-scored:], device=model.device)
    return logits.float().log_softmax(-1).gather(1, targets[:, None]).sum()


def _loss(objective: Objective, group: TokenizedGroup, sums: Tensor) -> Tensor | None:
    """Of the row alone; None where a reference is missing, or the objective looks at the other rows too."""
    if (
        not objective.group_local
        or objective.baseline != Baseline.NONE
        or (objective.needs_reference and not group.reference)
    ):
        return None
    lengths = torch.tensor([[len(ids) for ids in group.response_ids]], device=sums.device)
    reference = ResponseLogps(torch.tensor([group.reference], device=sums.device), lengths) if group.reference else None
    scores = torch.tensor([group.scores or [0.0] * len(group.response_ids)], device=sums.device)
    out = objective(ResponseLogps(sums[None], lengths), reference, Feedback(scores, lengths > 0))
    return out.losses[0]


@contextmanager
def _first_bad_output(model: Any) -> Iterator[list[str]]:
    """Collects the names of the modules whose output is not finite, in the order in which they ran."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
