"""One cell of plan_memory.py, in a process of its own: what two steps of it hold, in GiB.

Prints one JSON object: peak resident memory of the training loop over what was there before the model.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile

import torch
from protocol import claim_stdout, peak_mib, reset_peak, resident_mib, return_free_memory
from transformers import AutoModelForCausalLM, LlamaConfig
from workload import exact_pairs

from preftune.data.plan import Cut
from preftune.recipe import Recipe
from preftune.train.arguments import PreferenceArguments
from preftune.train.models import lora_settings
from preftune.train.run import quiet_transformers
from preftune.train.trainer import PreferenceTrainer
from preftune.types import Origin, TokenizedGroup


def measure(cell: dict) -> dict:
    """`cell`: config, keys of a recipe, prompt, response, groups of a step, and tokens of a micro-batch."""
    config, recipe = LlamaConfig(**cell["config"]), recipe_of(cell)
    pairs = exact_pairs(cell["prompt"], cell["response"], cell["groups"], config.vocab_size)
    groups = [
        TokenizedGroup(pair.prompt, [pair.chosen, pair.rejected], Origin("synthetic", "train", row))
        for row, pair in enumerate(pairs, start=1)
    ]
    gc.collect()
    return_free_memory()
    base = resident_mib()
    trainer = build_trainer(recipe, config, groups, cell)
    gc.collect()
    return_free_memory()
    reset = reset_peak()
    trainer.train()
    return {"measured_gib": (peak_mib() - base) / 1024, "peak_was_reset": reset}


def recipe_of(cell: dict) -> Recipe:
    keys = {"optim": "adamw_torch_fused", **cell["keys"]}
    training = {key: keys.pop(key) for key in ("bf16", "gradient_checkpointing", "optim") if key in keys}
    return Recipe("model", "data", training={"output_dir": "unused", **training}, **keys)


def build_trainer(recipe: Recipe, config: LlamaConfig, groups: list[TokenizedGroup], cell: dict) -> PreferenceTrainer:
    torch.manual_seed(0)
    kind = torch.bfloat16 if recipe.torch_dtype == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=kind)
    if recipe.use_peft:
        from preftune.model.lora import add_adapter

        model = add_adapter(model, lora_settings(recipe))
    args = PreferenceArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(groups),
        max_steps=cell.get("steps", 2),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        **{name: value for name, value in recipe.training.items() if name in cell["keys"] or name == "optim"},
    )
    return PreferenceTrainer(
        model,
        args,
        objective=recipe.build_objective(),
        train_dataset=groups,
        cut=Cut(max_tokens=cell["tokens"]),
        master_weights=recipe.master_weights,
        optimizer_state=recipe.optimizer_state,
        rescue_minutes=0,
    )


def main() -> None:
    answers = claim_stdout()
    quiet_transformers()
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(measure(json.loads(sys.argv[1]))), file=answers)


if __name__ == "__main__":
    main()
