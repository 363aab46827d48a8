"""The card of an export: that of its run, with what has become of the weights; a short one where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from preftune.train.card import is_card


def exported_card(title: str, run: Path | None, facts: dict[str, Any]) -> str:
    """The card as Markdown, with the front matter that the hub reads.

    Args:
        title: of a card that is new.
        run: the folder of the run, whose README.md is gone on with.
        facts: what export.json holds.
    """
    written = run / "README.md" if run is not None else None
    has_card = written is not None and is_card(written)
    header, body = _parts(written.read_text(encoding="utf-8")) if written is not None and has_card else ({}, "")
    # an adapter's card says peft
    header["library_name"] = "gguf" if facts["format"] == "gguf" else "transformers"
    header.setdefault("tags", ["preftune"])
    if facts["kind"] == "language model":
        header["pipeline_tag"] = "text-generation"
    elif facts["kind"] == "reward model":
        header["pipeline_tag"] = "text-classification"
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()
    body = body.strip() or f"# {title}"
    return "\n".join(["---", front, "---", body, "", "## Files", "", _origin(facts), "", _use(facts), ""])


def _parts(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest."""
    if text.startswith("---\n") and "\n---\n" in text[3:]:
        front, _, body = text[4:].partition("\n---\n")
        try:
            header = yaml.safe_load(front)
        except yaml.YAMLError:
            return {}, body
        return (header if isinstance(header, dict) else {}), body
    return {}, text


def _origin(facts: dict[str, Any]) -> str:
    merged = f", its adapter merged into `{facts['merged_into']}`" if facts["merged_into"] else ""
    return (
        f"Exported from `{facts['model']}`{merged}: {facts['architecture']}, {facts['parameters']:,} parameters in "
        f"{facts['dtype']}, by preftune {facts['preftune']}."
    )


def _use(facts: dict[str, Any]) -> str:
    if facts["format"] == "gguf":
        return (
            "It runs with llama.cpp as it is (`llama-cli -m model.gguf`), and with `ollama create NAME -f Modelfile`."
        )
    verb = "preftune score FOLDER answers.jsonl" if facts["kind"] == "reward model" else "preftune chat FOLDER"
    return f"It loads with transformers as it is, and with `{verb}`."
