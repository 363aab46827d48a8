"""Tokens a second of sampling n answers to each prompt: the engine beside `model.generate`, in one run.

    python benchmarks/sampling.py                     table, into benchmarks/results/sampling.*
    python benchmarks/sampling.py --prompts 8         a shorter run
    python benchmarks/sampling.py --tiny --out FOLDER a self test of seconds

The other side is what people write: for each prompt `model.generate(num_return_sequences=n)`. Both sample at
temperature 0.8 and top-p 0.95, in float32, from the same weights in one process, and take turns.

A random model neither stops nor prefers anything. So its head is sharpened, until the nucleus is as small as that of a
trained model (else top-p would be most of the work), and gets a bias that makes the ending token come now and then:
answers of both sides end by themselves, at lengths from 1 to the limit. Counted are tokens up to the ending one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(report.ROOT))

import torch
from step import RESULTS, listed, say
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging
from weights import save_model
from workload import EOS, FIRST_WORD, PAD, ModelSize

from preftune.generation import Engine, Request, Sampling

SIZES = {
    "22M": ModelSize(hidden=320, layers=6, heads=5, mlp=880, vocab=24_000),
    "58M": ModelSize(hidden=512, layers=8, heads=8, mlp=1408, vocab=32_000),
    "tiny": ModelSize(hidden=32, layers=2, heads=2, mlp=64, vocab=256),
}
LOGIT_SPREAD = 4.0  # standard deviation: at temperature 0.8 some tens of tokens then hold 95 % of the probability
ENDING_SHARE = 0.025  # probability of the ending token; the nucleus cuts it off at times, so answers are longer than 40
SETTINGS = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}


@dataclass(frozen=True)
class Sample:
    """One side's turn."""

    side: str
    size: str
    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def load_model(size: ModelSize, folder: Path) -> Any:
    """A random model whose answers end by themselves."""
    save_model(size, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    head = torch.nn.Linear(size.hidden, size.vocab)
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(FIRST_WORD, size.vocab, (4, 64), generator=generator)
    with torch.inference_mode():
        head.weight.copy_(model.lm_head.weight * (LOGIT_SPREAD / model(some).logits.std()))
        head.bias.zero_()
        model.lm_head = head
        logits = model(some).logits / SETTINGS["temperature"]
        logits[..., EOS] = -torch.inf
        wanted = logits.logsumexp(-1).mean().item() + math.log(ENDING_SHARE)
        head.weight[EOS] = 0
        head.bias[EOS] = wanted * SETTINGS["temperature"]
    return model


def draw_prompts(count: int, vocab: int, shrink: int) -> list[list[int]]:
    """Of 20 to 600 tokens, median 120, log-normal."""
    draw = random.Random(0)
    lengths = [min(600, max(20, draw.lognormvariate(math.log(120), 0.9))) for _ in range(count)]
    return [[draw.randrange(FIRST_WORD, vocab) for _ in range(round(length) // shrink)] for length in lengths]


def with_engine(model: Any, prompts: list[list[int]], answers: int, longest: int, slots: int) -> int:
    """Tokens written."""
    sampling = Sampling(longest, ends=(EOS,), **SETTINGS)
    requests = [Request(number, prompt, tuple(range(answers)), sampling) for number, prompt in enumerate(prompts)]
    return sum(len(answer.ids) for _, _, answer in Engine(model, slots=slots).run(requests))


def with_generate(model: Any, prompts: list[list[int]], answers: int, longest: int) -> int:
    """Tokens written up to the ending ones, prompt by prompt."""
    tokens = 0
    for number, prompt in enumerate(prompts):
        torch.manual_seed(number)
        given = torch.tensor([prompt])
        rows = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=True,
            num_return_sequences=answers,
            max_new_tokens=longest,
            eos_token_id=EOS,
            pad_token_id=PAD,
            **SETTINGS,
        )[:, len(prompt) :].tolist()
        tokens += sum(row.index(EOS) + 1 if EOS in row else len(row) for row in rows)
    return tokens


def measure(asked: argparse.Namespace) -> Iterator[Sample]:
    """The sides take turns, in both orders."""
    for name in asked.sizes:
        size = SIZES[name]
        with tempfile.TemporaryDirectory(prefix="sampling-bench-") as folder:
            model = load_model(size, Path(folder))
        prompts = draw_prompts(asked.prompts, size.vocab, asked.shrink)
        longest = asked.longest // asked.shrink
        sides = {
            "engine": partial(with_engine, model, prompts, asked.answers, longest, asked.slots),
            "generate": partial(with_generate, model, prompts, asked.answers, longest),
        }
        for turn in range(asked.repeats):
            for side in sorted(sides, reverse=turn % 2 == 1):
                started = time.perf_counter()
                tokens = sides[side]()
                sample = Sample(side, name, time.perf_counter() - started, tokens)
                say(f"{name} {side}: {tokens} tokens in {sample.seconds:.1f} s, {sample.rate:.0f} a second")
                yield sample


def render(samples: list[Sample]) -> str:
    """One row a model; the speed-up is the median over the repetitions, each in brackets."""
    rows = []
    for size in dict.fromkeys(sample.size for sample in samples):
        rates = {
            side: [sample.rate for sample in samples if (sample.size, sample.side) == (size, side)]
            for side in ("generate", "engine")
        }
        ratios = [ours / theirs for ours, theirs in zip(rates["engine"], rates["generate"], strict=True)]
        shown = [f"{statistics.median(rates[side]):.0f}" for side in ("generate", "engine")]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append([size, *shown, f"{statistics.median(ratios):.2f} ({each})"])
    return report.markdown_table(["model", "generate, tokens/s", "engine, tokens/s", "speed-up"], rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=listed(*SIZES), default=("22M", "58M"))
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--answers", type=int, default=5)
    parser.add_argument("--longest", type=int, default=400, metavar="TOKENS", help="of an answer")
    parser.add_argument("--slots", type=int, default=32, help="of the engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="a self test of seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    asked.shrink = 1
    if asked.tiny:
        asked.sizes, asked.prompts, asked.repeats, asked.shrink = ("tiny",), 4, 1, 10
    context = report.describe_run("sampling.py", argv)
    torch.set_num_threads(asked.threads)
    transformers_logging.set_verbosity_error()
    samples = list(measure(asked))
    context["load_after"] = report.load_average()
    settings = {name: getattr(asked, name) for name in ("prompts", "answers", "longest", "slots", "threads")}
    written = statistics.fmean(sample.tokens for sample in samples) / (asked.prompts * asked.answers)
    page = [
        "# Sampling",
        "",
        *report.heading(context, asked.threads),
        "",
        f"{asked.answers} answers to each of {asked.prompts} prompts of mixed lengths, at most {asked.longest} tokens "
        f"({written:.0f} on average), in float32: the engine with {asked.slots} slots, and prompt by prompt "
        f"`model.generate(num_return_sequences={asked.answers})`. The sides take turns in one process.",
        "",
        render(samples),
    ]
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "sampling.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    record = {**context, **settings, "samples": [asdict(sample) for sample in samples]}
    (asked.out / "sampling.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
