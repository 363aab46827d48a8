"""The requests of the page: JSON in, JSON out; answers of models as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from preftune.errors import PreftuneError
from preftune.objectives import objective_names
from preftune.serve.chat import Sampling
from preftune.types import Message
from preftune.web.browse import Asked, Browser
from preftune.web.form import build_form, resolve_form
from preftune.web.jobs import Jobs
from preftune.web.places import Places
from preftune.web.runs import list_runs, show_run
from preftune.web.talk import Voices
from preftune.web.votes import Answered, Votes

log = logging.getLogger(__name__)
QUESTIONS = (  # the first two are those that are asked before and after SimPO in its published best practice
    "你是谁",
    "西湖醋鱼怎么做",
    "Who are you?",
    "How do I cook West Lake vinegar fish?",
    "What is the capital of France?",
    "我今天很累，怎么办？",
)
LONGEST = 100_000  # characters of a text
ALIVE = 1.0  # seconds after which a silent stream looks whether anybody listens


@dataclass
class State:
    """What the requests share."""

    places: Places
    voices: Voices
    votes: Votes
    jobs: Jobs
    browser: Browser


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=LONGEST)


class Side(BaseModel):
    model: str
    turns: list[Turn] = Field(default=[], max_length=200)


class Question(BaseModel):
    """system: empty is that of training, '-' none."""

    question: str = Field(min_length=1, max_length=LONGEST)
    sides: list[Side] = Field(min_length=1, max_length=2)
    system: str = Field(default="", max_length=LONGEST)
    temperature: float = Field(default=0.7, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, ge=1, le=32768)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class Vote(BaseModel):
    id: str
    better: Literal[0, 1]


class Filled(BaseModel):
    name: str
    values: dict[str, Annotated[str, Field(max_length=LONGEST)]]


def build_router(state: State) -> APIRouter:
    """The requests, over the shared state."""
    router = APIRouter(prefix="/api")
    _add_chat(router, state)
    _add_looks(router, state)
    _add_training(router, state)
    return router


def _add_chat(router: APIRouter, state: State) -> None:
    @router.get("/models")
    def models() -> dict[str, Any]:
        places = state.places
        return {"models": places.model_names(), "pair": places.pair(), "questions": QUESTIONS, **_votes(state)}

    @router.post("/ask")
    async def ask(question: Question, request: Request) -> StreamingResponse:
        names = [state.places.find_model(side.model) for side in question.sides]
        return StreamingResponse(_answers(state, question, names, request), media_type="text/event-stream")

    @router.post("/vote")
    def vote(cast: Vote) -> dict[str, Any]:
        return {"row": state.votes.vote(cast.id, cast.better), **_votes(state)}


def _votes(state: State) -> dict[str, Any]:
    return {"votes": state.votes.count(), "votes_file": str(state.votes.path)}


def _add_looks(router: APIRouter, state: State) -> None:
    @router.get("/runs")
    def runs() -> dict[str, Any]:
        return {"folder": str(state.places.runs), "runs": list_runs(state.places)}

    @router.get("/run")
    def run(name: str) -> dict[str, Any]:
        return show_run(state.places.find_run(name))

    @router.get("/files")
    def files() -> dict[str, Any]:
        return {"files": list(state.places.data_files()), "objectives": objective_names()}

    @router.get("/rows")
    def rows(
        file: str,
        model: str = "",
        objective: str = "simpo",
        rows: Annotated[int, Field(ge=1, le=100_000)] = 1000,
        max_length: Annotated[int, Field(ge=8, le=1_000_000)] = 1024,
        columns: str = "",
        page: Annotated[int, Field(ge=0)] = 0,
    ) -> dict[str, Any]:
        path = state.places.find_data(file)
        found = state.places.find_model(model) if model else ""
        return state.browser.page(path, Asked(file, found, objective, rows, max_length, columns), page)


def _add_training(router: APIRouter, state: State) -> None:
    @router.get("/form")
    def form(objective: str = "simpo") -> dict[str, Any]:
        return {
            "groups": build_form(objective),
            "models": state.places.model_names(),
            "files": list(state.places.data_files()),
        }

    @router.post("/recipe")
    def recipe(filled: Filled) -> dict[str, Any]:
        try:
            text, _ = resolve_form(state.places, filled.name, filled.values)
        except PreftuneError as error:  # a form that is being filled in, no failure
            return {"yaml": "", "command": "", "wrong": f"{type(error).__name__}: {error}"}
        return {"yaml": text, "command": state.jobs.shown_command(filled.name), "wrong": ""}

    @router.get("/training")
    def training() -> dict[str, Any]:
        return state.jobs.state()

    @router.post("/training/start")
    def start(filled: Filled) -> dict[str, Any]:
        text, _ = resolve_form(state.places, filled.name, filled.values)
        state.jobs.start(filled.name, text)
        return state.jobs.state()

    @router.post("/training/stop")
    def stop() -> dict[str, Any]:
        state.jobs.stop()
        return state.jobs.state()


# --- the stream of answers


async def _answers(state: State, question: Question, names: Sequence[str], request: Request) -> AsyncIterator[str]:
    """Events of all sides as they come. When nobody listens any more, the models stop."""
    loop, events, stopped = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None](), threading.Event()
    seed = random.randrange(2**31) if question.seed is None else question.seed
    key, sides = state.votes.open(names)
    yield _event({"id": key, "seed": seed})

    def say(event: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    for number, side in enumerate(sides):
        work = (state.voices, question, seed, number, side, say, stopped)
        threading.Thread(target=_answer, args=work, daemon=True).start()
    try:
        writing = len(sides)
        while writing and not await request.is_disconnected():
            try:
                event = await asyncio.wait_for(events.get(), ALIVE)
            except TimeoutError:
                continue
            writing -= event is None
            if event is not None:
                yield _event(event)
    finally:
        stopped.set()


def _answer(
    voices: Voices,
    question: Question,
    seed: int,
    number: int,
    side: Answered,
    say: Callable[[dict[str, Any] | None], None],
    stopped: threading.Event,
) -> None:
    """Write one side's answer, in a thread of its own; ends with None."""
    asked = question.sides[number]
    turns = [Message(turn.role, turn.content) for turn in asked.turns] + [Message("user", question.question)]
    sampling = Sampling(
        temperature=question.temperature,
        top_p=question.top_p,
        top_k=question.top_k,
        max_tokens=question.max_tokens,
        seed=seed,
    )
    try:
        say({"side": number, "state": "loading"})
        for piece in voices.find(side.model).answer(turns, question.system, sampling, stopped):
            side.prompt, side.text = piece.prompt or side.prompt, side.text + piece.text
            side.finish = piece.finish
            say({"side": number, **_shown(piece)})
    except PreftuneError as error:
        say({"side": number, "error": f"{type(error).__name__}: {error}"})
    except Exception as error:  # whatever a model's code does, the page says it and the server lives on
        log.error("The answer of %s: %s: %s", side.model, type(error).__name__, error)
        say({"side": number, "error": f"{type(error).__name__}: {error}"})
    finally:
        say(None)


def _shown(piece: Any) -> dict[str, Any]:
    found = {"text": piece.text, "tokens": piece.tokens, "prompt_tokens": piece.prompt_tokens, "finish": piece.finish}
    return {key: value for key, value in found.items() if value} or {"state": "writing"}


def _event(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
