"""Counts and times of a server in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass
class Histogram:
    """How often a time in seconds fell below each of `SECONDS`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    @property
    def mean(self) -> float:
        return self.total / max(sum(self.counts), 1)

    def lines(self, name: str) -> list[str]:
        below, lines = 0, []
        for limit, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{limit}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


@dataclass
class Metrics:
    """One server's."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    request_seconds: Histogram = field(default_factory=Histogram)
    first_token_seconds: Histogram = field(default_factory=Histogram)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    disconnects: int = 0

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page; `gauges` are name to explanation and value."""
        counters = {
            "prompt_tokens_total": ("Tokens of prompts that were answered.", self.prompt_tokens),
            "generated_tokens_total": ("Tokens that were generated and handed on.", self.generated_tokens),
            "disconnects_total": ("Requests whose client left before the end.", self.disconnects),
        }
        lines = _head("requests_total", "Requests, by path and status.", "counter")
        lines += [
            f'preftune_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, (said, value) in values.items():
                lines += [*_head(name, said, kind), f"preftune_{name} {value}"]
        for name, said, histogram in (
            ("request_seconds", "From a request to the end of its answer.", self.request_seconds),
            ("first_token_seconds", "From a request to its first token.", self.first_token_seconds),
        ):
            lines += [*_head(name, said, "histogram"), *histogram.lines(f"preftune_{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, said: str, kind: str) -> list[str]:
    return [f"# HELP preftune_{name} {said}", f"# TYPE preftune_{name} {kind}"]
