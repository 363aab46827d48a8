"""`preftune serve` (also `preftune deploy`): an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.chat import count, number

_EPILOG = """examples:
  preftune serve runs/simpo
  preftune serve models/base --adapter terse=runs/terse --adapter kind=runs/kind
  preftune serve runs/simpo --host 0.0.0.0 --api-key-env SERVE_KEY
  preftune serve runs/reward                     # a reward model: /v1/score

MODEL is a run folder, a checkpoint, a model, an adapter (its base model is found by its config), a reward model, or a
hub name. Template, stop tokens and the system text of training come with it. Every OpenAI client talks to it:
base_url http://127.0.0.1:8000/v1, and as model the name of the folder or what --name says. Ctrl-C or SIGTERM ends it in
order, a second one at once.
"""


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal comes.

    Raises:
        PreftuneError: the model cannot be loaded, or the address cannot be listened at.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    names = [name for name, _ in options.adapter]
    if len(names) != len(set(names)):
        parser.error("--adapter: a name is there twice")
    key = _key(parser, options)
    from preftune.api.server import LOOPBACK, bind, is_loopback, serve

    if key is None and not is_loopback(options.host) and not options.no_api_key:
        parser.error(
            f"--host {options.host}: whoever reaches this machine could use the model. Add --api-key-env or "
            "--api-key-file, or --no-api-key if that is meant."
        )
    listener = bind(options.host, options.port)  # before the model is loaded: a port in use is said at once
    from preftune.api.door import Rules
    from preftune.api.served import open_shelf
    from preftune.api.service import Limits, Service

    shelf = open_shelf(
        options.model,
        name=options.name,
        adapters=dict(options.adapter),
        system=options.system,
        score=options.score,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        engine=options.engine,
    )
    limits = Limits(options.max_prompt_tokens, options.max_tokens, options.queue, options.slots)
    hosts = LOOPBACK | {options.host} if key is None and is_loopback(options.host) else None
    rules = Rules(key, hosts, int(options.max_body_mib * 2**20), options.patience)
    service = Service(shelf, limits)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    said = "with an API key" if key is not None else "without an API key"
    print(f"{', '.join(shelf.names)} at {url}, {said}. Ctrl-C ends it.", flush=True)
    serve(service, listener, rules, grace=options.grace)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune serve",
        description="An OpenAI-compatible server: chat and text completions, or the scores of a reward model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, checkpoint, model, adapter or hub name")
    parser.add_argument("--name", help="what requests call it (the last part of its path, or the hub name)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=_adapter,
        metavar="NAME=PATH",
        help="a LoRA adapter of the same base model, under a name of its own; several times for several",
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what writes the answers (transformers; vllm with the extra vllm)",
    )
    parser.add_argument("--system", metavar="TEXT", help="of conversations that have none; by default that of training")
    parser.add_argument("--score", action="store_true", help="MODEL is a reward model, where its files do not say so")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (8000)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--api-key-env", metavar="VARIABLE", help="requests must bring the key that it holds")
    keys.add_argument("--api-key-file", metavar="FILE", help="requests must bring the key in the first line of FILE")
    keys.add_argument("--no-api-key", action="store_true", help="no key, also where others reach this address")
    parser.add_argument("--slots", type=count(1), default=32, help="answers written at the same time (32)")
    parser.add_argument("--queue", type=count(0), default=64, help="answers that may wait; more get 429 (64)")
    parser.add_argument("--max-tokens", type=count(1), default=4096, help="longest answer, in tokens (4096)")
    parser.add_argument("--max-prompt-tokens", type=count(1), help="longest prompt (what the model reads)")
    parser.add_argument("--max-body-mib", type=number(1e-3), default=4.0, help="largest body of a request (4)")
    parser.add_argument(
        "--patience", type=number(0.1), default=30.0, help="seconds for a body to come in and a piece to be taken (30)"
    )
    parser.add_argument(
        "--grace", type=number(0), default=30.0, help="seconds that running answers have after Ctrl-C or SIGTERM (30)"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are pickle files (*.bin)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return parser


def _adapter(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH such as terse=runs/terse, found {text!r}")
    return name, place


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"expected a port between 0 and 65535, found {text}")
    return value


def _key(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str | None:
    """The key, which is never written anywhere."""
    if options.api_key_env is not None:
        where, key = f"--api-key-env: {options.api_key_env}", os.environ.get(options.api_key_env, "")
    elif options.api_key_file is not None:
        where = f"--api-key-file: '{options.api_key_file}'"
        try:
            key = Path(options.api_key_file).expanduser().read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as cause:
            parser.error(f"{where} cannot be read ({getattr(cause, 'strerror', None) or 'it is no text'})")
    else:
        return None
    if not key.strip():
        parser.error(f"{where} holds no key")
    return key.strip()
