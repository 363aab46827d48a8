"""All CPU benchmarks, one after the other, each into benchmarks/results/: what `make bench` runs.

    benchmarks/install_peers.sh                          once: TRL and Liger in an environment of their own
    python benchmarks/run_all.py                         all of them, on a machine that does nothing else
    python benchmarks/run_all.py --only step,growth      some of them
    python benchmarks/run_all.py --tiny                  their self tests, which write nothing

What needs real data (end_to_end, tokenization, objectives) takes it from the folder named in PREFTUNE_TEST_DATA, and is
left out with a line where none is named. A benchmark that fails does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from report import ROOT
from step import PEERS, listed, say

HERE = Path(__file__).resolve().parent
EMOJI = "preferences/emoji"
ULTRAFEEDBACK = "preferences/ultrafeedback/flat_train.train.jsonl.gz"


@dataclass(frozen=True)
class Part:
    """One script with its arguments; `{data}` stands for the folder of real data."""

    script: str
    arguments: tuple[str, ...] = ()
    in_peers: bool = False
    has_tiny: bool = False

    @property
    def needs_data(self) -> bool:
        return any("{data}" in word for word in self.arguments)

    def command(self, tiny: bool, data: str | None) -> list[str]:
        python = str(PEERS / "bin" / "python") if self.in_peers else sys.executable
        words = ("--tiny",) if tiny else tuple(word.format(data=data) for word in self.arguments)
        return [python, str(HERE / self.script), *words]


PARTS = {
    "step": Part("step.py", has_tiny=True),
    "growth": Part("growth.py", has_tiny=True),
    "compile": Part("compile.py", has_tiny=True),
    "end_to_end": Part(
        "end_to_end.py",
        ("--data", "{data}/" + EMOJI, "--tokenizer", "{data}/tokenizers/llama2/hf"),
        has_tiny=True,
    ),
    "tokenization": Part(
        "tokenization.py",
        ("--tokenizer", "{data}/tokenizers/llama3/hf", "--data", "{data}/" + ULTRAFEEDBACK, "--write"),
        in_peers=True,
    ),
    "objectives": Part(
        "objectives.py",
        ("--model", "{data}/models/stories260K-llama", "--data", "{data}/" + EMOJI, "--sets", "dpo_emoji_english_gpt"),
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=listed(*PARTS), default=tuple(PARTS))
    parser.add_argument("--tiny", action="store_true", help="the self tests of those that have one")
    asked = parser.parse_args(argv)
    data = os.environ.get("PREFTUNE_TEST_DATA")
    failed = []
    for name in asked.only:
        part = PARTS[name]
        if asked.tiny and not part.has_tiny:
            continue
        if part.needs_data and not asked.tiny and not data:
            say(f"{name}: left out, it needs the folder of real data in PREFTUNE_TEST_DATA")
            continue
        say(f"{name} starts")
        started = time.monotonic()
        code = subprocess.run(part.command(asked.tiny, data), cwd=ROOT, check=False).returncode
        say(f"{name}: {'done' if code == 0 else f'failed with {code}'} after {time.monotonic() - started:.0f} s")
        failed += [name] if code else []
    if failed:
        print(f"run_all.py: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
