"""The page as an ASGI application, and the server around it. The extra 'web' is needed from here on."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import MissingExtraError, PreftuneError
from preftune.web.places import Places

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, Response
    from starlette.concurrency import run_in_threadpool
    from starlette.staticfiles import StaticFiles
except ImportError:
    raise MissingExtraError("The web page", "web") from None

from preftune.web.api import State, build_router
from preftune.web.browse import Browser
from preftune.web.guard import Guard, Json, refuse
from preftune.web.jobs import Jobs
from preftune.web.talk import Voices
from preftune.web.votes import Votes

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Settings:
    """How the page is served.

    Args:
        names: host names it may be asked for by, beside localhost and addresses.
        login: `user:password`, or None.
        loaded: models that are held at the same time.
        allow_pickle, trust_remote_code: as for `preftune chat`.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    names: frozenset[str] = frozenset()
    login: str | None = None
    loaded: int = 2
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def build_app(places: Places, settings: Settings) -> Guard:
    """The page with its guard."""
    voices = Voices(settings.loaded, settings.allow_pickle, settings.trust_remote_code)
    state = State(places, voices, Votes(places.votes), Jobs(places.runs), Browser())
    token = secrets.token_urlsafe(24)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(state.jobs.close)

    app = FastAPI(lifespan=lifespan, default_response_class=Json, openapi_url=None, docs_url=None, redoc_url=None)
    page = (STATIC / "index.html").read_text(encoding="utf-8").replace("{{token}}", token)

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.exception_handler(PreftuneError)
    def wrong(request: Request, error: PreftuneError) -> Response:
        return refuse(400, f"{type(error).__name__}: {error}")

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refuse(422, f"'{first['loc'][-1]}': {first['msg']}.")

    app.include_router(build_router(state))
    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, token=token, names=settings.names, login=settings.login)


def serve(places: Places, settings: Settings) -> None:
    """Serve the page until Ctrl-C or SIGTERM; a training that it started saves and ends with it."""
    app: Any = build_app(places, settings)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
