"""llama.cpp itself, reading a file and answering on loopback."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def served(file: Path, context: int = 256):
    """A client of llama.cpp's own server with this model, its cache in float32."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup = context, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.use_jinja = True
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=120) as client:
        yield client
    del server


def ids_of(client: httpx.Client, text: str, add_special: bool = False) -> list[int]:
    asked = {"content": text, "add_special": add_special, "parse_special": True}
    return client.post("/tokenize", json=asked).raise_for_status().json()["tokens"]


def greedy(client: httpx.Client, ids: list[int], count: int) -> tuple[list[int], list[dict[int, float]]]:
    """The tokens that follow these ids, and the best log-probs at each."""
    asked = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": 5, "cache_prompt": False,
             "return_tokens": True, "ignore_eos": False, "samplers": ["temperature"]}  # fmt: skip
    said = client.post("/completion", json=asked).raise_for_status().json()
    best = [{top["id"]: top["logprob"] for top in token["top_logprobs"]} for token in said["completion_probabilities"]]
    return said["tokens"], best
