"""A conversation with a model: the prompt ids are those of training, the answer comes piece by piece."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import ModelError
from preftune.model.ends import ending_ids
from preftune.model.load import load_model, load_tokenizer
from preftune.model.place import find_model, model_folder, refuse_pickle, run_folder
from preftune.types import Message

__all__ = ["Chat", "Sampling", "model_folder", "open_chat", "trained_system"]

log = logging.getLogger(__name__)
Say = Callable[[str], Any]
HALF = "\ufffd"  # what half a character is decoded to
COLDEST = 1e-5  # a temperature below it leaves the likeliest token alone, and divides logits beyond float32


@dataclass
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens that make up this share of the probability.
        top_k: only so many of the likeliest tokens; 0 = all.
        repetition_penalty: above 1, tokens that stood there before become less likely.
        max_tokens: the longest answer.
        seed: for the same answers again; None = other ones each time.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int | None = None

    def to_generate(self) -> dict[str, Any]:
        """As `model.generate` takes it."""
        common = {"repetition_penalty": self.repetition_penalty}
        if self.temperature < COLDEST:
            return {**common, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {**common, **drawn}


@dataclass
class Chat:
    """A conversation with a model.

    Args:
        model: as loaded.
        format: how its tokenizer writes conversations, the same as in training.
        system: a system message at its start.
        sampling: how answers are drawn.
        history: whether a question is read together with what was said before.
        name: what the model is called beside another.
    """

    model: PreTrainedModel
    format: ChatFormat
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    history: bool = True
    name: str = ""
    turns: list[Message] = field(default_factory=list)
    asked: int = 0

    def reset(self) -> None:
        self.turns.clear()

    def ask(self, question: str, say: Say = lambda piece: None) -> str:
        """Hand the answer to `say` piece by piece while it is generated, and return all of it.

        Ctrl-C ends the answer there: what has been said stays in the conversation.

        Raises:
            ModelError: the question is longer than the model's context, or its logits are not finite.
            DataError: the chat template refuses the conversation.
        """
        if not self.history:
            self.reset()
        before = list(self.turns)
        self.turns.append(Message("user", question))
        try:
            ids, room = self.fitting_prompt()
            answer = self._generate(ids, min(self.sampling.max_tokens, room), say).strip()
        except BaseException:
            self.turns[:] = before  # a question without an answer; what was forgotten for it is known again
            raise
        self.turns.append(Message("assistant", answer))
        self.asked += 1
        return answer

    def messages(self) -> list[dict[str, str]]:
        """The conversation, as rows of data have it."""
        opening = [Message("system", self.system)] if self.system else []
        return [{"role": turn.role, "content": turn.content} for turn in (*opening, *self.turns)]

    def _generate(self, ids: list[int], longest: int, say: Say) -> str:
        prompt = torch.tensor([ids], device=self.model.device)
        ends, speaker = list(ending_ids(self.model, self.format)), _Speaker(self.format.tokenizer, say)
        if self.sampling.seed is not None:
            set_seed((self.sampling.seed + self.asked) % 2**32)  # what numpy takes
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=longest,
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                    streamer=speaker,
                    logits_processor=LogitsProcessorList([_Finite()]),
                    **self.sampling.to_generate(),
                )
        except KeyboardInterrupt:
            speaker.end()
            return "".join(speaker.said)
        return str(self.format.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))

    def fitting_prompt(self) -> tuple[list[int], int]:
        """Prompt ids and the tokens left for the answer; the oldest turns are forgotten when the context is full."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        while True:
            ids = self._prompt_ids()
            if len(ids) + min(self.sampling.max_tokens, context // 2) <= context or len(self.turns) == 1:
                break
            log.info("The conversation is longer than the model's context: its oldest question is forgotten.")
            del self.turns[:2]
        if len(ids) >= context:
            raise ModelError(f"The question has {len(ids)} tokens, the model reads {context}. Ask a shorter one.")
        return ids, context - len(ids)

    def _prompt_ids(self) -> list[int]:
        opening = [Message("system", self.system)] if self.system else []
        return self.format.prompt_ids([[*opening, *self.turns]])[0]


class _Finite(LogitsProcessor):
    """Stops at logits that are no numbers: greedy decoding would write the first token of the vocabulary."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not bool(scores.amax(dim=-1).isfinite().all()):
            raise ModelError("The model's logits are not finite numbers. Check its weights, or load it in float32.")
        return scores


class _Speaker(BaseStreamer):
    """Hands text on token by token; half a character waits for its other half."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.prompt_seen, self.said = False, list[str]()
        self.ids: list[int] = []  # whose text is not finished
        self.shown = 0  # characters of that text

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # generate() hands over the prompt first
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self._text()
        if not text.endswith(HALF):
            self._hand_on(text)
        if text.endswith("\n"):  # what follows is decoded with the line end alone, so that a long answer stays quick
            self.ids = self.ids[-1:]  # not by itself: some tokenizers drop the space that a text begins with
            self.shown = len(self._text())

    def end(self) -> None:
        self._hand_on(self._text())
        self.ids, self.shown = [], 0

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _hand_on(self, text: str) -> None:
        new, self.shown = text[self.shown :], len(text)
        if new:
            self.said.append(new)
            self.say(new)


def open_chat(
    name: str,
    *,
    system: str | None = None,
    sampling: Sampling | None = None,
    history: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Chat:
    """Load a model to talk to; template, stop tokens and the system text of training come with it.

    Args:
        name: a run folder, checkpoint, model or adapter, or a hub name.
        system: None takes that of training, an empty text none.

    Raises:
        ModelError: there is no model in that place.
    """
    place = find_model(name)
    if not allow_pickle:
        refuse_pickle(place)
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(
        place,
        torch_dtype="float32" if device == "cpu" else "auto",
        trust_remote_code=trust_remote_code,
        use_safetensors=None if allow_pickle else True,
    )
    tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code)
    return Chat(
        model.to(device).eval(),
        read_chat_format(tokenizer),
        trained_system(Path(place)) if system is None else system or None,
        sampling or Sampling(),
        history,
        place,
    )


def trained_system(folder: Path) -> str | None:
    """The `system_prompt` of the run that the model is from: what rows without a system text were trained with."""
    folder = folder.expanduser()
    run = run_folder(folder) if folder.is_dir() else None  # a hub's name has none, whatever lies in this folder
    if run is None:
        return None
    try:
        said = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return None
    text = said.get("system_prompt") if isinstance(said, dict) else None
    if text:
        log.info("The system text of training is used; where there is --system, '' leaves it out.")
    return text
