"""Wall time of one recipe to a fixed reward accuracy on real pairs: preftune against TRL's CPOTrainer.

    benchmarks/install_peers.sh                       once: TRL in an environment of its own
    python benchmarks/end_to_end.py --data FOLDER --tokenizer FOLDER     into benchmarks/results/end_to_end.*
    python benchmarks/end_to_end.py --tiny            a self test of a minute on made-up pairs, writes nothing

FOLDER holds NAME.train.jsonl and NAME.eval.jsonl files of pairs; by default those are the emoji sets and the Llama 2
tokenizer below $PREFTUNE_TEST_DATA. The model is a small random Llama with that vocabulary, or --model. Both sides
start from the same weights and text rows in the same order and run their own `train()`, with the same SimPO, AdamW,
schedule, batch and evaluation every few steps (worker_end_to_end.py). They take turns, each run in a process of its
own. The clock counts the preparation (text to ids, the trainer) and the training, not the imports and not the
evaluations, of which the two have different kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import report
from end_to_end_page import plot, render
from step import PEERS, RESULTS, listed, missing_peer, say

SIDES = ("preftune", "trl")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] }}"
    "{{ '\\n' if m['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What is the same for both sides."""

    target: float = 0.95
    epochs: int = 1
    batch: int = 16
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 10
    eval_steps: int = 10
    max_length: int = 1024
    precision: str = "bf16"
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Run:
    """One side's run: curve of (step, seconds of training, held-out accuracy), and what it had to do first."""

    side: str
    repetition: int
    prepare_seconds: float
    train_seconds: float
    curve: list[tuple[int, float, float]]
    tokens: int
    versions: dict[str, str]

    def seconds_to(self, target: float) -> float | None:
        """Preparation and training until the accuracy is there; None where it is never reached."""
        return next((self.prepare_seconds + at for _, at, accuracy in self.curve if accuracy >= target), None)


def write_rows(folder: Path, train: list[dict], held_out: list[dict], recipe: Recipe) -> None:
    """train.jsonl for the side that shuffles as it does, ordered.jsonl in that very order for the one that does not."""
    from preftune.data.plan import epoch_order

    order = [number for epoch in range(recipe.epochs) for number in epoch_order(len(train), recipe.seed, epoch)]
    write_lines(folder / "train.jsonl", train)
    write_lines(folder / "ordered.jsonl", (train[number] for number in order))
    write_lines(folder / "eval.jsonl", held_out)


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(folder: Path, split: str) -> list[dict]:
    """The pairs of all NAME.SPLIT.jsonl files, in TRL's form; rows that cannot be trained on are left out for both."""
    from tokenization import trl_rows

    from preftune.data import load_rows, to_examples

    files = sorted(folder.glob(f"*.{split}.jsonl"))
    examples = [e for file in files for e in to_examples(load_rows(file), "paired", on_bad_row="skip")]
    # a template may strip its messages, which leaves nothing of a difference in whitespace
    return trl_rows([e for e in examples if e.responses[0].split() != e.responses[1].split()])


def made_up_rows(count: int, seed: int) -> list[dict]:
    """Pairs that a model can tell apart: the chosen answer thanks, the rejected one does not."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [f"w{draw.randrange(20)}" for _ in range(6)]
        texts = {"prompt": " ".join(words), "chosen": " ".join([*words[:3], "thanks"]), "rejected": " ".join(words[3:])}
        rows.append({name: [{"role": "user" if name == "prompt" else "assistant", "content": text}]
                     for name, text in texts.items()})  # fmt: skip
    return rows


def save_start(folder: Path, tokenizer_folder: Path | None, model_folder: Path | None, tiny: bool) -> None:
    """The tokenizer with the template, and the weights both sides start from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = word_tokenizer() if tokenizer_folder is None else AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
    tokenizer.save_pretrained(folder)
    if model_folder is not None:
        AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(folder)
        return
    set_seed(0)
    hidden, layers, mlp = (32, 2, 64) if tiny else (256, 4, 704)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def word_tokenizer():
    """For the made-up rows: one token a word; newlines and colons stand for themselves."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "user", "assistant", ":", "\n", "thanks", *(f"w{n}" for n in range(20))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    splits = [
        pre_tokenizers.Split(Regex(pattern), "removed" if pattern == " +" else "isolated") for pattern in (" +", ":|\n")
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def run_side(side: str, repetition: int, recipe: Recipe, folder: Path) -> Run:
    python = PEERS / "bin" / "python" if side == "trl" else Path(sys.executable)
    script = report.ROOT / "benchmarks" / "worker_end_to_end.py"
    words = [str(python), str(script), "--side", side, "--folder", str(folder), "--recipe", json.dumps(asdict(recipe))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"end_to_end.py: {side} ended with status {done.returncode}\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["curve"] = [tuple(point) for point in found["curve"]]
    return Run(side=side, repetition=repetition, **found)


def run(arguments: argparse.Namespace, recipe: Recipe, sides: tuple[str, ...]) -> list[Run]:
    runs = []
    with tempfile.TemporaryDirectory(prefix="end-to-end-bench-") as scratch:
        folder = Path(scratch)
        if arguments.tiny:
            train, held_out = made_up_rows(96, seed=0), made_up_rows(32, seed=1)
        else:
            train, held_out = read_rows(arguments.data, "train"), read_rows(arguments.data, "eval")
            held_out = random.Random(0).sample(held_out, min(arguments.eval_rows, len(held_out)))
        write_rows(folder, train, held_out, recipe)
        save_start(folder / "start", None if arguments.tiny else arguments.tokenizer, arguments.model, arguments.tiny)
        for repetition in range(1, arguments.repeats + 1):
            turn = sides if repetition % 2 else tuple(reversed(sides))
            for side in turn:
                say(f"repetition {repetition}: {side}")
                runs.append(run_side(side, repetition, recipe, folder))
    return runs


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    data = os.environ.get("PREFTUNE_TEST_DATA")
    below = Path(data) if data else None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=below and below / "preferences" / "emoji")
    parser.add_argument("--tokenizer", type=Path, default=below and below / "tokenizers" / "llama2" / "hf")
    parser.add_argument("--model", type=Path, help="a folder with a causal language model of the same vocabulary")
    parser.add_argument("--sides", type=listed(*SIDES), help="default: both; preftune alone for --tiny")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--eval-rows", type=int, default=96, help="held-out pairs of every evaluation")
    for name in ("target", "learning_rate"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Recipe, name))
    for name in ("epochs", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=Recipe.precision)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on made-up pairs; writes only where --out says"
    )
    parser.add_argument("--out", type=Path, help=f"folder for end_to_end.md, .json and .png (default {RESULTS.name}/)")
    arguments = parser.parse_args(argv)
    if not arguments.tiny and not (arguments.data and arguments.tokenizer):
        parser.error("give --data and --tokenizer, or name their folder in PREFTUNE_TEST_DATA")
    return arguments


def build_recipe(arguments: argparse.Namespace) -> Recipe:
    chosen = {name: getattr(arguments, name) for name in ("target", "epochs", "batch", "threads", "precision")}
    if not arguments.tiny:
        return Recipe(learning_rate=arguments.learning_rate, **chosen)
    return Recipe(**{**chosen, "learning_rate": 1e-2, "batch": 8, "eval_steps": 4, "warmup_steps": 2, "max_length": 64})


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    sides = arguments.sides or (("preftune",) if arguments.tiny else SIDES)
    missing = missing_peer("end_to_end.py", sides)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    context = report.describe_run("end_to_end.py", argv)
    recipe = build_recipe(arguments)
    runs = run(arguments, recipe, sides)
    context["load_after"] = report.load_average()
    data = (
        "made-up pairs" if arguments.tiny else ", ".join(sorted(file.name for file in arguments.data.glob("*.jsonl")))
    )
    page = render(recipe, runs, context, data)
    print(page)
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        record = {**context, "data": data, "recipe": asdict(recipe), "runs": [asdict(each) for each in runs]}
        (out / "end_to_end.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "end_to_end.md").write_text(page, encoding="utf-8")
        plot(recipe, runs, out / "end_to_end.png")
        say(f"wrote {out / 'end_to_end.md'}, end_to_end.json and end_to_end.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
