"""Makes docs/rlhf.md from the tables of flags: `make docs`. A test fails when the page is old."""

from __future__ import annotations

from pathlib import Path

from preftune.recipe.families import families
from preftune.recipe.flags import GROUPS, METHODS, Flag
from preftune.recipe.unsupported import NO_EFFECT, NOT_HERE

PAGE = Path(__file__).resolve().parent / "rlhf.md"

INTRO = """# `preftune rlhf`: training by flags

<!-- Made by docs/make_flags.py from preftune/recipe/flags.py; edit that, then run `make docs`. -->

The flags of the published `rlhf` commands (ms-swift 2.5), with their documented defaults, over the same recipe that
`preftune train` runs. `preftune rlhf --rlhf_type simpo` and `preftune simpo` are the same; `preftune sft` trains on
answers alone. `--dry_run true` prints the recipe, which `preftune train` takes as a file.

Values follow their flag after a space or `=`; list flags take several; a flag that is true or false may stand alone. A
first argument that is a YAML or JSON file is read as flags. Recipe keys, keys of the objective and the fields of
`transformers.TrainingArguments` are flags too.

**These defaults are not those of a recipe.** SimPO here is beta 2.0, gamma 1.0 *and an NLL term of weight 1*; DPO has
one too. The log says so (`SimPO + 1.0 NLL; set --cpo_alpha 0 for the paper's SimPO`). A step is 16 groups over all
processes, 1 % of the rows (at least one prompt) is held out, rows over `--max_length` are left out and counted, and
LoRA's dropout of 0.05 acts. Learning rates are 1e-4 (LoRA) and 1e-5 (full): for SimPO set one, 3e-7 to 1e-6 in full
training.

**Processes.** `NPROC_PER_NODE`, `NNODES`, `NODE_RANK`, `MASTER_ADDR`, `MASTER_PORT` in the environment start that many
processes through `torch.distributed.run`; the exit code is passed on. Where `CUDA_VISIBLE_DEVICES`
shows more GPUs than there are processes, each process spreads the layers of its model over those that fall to it
(`--device_map auto`, as published; not with DeepSpeed, FSDP, quantised weights or ppo, where one process takes the
first GPU, and a line says so).
"""


def page() -> str:
    """The text of docs/rlhf.md."""
    parts = [INTRO]
    for group, flags in GROUPS.items():
        title = "PPO" if group == "ppo" else group.capitalize()
        parts += [f"## {title}\n", "| flag | default | meaning | also |", "|---|---|---|---|"]
        parts += [*map(_row, flags), ""]
    parts += ["## Without effect\n", "Accepted, with a line in the log.\n"]
    parts += [f"* `--{name}`: {reason}" for name, reason in NO_EFFECT.items()]
    parts += ["\n## Refused\n", "Accepted where the value asks for nothing, else an error with the reason.\n"]
    parts += [
        f"* `--{name}`: {reason.replace('{types}', ', '.join(METHODS))}" for name, (_, reason) in NOT_HERE.items()
    ]
    parts += [
        "\n## Models that `--model_type` names\n",
        "| name | id | template | DEFAULT modules |",
        "|---|---|---|---|",
    ]
    for family in families().values():
        template = family.template or "its own"
        modules = ", ".join(family.modules) or "as found"
        parts.append(f"| {family.name} | {family.id} | {template} | {modules} |")
    return "\n".join(parts) + "\n"


def _row(flag: Flag) -> str:
    default = "" if flag.default is None else f"`{str(flag.default).lower() if flag.kind is bool else flag.default}`"
    only = f" ({', '.join(flag.only)} only)" if flag.only else ""
    also = ", ".join(f"`--{name}`" for name in flag.also)
    return f"| `--{flag.name}` | {default} | {flag.help}{only} | {also} |".replace("σ|", "σ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
