"""A chat in the terminal: the prompt ids are those of training, the answer is printed as it comes.

In a terminal the conversation goes on until `/exit`, with `/reset` to forget it. Where the input is a file or a pipe,
each line is a question of its own, and nothing but the answers is printed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, TextStreamer, set_seed
from transformers.utils.logging import disable_progress_bar

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import ModelError
from preftune.model.load import load_model, load_tokenizer
from preftune.model.place import model_folder
from preftune.types import Message

log = logging.getLogger(__name__)


@dataclass
class Chat:
    """A conversation with a model.

    Args:
        model: as loaded.
        format: how its tokenizer writes conversations, the same as in training.
        system: a system message at its start.
        temperature: 0 takes the likeliest token.
        max_tokens: the longest answer.
        history: whether a question is read together with what was said before.
    """

    model: PreTrainedModel
    format: ChatFormat
    system: str | None = None
    temperature: float = 0.7
    max_tokens: int = 256
    history: bool = True
    turns: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        self.turns.clear()

    def ask(self, question: str) -> str:
        """Print the answer while it is generated, and return it.

        Raises:
            ModelError: the question is longer than the model's context.
        """
        if not self.history:
            self.reset()
        self.turns.append(Message("user", question))
        ids, room = self._fitting_prompt()
        answer = self._generate(ids, min(self.max_tokens, room)).strip()
        self.turns.append(Message("assistant", answer))
        return answer

    def _generate(self, ids: list[int], longest: int) -> str:
        prompt = torch.tensor([ids], device=self.model.device)
        tokenizer, ends = self.format.tokenizer, self._end_ids()
        with torch.inference_mode():
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=longest,
                eos_token_id=ends,
                pad_token_id=ends[0],
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                **self._sampling(),
            )
        return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))

    def _fitting_prompt(self) -> tuple[list[int], int]:
        """Prompt ids and the tokens left for the answer; the oldest turns are forgotten when the context is full."""
        context = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        while True:
            ids = self._prompt_ids()
            if len(ids) + min(self.max_tokens, context // 2) <= context or len(self.turns) == 1:
                break
            log.info("The conversation is longer than the model's context: its oldest question is forgotten.")
            del self.turns[:2]
        if len(ids) >= context:
            self.reset()
            raise ModelError(f"The question has {len(ids)} tokens, the model reads {context}. Ask a shorter one.")
        return ids, context - len(ids)

    def _prompt_ids(self) -> list[int]:
        opening = [Message("system", self.system)] if self.system else []
        return self.format.prompt_ids([[*opening, *self.turns]])[0]

    def _end_ids(self) -> list[int]:
        """The token that ended every response in training, and those that the model itself names."""
        named = self.model.generation_config.eos_token_id
        known = [self.format.end_id, *(named if isinstance(named, list) else [named])]
        return list(dict.fromkeys(end for end in known if end is not None))

    def _sampling(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}


def chat(
    model: str,
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 256,
    seed: int | None = None,
    history: bool = True,
) -> None:
    """Talk to the model in a folder until the end of the input.

    Raises:
        ModelError: there is no model in that folder, or a question does not fit.
    """
    folder = str(model_folder(Path(model)))
    at_terminal = sys.stdin.isatty()
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(folder, torch_dtype="float32" if device == "cpu" else "auto").to(device).eval()
    if seed is not None:
        set_seed(seed)
    if system is None:
        system = trained_system(Path(folder))
    talk = Chat(
        loaded, read_chat_format(load_tokenizer(folder)), system, temperature, max_tokens, history and at_terminal
    )
    if at_terminal:
        print(f"{folder}   /reset forgets the conversation, /exit leaves.")
    for question in _questions(at_terminal):
        if question == "/exit":
            return
        if question == "/reset":
            talk.reset()
        else:
            talk.ask(question)


def trained_system(folder: Path) -> str | None:
    """The `system_prompt` of the run that the model is from: what rows without a system text were trained with."""
    for recipe in (folder / "recipe.yaml", folder.parent / "recipe.yaml"):
        if recipe.is_file():
            try:
                said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
            except yaml.YAMLError:
                return None
            text = said.get("system_prompt") if isinstance(said, dict) else None
            if text:
                log.info("The system text of training is used; --system '' leaves it out.")
            return text
    return None


def _questions(at_terminal: bool) -> Iterator[str]:
    if at_terminal:
        import readline  # noqa: F401, arrow keys and history in input()
    while True:
        try:
            line = input("> " if at_terminal else "").strip()
        except EOFError:
            return
        if line:
            yield line
