"""lm-evaluation-harness (GSM8K, MMLU, ...) on a model as it was trained: its prompts, its ends, its answers' lengths.

The harness makes the tasks and the metrics; this hands it the model through its HF class. Prompts are rendered and
encoded by the chat format of training, with one BOS, and an answer ends where training's do. Needs the extra `harness`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import DataError, MissingExtraError, RecipeError
from preftune.model.ends import ending_ids
from preftune.model.load import load_model, load_tokenizer
from preftune.serve.chat import model_folder, trained_system
from preftune.types import Message

try:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise MissingExtraError("lm-evaluation-harness", "harness") from error

log = logging.getLogger(__name__)

CHAT, PLAIN = "chat template", "plain text"


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task. mean_tokens: of its answers, None where it asks for no text."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int | None
    mean_tokens: float | None


@dataclass(frozen=True)
class HarnessReport:
    """rows: of each sample the task, its number, what was asked and answered, and the answer's tokens."""

    model: str
    prompt_form: str
    version: str
    tasks: list[TaskFigure]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt_form": self.prompt_form,
            "lm_eval": self.version,
            "tasks": [asdict(figure) for figure in self.tasks],
        }


class TrainedModel(HFLM):
    """The harness's HF model, whose prompts are those of training."""

    def __init__(self, model: Any, chat: ChatFormat, batch_size: int, system: str | None = None) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is loaded already
        super().__init__(pretrained=model, tokenizer=chat.tokenizer, batch_size=batch_size)
        self.chat, self.system = chat, system
        self._own: set[str] = set()  # prompts as rendered here

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as training renders it; with a last turn of the assistant, up to its text."""
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        if self.system and all(message.role != "system" for message in messages):
            messages.insert(0, Message("system", self.system))
        begun = "" if add_generation_prompt else self.chat.mask(messages.pop().content)
        text = self.chat.prompt_text(self.chat.turns(messages)) + begun
        self._own.add(text)
        return text

    def tok_encode(self, string: str, *arguments: Any, left_truncate_len: int | None = None, **more: Any) -> list[int]:
        if string not in self._own:
            return list(super().tok_encode(string, *arguments, left_truncate_len=left_truncate_len, **more))
        return self._ids(string)[-left_truncate_len if left_truncate_len else None :]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._own.issuperset(strings):
            found = super().tok_batch_encode(strings, padding_side, left_truncate_len=left_truncate_len, **more)
            return found[0], found[1]
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(width - len(row), None) if padding_side == "left" else slice(len(row))
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        return ids, mask

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._own:
            pair = super()._encode_pair(context, continuation)
            return pair[0], pair[1]
        continuation = self.chat.mask(continuation)
        ids, whole = self._ids(context), self._ids(context + continuation)
        if whole[: len(ids)] == ids:
            return ids, whole[len(ids) :]
        return ids, self.chat.encode([continuation])[0]  # a token over both: the prompt's ids stay

    def _ids(self, text: str) -> list[int]:
        return self.chat.with_bos(self.chat.encode([text])[0])


def run_harness(
    model: str,
    tasks: Sequence[str],
    *,
    include: Sequence[str | Path] = (),
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    plain: bool = False,
    seed: int = 0,
) -> HarnessReport:
    """Run tasks of the harness, or YAML tasks of one's own.

    Args:
        model: a folder (a run too) or a hub name.
        tasks: names, groups, or YAML files.
        include: folders with tasks of one's own.
        fewshot: examples in front, as turns of the conversation; None leaves it to the task.
        limit: samples of each task at most.
        plain: without the chat template, as base models are asked.

    Raises:
        RecipeError: a task is unknown.
        DataError: its data cannot be read.
        ModelError: the model cannot be loaded.
    """
    folder = Path(model).expanduser()
    place = str(model_folder(folder)) if folder.is_dir() else model
    manager = _manager(tasks, list(map(str, include)))
    chat = read_chat_format(load_tokenizer(place))
    form = PLAIN if plain or chat.template is None else CHAT
    system = None if form == PLAIN else trained_system(Path(place))
    wrapped = TrainedModel(_load(place, chat), chat, batch_size, system)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=fewshot,
            limit=limit,
            apply_chat_template=form == CHAT,
            fewshot_as_multiturn=form == CHAT,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = str(error).split("\n")[0] or type(error).__name__
        raise DataError(
            f"{', '.join(tasks)}: lm-evaluation-harness stopped ({said}). Check the task and its data."
        ) from error
    rows = _rows(found["samples"], chat)
    return HarnessReport(model, form, lm_eval.__version__, _figures(found, rows), rows)


def _manager(tasks: Sequence[str], folders: list[str]) -> TaskManager:
    """An index that has all tasks; of the folders alone where that will do, as the harness's own takes a while to read.

    Raises:
        RecipeError: a task is in neither.
    """
    for with_its_own in (False, True):
        manager = TaskManager(include_path=folders or None, include_defaults=with_its_own)
        unknown = [task for task in tasks if task not in manager.task_index and not Path(task).is_file()]
        if not unknown:
            return manager
    raise RecipeError(f"'{unknown[0]}' is no task of lm-evaluation-harness {lm_eval.__version__}, and no YAML file. "
                      "Give a name that it has, or the folder of the task with --include.")  # fmt: skip


def _load(place: str, chat: ChatFormat) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_model(place, torch_dtype="float32" if device == "cpu" else "auto")
    model = model.to(device).eval()
    model.generation_config.eos_token_id = list(ending_ids(model, chat))
    return model


def _figures(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[TaskFigure]:
    """Every metric of every task and group, in the harness's order."""
    figures = []
    for task, metrics in found["results"].items():
        counts = found.get("n-samples", {}).get(task)
        tokens = [row["tokens"] for row in rows if row["task"] == task and row["tokens"] is not None]
        for name, value in metrics.items():
            metric, _, kept = name.partition(",")
            if not isinstance(value, int | float) or isinstance(value, bool) or metric.endswith("_stderr") or not kept:
                continue
            error = metrics.get(f"{metric}_stderr,{kept}")
            figures.append(
                TaskFigure(
                    task=task,
                    metric=metric if kept == "none" else f"{metric}, {kept}",
                    value=float(value),
                    standard_error=float(error) if isinstance(error, int | float) else None,
                    samples=counts["effective"] if counts else None,
                    mean_tokens=sum(tokens) / len(tokens) if tokens else None,
                )
            )
    return figures


def _rows(samples: Mapping[str, Iterable[Mapping[str, Any]]], chat: ChatFormat) -> list[dict[str, Any]]:
    """Each sample once, whatever number of filters read its answer."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for task, found in samples.items():
        for sample in found:
            first = sample["resps"][0][0]
            said = first if isinstance(first, str) else None  # log-probs of choices are no text
            prompt = sample["arguments"]["gen_args_0"]["arg_0"] if isinstance(sample["arguments"], dict) else \
                sample["arguments"][0][0]  # fmt: skip
            rows.setdefault((task, sample["doc_id"]), {
                "task": task, "number": sample["doc_id"], "prompt": chat.unmask(prompt),
                "target": str(sample["target"]), "answer": said,
                "tokens": None if said is None else len(chat.encode([said])[0]),
            })  # fmt: skip
    return list(rows.values())
