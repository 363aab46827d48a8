"""The model card of a run: what was trained on what, how, and how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from preftune.objectives import objective_class
from preftune.recipe import Recipe

FIGURES = (  # key, what it means
    ("loss", "loss of the last log line"),
    ("eval_loss", "held-out loss"),
    ("rewards/accuracies", "share of pairs whose chosen response has the higher reward"),
    ("eval_rewards/accuracies", "the same on held-out pairs"),
    ("rewards/margins", "reward of the chosen response above the rejected one"),
    ("eval_rewards/margins", "the same on held-out pairs"),
    ("objective/scores", "score of sampled responses"),
    ("eval_objective/scores", "the same for held-out prompts"),
    ("objective/kl", "divergence from the reference, nats a response"),
    ("nll", "negative log-likelihood of the (chosen) response, nats per token"),
    ("eval_nll", "the same, held out"),
)


def write_card(recipe: Recipe, folder: Path, summary: dict[str, Any], extra: str = "") -> Path:
    """Write `README.md` into the run folder; `extra` is Markdown that goes below the figures."""
    path = folder / "README.md"
    path.write_text(card(recipe, folder, summary, extra), encoding="utf-8")
    return path


def card(recipe: Recipe, folder: Path, summary: dict[str, Any], extra: str = "") -> str:
    """The card as Markdown, with the front matter that the hub reads."""
    library = "peft" if recipe.trains_adapter else "transformers"
    header = {"library_name": library, "tags": ["preftune", recipe.objective]}
    if not Path(recipe.model_name_or_path).exists():
        header["base_model"] = recipe.model_name_or_path
    metrics = summary["metrics"]
    rows = [f"| `{key}` | {metrics[key]:.4g} | {meaning} |" for key, meaning in FIGURES if key in metrics]
    plots = [f"![{path.stem}](plots/{path.name})" for path in sorted((folder / "plots").glob("*.png"))]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False).strip(),
            "---",
            f"# {folder.resolve().name}",
            "",
            f"Trained from `{recipe.model_name_or_path}` on `{recipe.dataset}` ({summary['rows']} groups) "
            f"with preftune {summary['versions']['preftune']}.",
            "",
            f"Objective: `{summary['objective']}` ({objective_class(recipe.objective).source}).",
            "",
            f"{summary['steps']} steps in {summary['train_seconds']:.0f} s on {summary['device']} "
            f"({summary['groups_per_second']:.3g} groups a second, peak memory {summary['peak_memory_gib']:.2f} GiB).",
            "",
            "| metric | value | |",
            "|---|---|---|",
            *rows,
            "",
            *_watched(summary.get("watch")),
            *([extra, ""] if extra else []),
            *plots,
            "",
            "The complete settings are in `recipe.yaml`, every log line in `log.jsonl`.",
            "",
        ]
    )


def _watched(watch: dict[str, Any] | None) -> list[str]:
    """What the collapse watch saw, a paragraph; nothing where it did not look."""
    if not watch or not watch["looks"]:
        return []
    looked = f"{watch['looks']} looks at the answers to {watch['prompts']} prompts while training"
    if not watch["signs"]:
        return [f"{looked} found no sign of a collapse.", ""]
    back = watch["rolled_back_to"]
    ends = "" if back is None else f" The model is that of step {back}."
    return [f"{looked} found **signs of a collapse**: {', '.join(watch['signs'])}.{ends}", "", *watch["lines"], ""]
