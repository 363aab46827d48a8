"""Guard rails: settings that are allowed and rarely meant, each with its reason. Warnings, never errors.

Comes in: a recipe and a fact or two about the model, the data and the machine. Goes out: lines for the log. The
thresholds are those of models of 7 B to 9 B; small ones are trained with other numbers, so below half a billion
parameters they say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from preftune.objectives.base import Method, Reads
from preftune.recipe.schema import Recipe
from preftune.types import Layout

LARGE = 500_000_000  # parameters
HIGHEST_RATE = 2e-6  # the published grid ends at 1e-6, the published rlhf command takes 2e-6
LARGEST_MARGIN = 2.0  # nats per token; published are 0.1 to 0.8
PUBLISHED_BATCH = 128
FACTOR = 2  # a batch of half or twice as much is not far

# Losses on likelihoods of pairs without a reference model that would hold the weights near their start.
SIMPO_LIKE = frozenset({"simpo", "alphapo", "cpo", "slic_hf", "rrhf"})


def guard_rails(recipe: Recipe, parameters: int, batch: int) -> list[str]:
    """The warnings that the settings deserve, one line each.

    Args:
        parameters: of the model, the frozen ones too.
        batch: groups of one optimizer step over all processes.
    """
    return list(_of_large_models(recipe, batch)) if parameters > LARGE else []


def bf16_guard(recipe: Recipe, device: str | None) -> str | None:
    """A warning where bfloat16 is asked for on `device`, one that does not compute in it (None: it does)."""
    if device is None:
        return None
    if recipe.training.get("bf16"):
        return f"bf16: {device} does not compute in bfloat16, so it is refused or very slow. Set fp16: true instead."
    if recipe.torch_dtype == "bfloat16":
        return f"torch_dtype bfloat16: {device} does not compute in it, so it is very slow. Set float16, or auto."
    return None


def template_guard(has_template: bool, multi_turn: bool) -> str | None:
    """A warning where a base model's tokenizer has no chat template and prompts have more than one question."""
    if has_template or not multi_turn:
        return None
    return (
        "The data has conversations of several turns, and the tokenizer has no chat template, so they are joined as "
        "plain text. Set chat_template: chatml, or the template that the model will be used with."
    )


def _of_large_models(recipe: Recipe, batch: int) -> Iterator[str]:
    alike = sorted(SIMPO_LIKE & _parts(recipe))
    rate = recipe.training["learning_rate"]
    if alike and not recipe.trains_adapter and rate > HIGHEST_RATE:
        yield (
            f"learning_rate {rate:g} is above {HIGHEST_RATE:g} for full fine-tuning with {alike[0]}: no reference "
            "holds the model near its start, and published runs at 1e-5 ended in incoherent or endlessly repeating "
            "text. Try 3e-7, 5e-7, 8e-7 or 1e-6."
        )
    margin = recipe.objective_args.get("gamma_beta_ratio", 0.0)
    if margin > LARGEST_MARGIN:
        beta = recipe.objective_args["beta"]
        yield (
            f"gamma_beta_ratio {margin:g} (beta {beta:g}, gamma {margin * beta:g}) asks for {margin:g} nats per token "
            "between chosen and rejected, which no model gives without being wrecked. Published are ratios of 0.1 to "
            "0.8, and betas of 2 to 10: beta is far larger than DPO's."
        )
    if recipe.trains_adapter and alike and alike[0] in ("simpo", "alphapo"):
        yield (
            f"{alike[0]} with LoRA is reported to do poorly, and its authors only trained whole models. Full "
            "fine-tuning is recommended: leave use_peft out."
        )
    if _prefers(recipe.build_objective()) and not PUBLISHED_BATCH / FACTOR <= batch <= PUBLISHED_BATCH * FACTOR:
        yield (
            f"A step has {batch} groups, far from the {PUBLISHED_BATCH} that published settings are tuned for. "
            f"Add total_batch_size={PUBLISHED_BATCH} on the command line (in a file, in place of "
            "gradient_accumulation_steps): it holds whatever the number of devices."
        )


def _prefers(objective: Method) -> bool:
    """Whether it learns from a comparison of responses by their log-probs."""
    return objective.layout in (Layout.PAIRED, Layout.RANKED) and objective.reads != Reads.SCORES


def _parts(recipe: Recipe) -> set[str]:
    return {recipe.objective, *(recipe.objective_args.get("mixture") or ())}
