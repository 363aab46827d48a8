"""Answers of a transformers model: prompts in, token ids out, many at a time (`Engine`)."""

from __future__ import annotations

from preftune.generation.engine import Engine
from preftune.generation.request import Answer, Event, Request, Sampling

__all__ = ["Answer", "Engine", "Event", "Request", "Sampling"]
