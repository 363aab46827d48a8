"""The recipe: every setting of a run, as flat keys, checked when it is made.

`Recipe` holds our own keys as fields, the objective's keys in `objective_args` and the `TrainingArguments` fields in
`training`; in a file all of them lie side by side. A recipe is always complete: what was left out is filled in with
its default, so that `to_yaml()` is a record of the run and reads back to an equal recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from preftune.errors import RecipeError
from preftune.objectives import load_objective, objective_class, objective_defaults
from preftune.objectives.base import Objective
from preftune.recipe.checks import check_recipe
from preftune.recipe.training import training_defaults

Road = Literal["auto", "packed", "padded"]
SftNormalization = Literal["token", "sequence", "sum"]

# The keys that are fields of Recipe, in the order in which a recipe is written.
GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        "model_name_or_path",
        "tokenizer_name_or_path",
        "model_revision",
        "torch_dtype",
        "attn_implementation",
        "trust_remote_code",
        "master_weights",
        "chat_template",
    ),
    "data": ("dataset", "eval_dataset", "columns", "max_length", "max_prompt_length"),
    "objective": ("objective", "sft_weight", "sft_normalization"),
    "step": ("micro_batch_tokens", "total_batch_size", "share_prompt", "disable_dropout", "road"),
}
SCHEMA_KEYS: tuple[str, ...] = tuple(key for keys in GROUPS.values() for key in keys)


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run.

    Args:
        model_name_or_path: a folder or a name on the hub.
        tokenizer_name_or_path: where the tokenizer is, if not with the model.
        model_revision: branch, tag or commit on the hub.
        torch_dtype: the precision of computing: null, auto, float32, bfloat16 or float16.
        attn_implementation: attention of the padded road; null leaves it to transformers.
        trust_remote_code: run model code that comes with the weights.
        master_weights: keep float32 weights whatever `torch_dtype` says.
        chat_template: Jinja text, or a file that holds it, instead of the tokenizer's own.
        dataset: a file, a folder or a name, or a list of them.
        eval_dataset: the same, for evaluation.
        columns: which column of the file plays which role: {question: prompt, answer: chosen}.
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens that a prompt keeps when the pair is too long; null: what the response leaves.
        objective: the name of the loss.
        sft_weight: weight of the NLL of the chosen response beside the objective; null: as in the method's paper.
        sft_normalization: the NLL is a mean per token, a mean per sequence, or a sum per sequence.
        micro_batch_tokens: tokens of one forward pass; null: chosen at the start.
        total_batch_size: groups of one optimizer step over all processes.
        share_prompt: compute the prompt of a group once.
        disable_dropout: train without dropout.
        road: packed rows, padded rows, or packed where the model allows it (auto).
        objective_args: the objective's own keys.
        training: fields of `TrainingArguments`.
        origin: the file, for error messages.
        places: keys that came from elsewhere (the command line), for error messages.

    Raises:
        RecipeError: a value is out of range, or two values contradict each other.
    """

    model_name_or_path: str
    dataset: str | list[str]
    tokenizer_name_or_path: str | None = None
    model_revision: str = "main"
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    master_weights: bool = True
    chat_template: str | None = None
    eval_dataset: str | list[str] | None = None
    columns: dict[str, str | None] | None = None
    max_length: int = 1024
    max_prompt_length: int | None = None
    objective: str = "simpo"
    sft_weight: float | None = None
    sft_normalization: SftNormalization = "token"
    micro_batch_tokens: int | None = None
    total_batch_size: int | None = None
    share_prompt: bool = True
    disable_dropout: bool = True
    road: Road = "auto"
    objective_args: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    origin: str = field(default="recipe", compare=False, repr=False)
    places: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        with self._located():
            own = {**objective_defaults(self.objective), **self.objective_args}
            object.__setattr__(self, "objective_args", own)
            defaults = training_defaults(self.objective, evaluates=self.eval_dataset is not None)
            object.__setattr__(self, "training", {**defaults, **self.training})
            self.build_objective()
            check_recipe(self)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Put the place in front of an error that starts with the key it is about."""
        try:
            yield
        except RecipeError as error:
            key = re.match(r"'(\w+)'", str(error))
            place = self.places.get(key[1], self.origin) if key else self.origin
            raise RecipeError(f"{place}: {error}") from None

    def build_objective(self) -> Objective:
        """The objective with this recipe's values.

        Raises:
            RecipeError: a value is out of range.
        """
        return load_objective(self.objective, **self.objective_args)

    @property
    def effective_sft_weight(self) -> float:
        """`sft_weight`, or the weight in the method's paper where the recipe leaves it open."""
        if self.sft_weight is not None:
            return self.sft_weight
        return objective_class(self.objective).published_sft_weight

    @property
    def output_dir(self) -> str:
        return str(self.training["output_dir"])

    def to_dict(self) -> dict[str, Any]:
        """All keys, flat, as in a recipe file."""
        return {key: value for group in self._groups().values() for key, value in group.items()}

    def to_yaml(self) -> str:
        """The complete recipe as a file that `load_recipe` reads back to an equal recipe."""
        return "\n".join(f"# {name}\n{_dump(values)}" for name, values in self._groups().items())

    def _groups(self) -> dict[str, dict[str, Any]]:
        groups = {name: {key: getattr(self, key) for key in keys} for name, keys in GROUPS.items()}
        own = groups["objective"]
        groups["objective"] = {"objective": own.pop("objective"), **self.objective_args, **own}
        return {**groups, "training": self.training}


class _PlainDumper(yaml.SafeDumper):
    """Without anchors: a recipe that says `&id001` is hard to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=10_000)


_SFT_TERMS = {"token": "NLL(chosen)/token", "sequence": "NLL(chosen)/|y_w|", "sum": "NLL(chosen)"}


def describe_objective(recipe: Recipe) -> str:
    """The loss that is minimised, as a formula with its numbers: `simpo: -log σ(2·(A_w - A_l - 0.5))`."""
    line = f"{recipe.objective}: {recipe.build_objective().describe()}"
    weight = recipe.effective_sft_weight
    return f"{line} + {weight:g}·{_SFT_TERMS[recipe.sft_normalization]}" if weight else line
