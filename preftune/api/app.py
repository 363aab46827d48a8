"""The routes: OpenAI's models, chat and text completions, scores of a reward model, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from preftune.errors import DataError, MissingExtraError, ModelError, PreftuneError

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("preftune serve", "serve") from error

from preftune.api.answers import Writer
from preftune.api.batch import BusyError, StoppedError
from preftune.api.door import Refusal, error_body
from preftune.api.schema import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Health,
    Model,
    ModelList,
    ScoreAnswer,
    ScoreRequest,
)
from preftune.api.service import Asked, Service, ask_chat, ask_completions, ask_score

T = TypeVar("T")


def build_app(service: Service) -> FastAPI:
    """The application without its door."""
    app = FastAPI(title="preftune serve", docs_url=None, redoc_url=None, lifespan=partial(_life, service))
    _answer_errors(app, service)
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)
    }
    stream = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}

    @app.get("/health", response_model=Health, responses={503: {"model": Health}, 403: {"model": ErrorAnswer}})
    async def health() -> Response:
        status = "stopping" if service.batch.stopping else "ok" if service.batch.alive else "failed"
        return Json({"status": status}, status_code=200 if status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: failures[401], 403: failures[403]})
    async def metrics() -> Response:
        text = service.metrics.text(_gauges(service))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=ModelList, responses={401: failures[401], 403: failures[403]})
    async def models() -> Response:
        return Json(ModelList(data=[Model(id=name, created=service.created) for name in service.shelf.names]))

    @app.get("/v1/models/{name:path}", response_model=Model, responses={n: failures[n] for n in (401, 403, 404)})
    async def model(name: str) -> Response:
        if name not in service.shelf.names:
            raise service.unknown(name)
        return Json(Model(id=name, created=service.created))

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: stream, **failures})
    async def chat(body: ChatRequest, request: Request) -> Response:
        answers = await ask_chat(service, body)
        return await _respond(service, request, Writer(answers, True, _wants_usage(body)), bool(body.stream))

    @app.post("/v1/completions", response_model=Completion, responses={200: stream, **failures})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        answers = await ask_completions(service, body)
        return await _respond(service, request, Writer(answers, False, _wants_usage(body)), bool(body.stream))

    @app.post("/v1/score", response_model=ScoreAnswer, responses=failures)
    async def score(body: ScoreRequest, request: Request) -> Response:
        scores = await _until_gone(request, ask_score(service, body))
        if scores is None:
            return Response(status_code=499)
        return Json(ScoreAnswer(model=body.model, scores=scores.values[0], cut=scores.cut))

    app.openapi = partial(_document, app, app.openapi)  # type: ignore[method-assign]
    return app


# --- an answer


class Json(JSONResponse):
    """ASCII: what a client sent may come back in an error, and not all of it has UTF-8 bytes."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content.model_dump() if hasattr(content, "model_dump") else content).encode()


class EventStream(StreamingResponse):
    """Server-sent events; whatever ends them, the slots are free again."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._leave = leave

    async def __call__(self, *asgi: Any) -> None:
        try:
            await super().__call__(*asgi)
        finally:
            self._leave()


async def _respond(service: Service, request: Request, writer: Writer, stream: bool) -> Response:
    if stream:
        return EventStream(writer.events(lambda cause: _failure(service, cause)[1]), writer.answers.leave)
    try:
        whole = await _until_gone(request, writer.whole())
    finally:
        writer.answers.leave()
    return Response(status_code=499) if whole is None else Json(whole)  # 499: nobody reads it


async def _until_gone(request: Request, work: Awaitable[T]) -> T | None:
    """The result, or None as soon as the client has left."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    done, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({done, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await done if done.done() else None
    finally:
        done.cancel()
        leaving.cancel()


def _wants_usage(body: Asked) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


# --- errors


def _failure(service: Service, cause: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of what went wrong."""
    if isinstance(cause, Refusal):
        return cause.status, cause.body, cause.headers
    if isinstance(cause, BusyError):
        return 429, error_body(429, str(cause), "queue_full"), {"retry-after": str(service.retry_after())}
    if isinstance(cause, StoppedError):
        return 503, error_body(503, str(cause), "shutting_down"), {"retry-after": str(service.retry_after())}
    if isinstance(cause, DataError):
        return 400, error_body(400, str(cause), "invalid_value"), {}
    said = str(cause) if isinstance(cause, ModelError) else "The server made a mistake; its log says more."
    return 500, error_body(500, said), {}


def _answer_errors(app: FastAPI, service: Service) -> None:
    async def failed(request: Request, cause: Exception) -> Response:
        status, body, headers = _failure(service, cause)
        return Json(body, status_code=status, headers=headers)

    async def malformed(request: Request, cause: Exception) -> Response:
        assert isinstance(cause, RequestValidationError)
        first = cause.errors()[0]
        where = "" if first["type"] == "json_invalid" else ".".join(str(part) for part in first["loc"][1:])
        line = f"{f'{where!r}: ' if where else 'the body: '}{first['msg']}"
        if first["type"] == "extra_forbidden":
            line = f"{where!r} is not understood here. Leave it out."
        if first["type"] == "json_invalid":
            line = f"The body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}."
        return Json(error_body(400, line, "invalid_value", where or None), status_code=400)

    async def no_route(request: Request, cause: Exception) -> Response:
        assert isinstance(cause, HTTPException)
        return Json(error_body(cause.status_code, str(cause.detail)), cause.status_code, dict(cause.headers or {}))

    for kind, answer in (
        (Refusal, failed),
        (PreftuneError, failed),
        (RequestValidationError, malformed),
        (HTTPException, no_route),
    ):
        app.add_exception_handler(kind, answer)


# --- the rest


@asynccontextmanager
async def _life(service: Service, app: FastAPI) -> AsyncIterator[None]:
    service.batch.start()
    yield
    service.batch.stop()


def _gauges(service: Service) -> dict[str, tuple[str, float]]:
    batch = service.batch
    return {
        "answers_running": ("Answers that are written in this moment.", batch.running),
        "answers_open": ("Answers that are written or wait.", batch.load),
        "slots": ("Answers that are written at the same time, at most.", batch.slots),
    }


def _document(app: FastAPI, original: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document; a body that is wrong gets 400 here, where FastAPI writes 422."""
    if app.openapi_schema is None:
        for path in original()["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
    return original()
