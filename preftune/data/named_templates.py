"""Chat templates by name, and settings for any template.

    llama3          Llama 3                          mistral        Mistral 7B Instruct v0.1, v0.2 ([INST] as text)
    llama3.1        Llama 3.1, 3.2, 3.3; no dates    mistral-v3     Mistral with the v3 tokenizer
    chatml          base models, Yi, SmolLM          mistral-simpo  as the SimPO repository trains Mistral Instruct
    qwen2.5         ChatML; no default system text   gemma          Gemma 2 and 3 (also gemma2, gemma3)
    qwen3           with thoughts                    zephyr, phi3
    plain           no template: contents joined by a blank line, the answer right after them

A tokenizer without a template is trained with BASE_TEMPLATE unless another is named (`preftune.train.tokenizer`).
Written from the published formats, for system, user and assistant turns; departures: no date, and a system text only
where one is given. A conversation with tools needs the tokenizer's own template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from preftune.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
BASE_TEMPLATE = "chatml"
_SETTINGS = "{# preftune: chat_template_kwargs #}", "{# preftune: end #}"


@dataclass(frozen=True)
class NamedTemplate:
    """A file in `templates/`, and the texts in it that should be one token each."""

    file: str
    markers: tuple[str, ...]


_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|im_start|>", "<|im_end|>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
TEMPLATES: dict[str, NamedTemplate] = {
    "llama3": NamedTemplate("llama3", _LLAMA3),
    "llama3.1": NamedTemplate("llama3.1", _LLAMA3),
    "llama3.2": NamedTemplate("llama3.1", _LLAMA3),
    "llama3.3": NamedTemplate("llama3.1", _LLAMA3),
    "chatml": NamedTemplate("chatml", _CHATML),
    "qwen2.5": NamedTemplate("chatml", _CHATML),
    "qwen3": NamedTemplate("qwen3", _CHATML),
    "mistral": NamedTemplate("mistral", ()),
    "mistral-v3": NamedTemplate("mistral-v3", ("[INST]", "[/INST]")),
    "mistral-simpo": NamedTemplate("mistral-simpo", ()),
    "gemma": NamedTemplate("gemma", _GEMMA),
    "gemma2": NamedTemplate("gemma", _GEMMA),
    "gemma3": NamedTemplate("gemma", _GEMMA),
    "zephyr": NamedTemplate("zephyr", ()),
    "phi3": NamedTemplate("phi3", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
}
TEMPLATE_NAMES = (*TEMPLATES, PLAIN)


def template_text(name: str) -> str | None:
    """The Jinja text of a named template; None for `plain`.

    Raises:
        RecipeError: there is no such template.
    """
    if name == PLAIN:
        return None
    if name not in TEMPLATES:
        raise RecipeError(f"'chat_template' is '{name}'; expected Jinja text, a file, or {', '.join(TEMPLATE_NAMES)}.")
    return files("preftune.data").joinpath("templates", f"{TEMPLATES[name].file}.jinja").read_text(encoding="utf-8")


def with_settings(template: str, settings: Mapping[str, Any]) -> str:
    """The template with `settings` (chat_template_kwargs) written into it, so that they are saved with the tokenizer.

    Whoever samples from the model then gets the prompt that it was trained on, whatever the program. Settings written
    earlier are replaced.

    Raises:
        RecipeError: a setting is not a name with a JSON value.
    """
    start, end = _SETTINGS
    template = re.sub(f"^{re.escape(start)}.*?{re.escape(end)}", "", template, flags=re.DOTALL)
    if not settings:
        return template
    lines = [f"{{% set {_checked(name)} = {_literal(name, value)} %}}" for name, value in settings.items()]
    return "".join((start, *lines, end, template))


def set_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Give a tokenizer its chat template, by name or as Jinja text, and its settings; None leaves it as it is.

    Raises:
        RecipeError: an unknown name (a text without braces is taken as one), or a setting that cannot be written.
        ModelError: settings for a tokenizer without a template.
    """
    if template is not None:
        tokenizer.chat_template = template if "{" in template else template_text(template)
    if not settings:
        return
    if not tokenizer.chat_template:
        raise ModelError("'chat_template_kwargs' needs a chat template, and the tokenizer has none. Give one.")
    tokenizer.chat_template = with_settings(tokenizer.get_chat_template(), settings)


def missing_markers(tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """The markers of a named template that are not tokens of this tokenizer; they are encoded as ordinary text.

    So it works too: the vocabulary and the embeddings stay as they are, a turn's end is visible text and EOS.
    """
    template = TEMPLATES.get(name)
    known = set(map(str, tokenizer.added_tokens_decoder.values()))
    return [marker for marker in (template.markers if template else ()) if marker not in known]


def add_markers(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[int, ...]:
    """Make the markers of a named template special tokens; the ids of those that were added.

    The model must then embed them, and their rows must be trained (`preftune.model.new_tokens`).
    """
    missing = missing_markers(tokenizer, name)
    if not missing:
        return ()
    tokenizer.add_tokens(missing, special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[marker] for marker in missing)


def _checked(name: str) -> str:
    if not name.isidentifier():
        raise RecipeError(f"'chat_template_kwargs' has the key {name!r}; expected a name such as enable_thinking.")
    return name


def _literal(name: str, value: Any) -> str:
    """The value as a Jinja literal."""
    match value:
        case None:
            return "none"
        case bool() | int() | float():
            return str(value).lower()
        case str():
            # a delimiter of Jinja inside a text would end it early
            return re.sub(r"[{}#%]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
        case list() | tuple():
            return f"[{', '.join(_literal(name, item) for item in value)}]"
        case dict():
            items = (f"{_literal(name, str(key))}: {_literal(name, item)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
    raise RecipeError(
        f"'chat_template_kwargs.{name}' is a {type(value).__name__}; expected a text, a number, true, false, null, or "
        "a list or mapping of them."
    )
