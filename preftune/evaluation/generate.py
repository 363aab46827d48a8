"""AlpacaEval 2's answers: the questions in, a model's model_outputs.json and its official configuration out.

Prompts are written as in training, one BOS in front. Answers are kept in OUTPUT.part.jsonl as they come; a job that was
killed goes on from there, and gives what it would have given: an answer depends on its prompt and the seed alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import DataError, ModelError
from preftune.evaluation.files import Rows, read_text, write_rows, write_text
from preftune.generation import Engine, Request, Sampling
from preftune.model.ends import ending_ids
from preftune.model.load import load_model, load_tokenizer
from preftune.serve.chat import model_folder, trained_system
from preftune.types import Message

log = logging.getLogger(__name__)
SPOKEN_EVERY = 50  # answers
CONFIGURATION = ("configs.yaml", "prompt.txt")
PACKAGE = "0.6.2"  # of alpaca-eval; from 0.6.3 on it decodes with vLLM in another way


@dataclass(frozen=True)
class Preset:
    """How answers are sampled. stop_ids: beside the template's end of turn and what the model itself names."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


# github.com/princeton-nlp/SimPO, eval/alpacaeval2/configs.
PRESETS = {
    "llama3-instruct": Preset(0.9, 4096, stop_ids=(128001, 128009)),
    "mistral-base": Preset(0.7, 2048),
    "mistral-instruct": Preset(0.5, 2048),
    "gemma2-it": Preset(0.5, 4096, stop_ids=(1, 107)),
    "greedy": Preset(0.0, 4096),
}


def generate_outputs(
    model: str,
    questions: Rows,
    output: str | Path,
    preset: Preset,
    *,
    generator: str | None = None,
    seed: int = 0,
    slots: int = 32,
) -> Rows:
    """Answer all questions, or what is left of them, and write `output`.

    Args:
        model: a folder (also a run that has only checkpoints) or a hub name.
        questions: rows with `instruction` and mostly `dataset`; the baseline's model_outputs.json will do.
        output: a model_outputs.json; its folder gets configs.yaml and prompt.txt too.
        generator: the model's name in the files.
        slots: answers that are written at the same time.

    Raises:
        DataError: a question is no text, or `output` was begun with other settings.
        ModelError: there is no such model, or a question does not fit.
    """
    texts = [_instruction(row, number) for number, row in enumerate(questions, 1)]
    name = str(model_folder(Path(model))) if Path(model).is_dir() else model
    generator = generator or Path(model).name
    chat = read_chat_format(load_tokenizer(name))
    system = trained_system(Path(name)) if Path(name).is_dir() else None
    prompts = prompt_ids(chat, texts, system)
    settings = {"model": name, "generator": generator, "system": system, "seed": seed, "prompts": len(prompts)}
    journal = _Journal(Path(f"{output}.part.jsonl"), settings | asdict(preset))
    left = [number for number in range(len(prompts)) if number not in journal.found]
    if left:
        _answer(name, chat, prompts, left, preset, seed, slots, journal)
    rows = [
        {
            **({"dataset": row["dataset"]} if "dataset" in row else {}),
            "instruction": text,
            "output": journal.found[number],
            "generator": generator,
        }
        for number, (row, text) in enumerate(zip(questions, texts, strict=True))
    ]
    write_rows(output, rows)
    for file, text in zip(CONFIGURATION, configuration(model, generator, preset, chat, system), strict=True):
        write_text(Path(output).with_name(file), text)
    journal.remove()
    return rows


def prompt_ids(chat: ChatFormat, texts: Sequence[str], system: str | None = None) -> list[list[int]]:
    """The ids of training's prompts.

    Raises:
        ModelError: one has not exactly one BOS, where the tokenizer has one.
    """
    opening = [Message("system", system)] if system else []
    prompts = chat.prompt_ids([[*opening, Message("user", text)] for text in texts])
    for number, ids in enumerate(prompts, 1):
        if chat.bos_id is not None and (ids[0] != chat.bos_id or ids[1:2] == [chat.bos_id]):
            raise ModelError(
                f"question {number}: expected one BOS at the start of the prompt. Check the chat template."
            )
    return prompts


def configuration(model: str, generator: str, preset: Preset, chat: ChatFormat, system: str | None) -> tuple[str, str]:
    """The official configs.yaml and its prompt.txt, by which alpaca-eval generates with vLLM.

    Both belong into a folder `generator` of the package's models_configs.
    """
    turns = [Message("system", system)] if system else []
    prompt = chat.prompt_text(chat.turns([*turns, Message("user", "{instruction}")]))
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
    note = f"# For alpaca-eval {PACKAGE}, the version of the published numbers: 0.6.3 changed how vLLM decodes.\n"
    return note + yaml.safe_dump({generator: entry}, sort_keys=False, allow_unicode=True), prompt


def _instruction(row: Mapping[str, Any], number: int) -> str:
    text = row.get("instruction")
    if not isinstance(text, str) or not text:
        raise DataError(f"questions row {number}: expected 'instruction' to be a text, found {text!r}.")
    return text


def _answer(
    name: str,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    left: Sequence[int],
    preset: Preset,
    seed: int,
    slots: int,
    journal: _Journal,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(name, torch_dtype="float32" if device == "cpu" else "auto").to(device).eval()
    engine = Engine(model, slots=slots)
    sampling = Sampling(preset.max_new_tokens, preset.temperature, preset.top_p, ends=_ends(model, chat, preset))
    log.info("%d questions, %d are answered already", len(prompts), len(prompts) - len(left))
    done = len(prompts) - len(left)
    for key, _, answer in engine.run(Request(n, prompts[n], (seed,), sampling) for n in left):
        ids = answer.ids[:-1] if answer.ended else answer.ids
        journal.add(int(str(key)), str(chat.tokenizer.decode(ids, skip_special_tokens=True)).strip())
        done += 1
        if done % SPOKEN_EVERY == 0:
            log.info("%d of %d questions", done, len(prompts))


def _ends(model: Any, chat: ChatFormat, preset: Preset) -> tuple[int, ...]:
    """Those of training and of the model, and those of the preset that the model has."""
    size = model.config.get_text_config().vocab_size
    named = [end for end in preset.stop_ids if end < size]
    return tuple(dict.fromkeys([*ending_ids(model, chat), *named]))


class _Journal:
    """Answers by question, in a file: its first line holds the settings, a torn last line is answered again."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.found = path, dict[int, str]()
        known = json.loads(json.dumps(settings))
        lines = read_text(path).split("\n") if path.exists() else []
        whole = lines[:-1]  # the last is empty, or torn
        if whole:
            before = json.loads(whole[0])
            if before != known:
                changed = next(key for key in known if before.get(key) != known[key])
                raise DataError(f"{path}: was begun with {changed!r} {before.get(changed)!r}, now it is "
                                f"{known[changed]!r}. Go on with the same, or delete the file.")  # fmt: skip
            self.found = {item["n"]: item["output"] for item in map(json.loads, whole[1:])}
        write_text(path, "".join(line + "\n" for line in whole or [json.dumps(known)]))

    def add(self, number: int, output: str) -> None:
        self.found[number] = output
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"n": number, "output": output}) + "\n")

    def remove(self) -> None:
        self.path.unlink()


def with_limit(preset: Preset, max_new_tokens: int | None, temperature: float | None) -> Preset:
    """The preset with what the user says in its place."""
    changes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    return replace(preset, **{key: value for key, value in changes.items() if value is not None})
