"""Answers of a model: prompts in, token ids out, many at a time (`Engine`; `build_engine` takes vLLM's too)."""

from __future__ import annotations

from preftune.generation.engine import Engine
from preftune.generation.request import Answer, Event, Request, Sampling
from preftune.generation.vllm_engine import VllmEngine, VllmModel, build_engine, load_vllm

__all__ = [
    "Answer",
    "Engine",
    "Event",
    "Request",
    "Sampling",
    "VllmEngine",
    "VllmModel",
    "build_engine",
    "load_vllm",
]
