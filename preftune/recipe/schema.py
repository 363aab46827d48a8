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

from preftune.data.truncate import TruncationMode
from preftune.errors import RecipeError
from preftune.objectives import load_method, objective_class, objective_defaults
from preftune.objectives.base import Method
from preftune.recipe.checks import check_recipe
from preftune.recipe.follow import asks_for_evaluation, names_test_split
from preftune.recipe.training import training_defaults

Road = Literal["auto", "packed", "padded"]
SftNormalization = Literal["token", "sequence", "sum"]
MomentType = Literal["float32", "bfloat16", "8bit"]

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
        "optimizer_state",
        "checkpoint_layers",
        "device_map",
        "freeze",
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "chat_template",
        "chat_template_kwargs",
        "add_template_tokens",
    ),
    "adapter": (
        "use_peft",
        "adapter_name_or_path",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_modules_to_save",
        "use_rslora",
        "use_dora",
        "lora_init",
    ),
    "data": (
        "dataset",
        "eval_dataset",
        "columns",
        "ranked_pairs",
        "on_bad_row",
        "dataset_splits",
        "dataset_configs",
        "dataset_catalog",
        "mixer_order",
        "test_split_size",
        "system_prompt",
        "streaming",
        "streaming_buffer",
    ),
    "tokens": (
        "max_length",
        "max_prompt_length",
        "truncation",
        "cut_response_end",
        "tokenization",
        "dedupe",
        "decontaminate",
        "dataset_num_proc",
        "tokens_cache",
    ),
    "objective": ("objective", "sft_weight", "sft_normalization"),
    "reference": (
        "reference_model_name_or_path",
        "reference_model_revision",
        "precompute_reference",
        "reference_cache",
    ),
    "step": ("micro_batch_tokens", "total_batch_size", "share_prompt", "disable_dropout", "road"),
    "saving": ("value_head_format", "rescue_minutes", "on_nonfinite"),
    "watch": ("watch", "watch_prompts", "watch_steps", "on_collapse", "record_margins"),
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
        master_weights: keep float32 weights whatever `torch_dtype` says: true, in the optimizer (4 bytes a parameter
            beside bfloat16 weights); split, the same numbers as bfloat16 weight and low word (2 bytes); false, none.
        optimizer_state: how AdamW keeps its two moments: float32, bfloat16 or 8bit (8, 4 or 2 bytes a parameter).
        checkpoint_layers: how many decoder layers, from the first on, make their activations again in backward; auto:
            as few as memory asks for; null: all with gradient_checkpointing: true, else none.
        device_map: spread the decoder layers over the devices of a process: auto, over all of its GPUs by the bytes of
            the weights; or a map of module names to GPUs or cpu, {model.layers.0: 0, ...}; null: one device.
        freeze: parts that are not trained: embeddings, head, norm, layers.0-7, or the beginning of parameter names.
        load_in_4bit, load_in_8bit: hold the base model quantised under an adapter (QLoRA).
        bnb_4bit_quant_type: nf4 or fp4.
        chat_template: instead of the tokenizer's own: a name (chatml, llama3, ...), Jinja text, or a file with it; a
            tokenizer without one gets chatml (none at all: plain).
        chat_template_kwargs: settings of the template, such as {enable_thinking: false}; saved with the tokenizer.
        add_template_tokens: a named template's markers (<|im_start|>) become tokens where they are none, as in a base
            model, which gets rows for them; false: they are ordinary text.
        use_peft: train a LoRA adapter instead of the model.
        adapter_name_or_path: start from this adapter; it is the reference too, as it was.
        lora_r, lora_alpha, lora_dropout: rank, scale (over rank) and dropout of a new adapter; disable_dropout
            switches the last off too.
        lora_target_modules: ALL (every linear layer but the head), DEFAULT (query, key, value projections), or names.
        lora_modules_to_save: modules that are trained whole beside the adapter.
        use_rslora: scale by lora_alpha over the square root of the rank.
        use_dora: train magnitudes too.
        lora_init: true (B is zero), gaussian, pissa, pissa_niter_N or olora.
        dataset: a file, a folder or a name, a list of them, or a map of them to weights (dataset_mixer).
        eval_dataset: the same, for evaluation.
        columns: which column of the file plays which role: {question: prompt, answer: chosen}.
        on_bad_row: error, or skip and count; null: as the catalogue has it for a named set, else error.
        dataset_splits: the splits to read, such as [train_prefs, test_prefs], or a map of sources to theirs.
        dataset_configs: the subset of each source.
        dataset_catalog: a YAML file with more named data sets.
        mixer_order: rows of a weight are drawn by the seed (random), or are the first ones, as published (head).
        test_split_size: what is held out of a source without a test split: a share, or a number of examples.
        system_prompt: the system text of rows that have none; a row with an empty one ("") keeps it so.
        streaming: read the files row by row while training, for data larger than memory; needs max_steps.
        streaming_buffer: groups that are shuffled among each other in a stream; rounded up to whole steps.
        ranked_pairs: how ranked rows become pairs: best_worst, or all.
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens that a prompt keeps when the pair is too long; null: what the response leaves.
        truncation: prompt_then_response, keep_start, keep_end, drop or error, for rows that are too long.
        cut_response_end: append puts the end-of-turn token at the end of a cut response.
        tokenization: preftune, or princeton for the ids of the SimPO repository.
        dedupe: leave out rows equal to an earlier one.
        decontaminate: files of questions, such as a benchmark's; rows in which one of them stands are left out.
        dataset_num_proc: processes that encode.
        tokens_cache: a folder in which token ids are kept.
        objective: the name of the loss.
        sft_weight: weight of the NLL of the chosen response beside the objective; null: as in the method's paper.
        sft_normalization: the NLL is a mean per token, a mean per sequence, or a sum per sequence; null: as there.
        reference_model_name_or_path: of an objective that needs a reference; null: the model as it is at the start.
        reference_model_revision: of a hub name.
        precompute_reference: compute the reference's log-probs before training, and let it leave memory.
        reference_cache: folder of these log-probs; null: preftune/ in the user's cache folder.
        micro_batch_tokens: tokens of one forward pass; null or auto: chosen at the start, by the memory that is free.
        total_batch_size: groups of one optimizer step over all processes.
        share_prompt: compute the prompt of a group once.
        disable_dropout: train without dropout.
        value_head_format: of the extra file with a reward model's head: safetensors or bin.
        rescue_minutes: a checkpoint by the clock, whatever save_steps says; two are kept; 0: none.
        road: packed rows, padded rows, or packed where the model allows it (auto).
        on_nonfinite: stop at a step whose log-probs or gradient are no numbers, or skip it (at most ten times).
        watch: answer a few fixed prompts while training, and say when the model collapses; changes nothing of the run.
        watch_prompts: how many, from the evaluation set, else from what is trained on.
        watch_steps: steps between two looks beside those at evaluations; null: a tenth of the run, at least ten.
        on_collapse: warn; stop with an error; or rollback: end with the model of the last healthy checkpoint.
        record_margins: write the margin of every pair at each of its visits to margins.jsonl, for `preftune autopsy`.
        objective_args: the objective's own keys.
        training: fields of `TrainingArguments`.
        origin: the file, for error messages.
        places: keys that came from elsewhere (the command line), for error messages.

    Raises:
        RecipeError: a value is out of range, or two values contradict each other.
    """

    model_name_or_path: str
    dataset: str | list[str] | dict[str, Any]
    tokenizer_name_or_path: str | None = None
    model_revision: str = "main"
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    master_weights: bool | Literal["split"] = True
    optimizer_state: MomentType = "float32"
    checkpoint_layers: int | Literal["auto"] | None = None
    device_map: str | dict[str, Any] | None = None
    freeze: list[str] | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_template_tokens: bool = True
    use_peft: bool = False
    adapter_name_or_path: str | None = None
    lora_r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | list[str] = "ALL"
    lora_modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    lora_init: bool | str = True
    eval_dataset: str | list[str] | dict[str, Any] | None = None
    columns: dict[str, str | None] | None = None
    ranked_pairs: Literal["best_worst", "all"] = "best_worst"
    on_bad_row: Literal["error", "skip"] | None = None
    dataset_splits: list[str] | dict[str, Any] | None = None
    dataset_configs: list[str] | dict[str, str] | None = None
    dataset_catalog: str | None = None
    mixer_order: Literal["random", "head"] = "random"
    test_split_size: int | float | None = None
    system_prompt: str | None = None
    streaming: bool = False
    streaming_buffer: int = 4096
    max_length: int = 1024
    max_prompt_length: int | None = None
    truncation: TruncationMode = "prompt_then_response"
    cut_response_end: Literal["none", "append"] = "none"
    tokenization: Literal["preftune", "princeton"] = "preftune"
    dedupe: bool = False
    decontaminate: str | list[str] | None = None
    dataset_num_proc: int = 1
    tokens_cache: str | None = None
    objective: str = "simpo"
    sft_weight: float | None = None
    sft_normalization: SftNormalization | None = None
    reference_model_name_or_path: str | None = None
    reference_model_revision: str = "main"
    precompute_reference: bool = False
    reference_cache: str | None = None
    micro_batch_tokens: int | None = None
    total_batch_size: int | None = None
    share_prompt: bool = True
    disable_dropout: bool = True
    road: Road = "auto"
    value_head_format: Literal["safetensors", "bin"] = "safetensors"
    rescue_minutes: float = 15
    on_nonfinite: Literal["stop", "skip"] = "stop"
    watch: bool = True
    watch_prompts: int = 16
    watch_steps: int | None = None
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    record_margins: bool = True
    objective_args: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    origin: str = field(default="recipe", compare=False, repr=False)
    places: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        with self._located():
            own = {**objective_defaults(self.objective), **self.objective_args}
            object.__setattr__(self, "objective_args", own)
            defaults = training_defaults(self.objective, evaluates=self.evaluates, adapter=self.trains_adapter)
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

    def build_objective(self) -> Method:
        """The objective (or PPO) with this recipe's values.

        Raises:
            RecipeError: a value is out of range.
        """
        return load_method(self.objective, **self.objective_args)

    @property
    def effective_sft_weight(self) -> float:
        """`sft_weight`, or the weight in the method's paper where the recipe leaves it open."""
        if self.sft_weight is not None:
            return self.sft_weight
        return objective_class(self.objective).published_sft_weight

    @property
    def effective_sft_normalization(self) -> SftNormalization:
        """`sft_normalization`, or that of the method's paper where the recipe leaves it open."""
        return self.sft_normalization or objective_class(self.objective).published_sft_normalization

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out rows: a set of their own, a part of the dataset, or a split of it, asked for.

        `dataset_splits` alone asks for nothing: published recipes name a test split whether it is evaluated or not.
        """
        if self.eval_dataset is not None or self.test_split_size is not None:
            return True
        return asks_for_evaluation(self.training) and names_test_split(self.dataset_splits)

    @property
    def trains_adapter(self) -> bool:
        return self.use_peft or self.adapter_name_or_path is not None

    @property
    def output_dir(self) -> str:
        return str(self.training["output_dir"])

    def to_dict(self) -> dict[str, Any]:
        """All keys, flat, as in a recipe file."""
        return {key: value for group in self._groups().values() for key, value in group.items()}

    def to_yaml(self) -> str:
        """The complete recipe as a file that `load_recipe` reads back to an equal recipe, but for passwords."""
        return "\n".join(f"# {name}\n{_dump(values)}" for name, values in self._groups().items())

    def _groups(self) -> dict[str, dict[str, Any]]:
        groups = {name: {key: getattr(self, key) for key in keys} for name, keys in GROUPS.items()}
        own = groups["objective"]
        groups["objective"] = {"objective": own.pop("objective"), **self.objective_args, **own}
        return {**groups, "training": {key: value for key, value in self.training.items() if key not in SECRET}}


SECRET = frozenset({"hub_token"})  # never written anywhere


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
    return f"{line} + {weight:g}·{_SFT_TERMS[recipe.effective_sft_normalization]}" if weight else line
