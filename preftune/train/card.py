"""The model card of a run: what was trained on what, how, and how it went."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from preftune.objectives import objective_class
from preftune.objectives.base import Reads
from preftune.recipe import Recipe
from preftune.train.checkpoint import ANSWERS, LOG
from preftune.train.record import read_log

SAMPLE_LINES = 40  # of a page of samples that stand in the card
WATCHED_ROWS, CELL_CHARACTERS = 8, 400
_NUMBER = re.compile(r"\d+")

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
    header: dict[str, Any] = {"library_name": library, "tags": ["preftune", recipe.objective]}
    if not Path(recipe.model_name_or_path).exists():
        header["base_model"] = recipe.model_name_or_path
    if objective_class(recipe.objective).reads == Reads.LOGPS:
        header["pipeline_tag"] = "text-generation"
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
            f"Trained from `{_place(recipe.model_name_or_path)}` on `{_data(recipe)}` ({summary['rows']} groups) "
            f"with preftune {summary['versions']['preftune']}.",
            "",
            *_objective(recipe, summary),
            f"{summary['steps']} steps in {summary['train_seconds']:.0f} s on {summary['device']} "
            f"({summary['groups_per_second']:.3g} groups a second, peak memory {summary['peak_memory_gib']:.2f} GiB).",
            "",
            *_data_lines(summary),
            "| metric | value | |",
            "|---|---|---|",
            *rows,
            "",
            *_watched(summary.get("watch")),
            *([extra, ""] if extra else []),
            *plots,
            "",
            *_samples(folder),
            "<details><summary>The recipe</summary>",
            "",
            "```yaml",
            recipe.to_yaml().strip(),
            "```",
            "",
            "</details>",
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


def _objective(recipe: Recipe, summary: dict[str, Any]) -> list[str]:
    """What was minimised, with the numbers of this run, and the paper's line."""
    kind = objective_class(recipe.objective)
    lines = [f"Objective: `{summary['objective']}` ({kind.source}).", ""]
    return [*lines, f"In general: `{kind.formula}`.", ""]


def _data(recipe: Recipe) -> str:
    names = recipe.dataset if isinstance(recipe.dataset, (list, tuple, dict)) else [recipe.dataset]
    return ", ".join(_place(str(name)) for name in names)


def _place(name: str) -> str:
    """A name as it is; of a folder or file at an absolute path its own name: the rest concerns one machine."""
    return Path(name).name if Path(name).expanduser().is_absolute() else name


def _data_lines(summary: dict[str, Any]) -> list[str]:
    """Rows that were cut or left out, and their lengths, where the run counted them."""
    data = summary.get("data") or {}
    said = [f"{data['rows_cut']} rows were cut"] if data.get("rows_cut") else []
    said += [f"{found['rows']} rows left out: {reason}" for reason, found in (data.get("dropped") or {}).items()]
    return [f"Data: {'; '.join(said)}.", ""] if said else []


def _samples(folder: Path) -> list[str]:
    """The first rows of the newest page of answers that the run wrote, or its answers to the watched prompts."""
    pages = [page for page in (folder / "samples").glob("*.md") if _NUMBER.search(page.stem)]
    pages.sort(key=lambda page: int(_NUMBER.findall(page.stem)[-1]))
    page = pages[-1] if pages else folder / "samples.md"
    if not page.is_file():
        return _watched_answers(folder / ANSWERS)
    lines = page.read_text(encoding="utf-8").splitlines()
    shown = [re.sub(r"^#+ ", "### ", line) for line in lines[:SAMPLE_LINES]]
    more = [f"... and more in `{page.relative_to(folder)}`."] if len(lines) > SAMPLE_LINES else []
    return ["## Samples", "", *shown, "", *more, ""]


def _watched_answers(path: Path) -> list[str]:
    """Greedy answers to the same prompts at the start and at the end (`preftune.train.watch`)."""
    looks = [record for record in read_log(path) if record.get("answers")]
    if not looks:
        return []
    first, last = looks[0], looks[-1]
    rows = [
        f"| {cell(before['prompt'])} | {cell(before['answer'])} | {cell(after['answer'])} |"
        for before, after in zip(first["answers"], last["answers"], strict=False)
    ][:WATCHED_ROWS]
    heading = f"| prompt | after step {first['step']} | after step {last['step']} |"
    return ["## Samples", "", f"Greedy, up to the watched length; all of them are in `{ANSWERS}`.", "",
            heading, "|---|---|---|", *rows, ""]  # fmt: skip


def cell(text: str) -> str:
    """Text of a model that can neither break a table nor be taken for Markdown or HTML."""
    plain = " ".join(text.split())[:CELL_CHARACTERS]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", plain) or "(empty)"


def is_card(path: Path) -> bool:
    """Whether there is a card that says something: PEFT leaves a form to fill in beside every adapter."""
    return path.is_file() and "[More Information Needed]" not in path.read_text(encoding="utf-8", errors="replace")


def short_card(folder: Path, run: Path | None) -> str:
    """The card of a model whose run has not written one: what its recipe and its log say so far."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["preftune"]}
    if (folder / "adapter_config.json").is_file():
        header["library_name"] = "peft"
    lines = [f"# {folder.resolve().name}", ""]
    if run is not None:
        lines += ["Saved by a run of preftune.", "", *_log_lines(run), *_samples(run)]
        recipe = (run / "recipe.yaml").read_text(encoding="utf-8").strip()
        lines += ["## Recipe", "", "```yaml", recipe, "```", ""]
    return "\n".join(["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", *lines])


def _log_lines(run: Path) -> list[str]:
    metrics: dict[str, Any] = {}
    for record in read_log(run / LOG):
        metrics.update(record)
    rows = [f"| `{key}` | {metrics[key]:.4g} | {meaning} |" for key, meaning in FIGURES if key in metrics]
    if not rows:
        return []
    return [f"After step {metrics.get('step')}:", "", "| metric | value | |", "|---|---|---|", *rows, ""]
