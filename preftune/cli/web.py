"""`preftune web`: a page in the browser to talk to models, look at runs and data, and start a training."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.chat import count
from preftune.errors import RecipeError

LOGIN = "PREFTUNE_WEB_AUTH"  # in place of --auth, which other users of the machine can read

_EPILOG = f"""examples:
  preftune web runs/demo/sft runs/demo --data runs/demo/data
  preftune web runs/simpo --data pairs.jsonl --votes votes.jsonl
  preftune web --runs runs --host 0.0.0.0 --auth ann:secret --allow-host trainer.example.org

MODEL is a run folder, checkpoint, model, adapter or hub name. The first two stand side by side; of a single one that is
a run, what it was trained from stands beside it. All models of the runs can be chosen in the page.

The page is for this machine alone; for others it needs --host and --auth (or {LOGIN}), and encryption by a proxy or an
ssh tunnel. It reads what lies below --runs and --data, and writes there and to --votes.
"""


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C.

    Raises:
        RecipeError: an option is wrong, or the port is taken.
        MissingExtraError: the extra 'web' is not installed.
    """
    options = _parser().parse_args(arguments)
    login = options.auth or os.environ.get(LOGIN)
    if login is not None and not all(login.partition(":")):
        raise RecipeError("--auth must be user:password, with neither of them empty.")
    for path in options.data:
        if not path.exists():
            raise RecipeError(f"--data: there is no '{path}'. Name a file of rows, or a folder with such files.")
    from preftune.web.app import Settings, serve
    from preftune.web.places import Places

    settings = Settings(
        host=options.host,
        port=options.port,
        names=frozenset(name.lower() for name in options.allow_host),
        login=login,
        loaded=options.loaded,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    if not settings.is_loopback and login is None:
        raise RecipeError(f"--host {options.host} opens the page to others. Add --auth user:password.")
    _check_port(options.host, options.port)
    print(f"http://{options.host}:{options.port}  (Ctrl-C ends it)", flush=True)
    serve(Places(options.runs, tuple(options.data), tuple(options.models), options.votes), settings)
    return 0


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError as error:
            raise RecipeError(f"{host}:{port} cannot be used ({error.strerror}). Name another --port.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune web",
        description="A page to compare two models, follow runs, browse preference data and start a training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", help="models to talk to, the one before training first")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder of the runs (runs)")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="PATH", help="data files, or their folders")
    parser.add_argument(
        "--votes", type=Path, default=Path("votes.jsonl"), metavar="FILE", help="where votes go (votes.jsonl)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=count(1), default=7860, metavar="N", help="(7860)")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help=f"who may use the page; also by {LOGIN}")
    parser.add_argument(
        "--allow-host", nargs="+", default=[], metavar="NAME", help="names of this machine that browsers may use"
    )
    parser.add_argument("--loaded", type=count(2), default=2, metavar="N", help="models held in memory (2)")
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are pickle files (*.bin)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    return parser
