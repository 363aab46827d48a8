"""AlpacaEval 2's answers: the questions in, a model's model_outputs.json and its official configuration out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import DataError
from preftune.evaluation.answers import Candidate, Journal, Preset, mark_of
from preftune.evaluation.files import Rows, read_text, write_rows, write_text
from preftune.types import Message

CONFIGURATION = ("configs.yaml", "prompt.txt")
PACKAGE = "0.6.2"  # of alpaca-eval; from 0.6.3 on it decodes with vLLM in another way
NOTE = f"# For alpaca-eval {PACKAGE}, the version of the published numbers: 0.6.3 changed how vLLM decodes.\n"

# github.com/princeton-nlp/SimPO, eval/alpacaeval2/configs.
PRESETS = {
    "llama3-instruct": Preset(0.9, 4096, stop_ids=(128001, 128009)),
    "mistral-base": Preset(0.7, 2048),
    "mistral-instruct": Preset(0.5, 2048),
    "gemma2-it": Preset(0.5, 4096, stop_ids=(1, 107)),
    "greedy": Preset(0.0, 4096),
}


def generate_outputs(model: str, candidate: Candidate, questions: Rows, output: str | Path, preset: Preset) -> Rows:
    """Answer all questions, or what is left of them, and write `output`, with configs.yaml and prompt.txt beside it.

    Args:
        model: its name as the user has it.
        questions: rows with `instruction` and mostly `dataset`; the baseline's model_outputs.json will do.
        output: a model_outputs.json.

    Raises:
        DataError: a question is no text, or `output` was begun with other settings.
        ModelError: a question does not fit.
    """
    _check_beside(Path(output))
    texts = [_instruction(row, number) for number, row in enumerate(questions, 1)]
    journal = Journal(output, candidate.settings() | asdict(preset) | {"prompts": mark_of(texts)})
    conversations = {str(number): [Message("user", text)] for number, text in enumerate(texts)}
    candidate.answer(conversations, dict.fromkeys(conversations, preset), journal)
    rows = [
        {
            **({"dataset": row["dataset"]} if "dataset" in row else {}),
            "instruction": text,
            "output": journal.found[str(number)],
            "generator": candidate.generator,
        }
        for number, (row, text) in enumerate(zip(questions, texts, strict=True))
    ]
    write_rows(output, rows)
    for file, text in zip(CONFIGURATION, configuration(model, candidate, preset), strict=True):
        write_text(Path(output).with_name(file), text)
    journal.remove()
    return rows


def _check_beside(output: Path) -> None:
    """Files beside the output that are replaced are ours."""
    for name in CONFIGURATION:
        file, first = output.with_name(name), output.with_name(CONFIGURATION[0])
        if file.exists() and not (first.is_file() and read_text(first).startswith(NOTE)):
            raise DataError(f"{file}: is there already, and is none of ours. Give an --output in another folder.")


def configuration(model: str, candidate: Candidate, preset: Preset) -> tuple[str, str]:
    """The official configs.yaml and its prompt.txt, by which alpaca-eval generates with vLLM.

    Both belong into a folder of the generator's name in the package's models_configs.
    """
    chat, generator, system = candidate.chat, candidate.generator, candidate.system
    turns = [Message("system", system)] if system else []
    prompt = chat.unmask(chat.prompt_text(chat.turns([*turns, Message("user", "{instruction}")])))
    bos = chat.tokenizer.bos_token if chat.bos_id is not None else None
    if bos and prompt.startswith(bos):  # vLLM's tokenizer puts one there itself
        prompt = prompt[len(bos) :]
    settings: dict[str, Any] = {
        "model_name": model,
        "max_new_tokens": preset.max_new_tokens,
        "top_p": preset.top_p,
        "temperature": preset.temperature,
    }
    if preset.stop_ids:
        settings["stop_token_ids"] = list(preset.stop_ids)
    entry = {
        "prompt_template": f"{generator}/prompt.txt",
        "fn_completions": "vllm_local_completions",
        "completions_kwargs": settings,
        "pretty_name": generator,
    }
    return NOTE + yaml.safe_dump({generator: entry}, sort_keys=False, allow_unicode=True), prompt


def _instruction(row: Mapping[str, Any], number: int) -> str:
    text = row.get("instruction")
    if not isinstance(text, str) or not text:
        raise DataError(f"questions row {number}: expected 'instruction' to be a text, found {text!r}.")
    return text
