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


def guard_rails(recipe: Recipe, parameters: int, batch: int, processes: int = 1) -> list[str]:
    """The warnings that the settings deserve, one line each.

    Args:
        parameters: of the model, the frozen ones too.
        batch: groups of one optimizer step over all processes.
        processes: how many these are.
    """
    return list(_of_large_models(recipe, batch, processes)) if parameters > LARGE else []


def bf16_guard(recipe: Recipe, device: str | None) -> str | None:
    """A warning where bfloat16 is asked for on `device`, one that does not compute in it (None: it does)."""
    if device is None:
        return None
    if recipe.training.get("bf16"):
        return (
            f"bf16: {device} does not compute in bfloat16 and only emulates it, which is very slow. Set fp16: true in "
            "its place; preftune rlhf chooses by itself with --dtype AUTO."
        )
    if recipe.torch_dtype == "bfloat16":
        return (
            f"torch_dtype bfloat16: {device} does not compute in it and only emulates it, which is very slow. Set "
            "float16; preftune rlhf chooses by itself with --dtype AUTO."
        )
    return None


def template_guard(has_template: bool, multi_turn: bool) -> str | None:
    """A warning where a base model's tokenizer has no chat template and prompts have more than one question."""
    if has_template or not multi_turn:
        return None
    return (
        "The data has conversations of several turns, and the tokenizer has no chat template, so they are joined as "
        "plain text. Set chat_template: chatml, or the template that the model will be used with."
    )


def ppo_guard(recipe: Recipe, has_template: bool | None) -> str | None:
    """A warning where PPO starts from a base model.

    Args:
        has_template: whether the model's tokenizer brings a chat template of its own, which a base model's does not;
            None: it is not known.
    """
    if recipe.objective != "ppo" or has_template is not False:
        return None
    return (
        f"ppo: '{recipe.model_name_or_path}' has no chat template of its own, so it looks like a base model. PPO "
        "learns from answers that the model samples, and without supervised fine-tuning hardly any is worth a reward. "
        "Train it on answers first (preftune sft, objective: sft), by full fine-tuning, and start from that."
    )


def _of_large_models(recipe: Recipe, batch: int, processes: int) -> Iterator[str]:
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
    margined = [name for name in alike if name in ("simpo", "alphapo")]
    if recipe.trains_adapter and margined:
        yield (
            f"{margined[0]} with LoRA is reported to do poorly, and its authors only trained whole models. Full "
            "fine-tuning is recommended: leave use_peft out (preftune rlhf: --sft_type full)."
        )
    if _prefers(recipe.build_objective()) and not PUBLISHED_BATCH / FACTOR <= batch <= PUBLISHED_BATCH * FACTOR:
        yield (
            f"A step has {batch} groups (in {processes} process{'es' * (processes != 1)}), far from the "
            f"{PUBLISHED_BATCH} that published settings are tuned for. Add total_batch_size={PUBLISHED_BATCH} on the "
            "command line (preftune rlhf: --total_batch_size; in a file, in place of gradient_accumulation_steps): it "
            "holds whatever the number of devices."
        )


def _prefers(objective: Method) -> bool:
    """Whether it learns from a comparison of responses by their log-probs."""
    return objective.layout in (Layout.PAIRED, Layout.RANKED) and objective.reads != Reads.SCORES


def _parts(recipe: Recipe) -> set[str]:
    return {recipe.objective, *(recipe.objective_args.get("mixture") or ())}
