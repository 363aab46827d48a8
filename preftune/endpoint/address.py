"""Addresses of servers, checked, and a key that a server says again, taken out of what is kept or shown of it."""

from __future__ import annotations

import json

import httpx

from preftune.errors import RecipeError

HIDDEN = "[key]"
SHORTEST = 4  # characters of a key that is one; shorter ones stand for "no key"
SHORTEST_IN_ANSWERS = 16  # a shorter one, such as EMPTY or placeholder, may be a word of an answer


def check_address(address: str) -> str:
    """The address without a slash at its end.

    Raises:
        RecipeError: it is none, or holds a password, or goes on behind the path.
    """
    try:
        found = httpx.URL(address)
    except httpx.InvalidURL as error:
        found, why = None, f" ({error})"
    else:
        why = ""
    if found is not None and found.userinfo:
        raise RecipeError(
            f"The address of an endpoint at '{found.host}' has a user or a password in it, which logs would show. Put "
            "a key into the environment variable, and leave it out of the address."
        )
    wrong_port = found is not None and found.port is not None and not 0 < found.port < 65536
    if found is None or found.scheme not in ("http", "https") or not found.host or wrong_port:
        shown = address.rpartition("@")[2]
        raise RecipeError(f"'{shown}' is no address of an endpoint{why}; expected one like http://localhost:8000/v1.")
    if found.query or found.fragment:
        raise RecipeError(
            f"'{found.scheme}://{found.netloc.decode()}{found.path}?...': the address of an endpoint ends with its "
            "path, such as /v1. Leave out what follows."
        )
    return address.rstrip("/")


def hide_key(data: bytes, key: str, shortest: int = SHORTEST) -> bytes:
    """What a server sent, with [key] where it has our key, as it stands or as JSON writes it."""
    if len(key) < shortest:
        return data
    written = json.dumps(key)[1:-1]
    for form in dict.fromkeys((key, written, written.replace("/", "\\/"))):
        data = data.replace(form.encode(), HIDDEN.encode())
    return data
