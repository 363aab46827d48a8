"""Every objective, trained on the same real pairs from the same small model, with the same number of steps.

    python benchmarks/objectives.py --model MODEL --data FOLDER            the table, into benchmarks/results/
    python benchmarks/objectives.py --model MODEL --data FOLDER --objectives simpo,dpo --seeds 0

MODEL is a folder with a causal language model, FOLDER holds NAME.train.jsonl and NAME.eval.jsonl files of pairs without
bad rows. What is measured before and after training, on the held-out pairs:

accuracy   share of pairs whose chosen response has the higher reward, by the objective's own reward. Under a reference
           every reward is 0 at the start, and a tie counts as wrong; the start is given as chance, 50. KTO's margin is
           the mean reward of its desirable rows above that of the undesirable ones, and its accuracy is taken over the
           pairs that the rows were split from. SFT is judged by its NLL.
margin     reward of the chosen above the rejected response, in units of the objective.
log-prob   change of the summed log-prob of the chosen and of the rejected responses, nats.
length     change of the mean length of sampled answers to held-out prompts, tokens.

Peak memory is of the whole process, less what it had before the first step of the first seed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import report

RESULTS = report.ROOT / "benchmarks" / "results"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{{ '\\n' if m['role'] == 'user' else eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
LEARNING_RATE = 2e-3  # of a model with 260 thousand weights


@dataclass(frozen=True)
class Plan:
    """What is the same for all objectives."""

    model: str
    data: str
    sets: tuple[str, ...]
    epochs: int
    batch: int
    rows: int | None
    prompts: int


def run(plan: Plan, name: str, seed: int) -> dict[str, float]:
    """Train once; the figures before and after."""
    import torch
    from transformers import set_seed

    from preftune import PreferenceTrainer
    from preftune.data import load_preferences, tokenize_examples
    from preftune.model.heads import load_reward_model
    from preftune.model.load import load_model, load_tokenizer
    from preftune.objectives import load_objective
    from preftune.objectives.base import Reads
    from preftune.train.arguments import PreferenceArguments
    from preftune.types import Layout

    torch.set_num_threads(1)
    set_seed(seed)
    objective = load_objective(name)
    tokenizer = load_tokenizer(plan.model, chat_template=TEMPLATE)
    scores = objective.reads == Reads.SCORES
    model = load_reward_model(plan.model) if scores else load_model(plan.model)
    longest = model.config.max_position_embeddings

    def groups(split: str, layout: Layout) -> list:
        files = [f"{plan.data}/{name}.{split}.jsonl" for name in plan.sets]
        examples = [e for file in files for e in load_preferences(file, layout=layout)]
        found, _ = tokenize_examples(examples, tokenizer, max_length=longest)
        return random.Random(0).sample(found, plan.rows) if split == "train" and plan.rows else found

    train = groups("train", objective.layout)
    held_out = groups("eval", objective.layout)
    pairs = groups("eval", Layout.PAIRED)
    with tempfile.TemporaryDirectory() as folder:
        args = PreferenceArguments(
            output_dir=folder,
            per_device_train_batch_size=plan.batch,
            num_train_epochs=plan.epochs,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_steps=10_000,
            disable_tqdm=True,
        )
        trainer = PreferenceTrainer(
            model,
            args,
            objective=objective,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            sft_weight=objective.published_sft_weight,
            sft_normalization=objective.published_sft_normalization,
        )
        before = measure(trainer, pairs, tokenizer, plan, seed)
        started, memory = time.process_time(), peak_mib()
        trainer.train()
        seconds = time.process_time() - started
        after = measure(trainer, pairs, tokenizer, plan, seed)
    return {
        **{f"{key}_before": value for key, value in before.items()},
        **{f"{key}_after": value for key, value in after.items()},
        "seconds": seconds,
        "peak_mib": peak_mib() - memory,
    }


def measure(trainer, pairs, tokenizer, plan: Plan, seed: int) -> dict[str, float]:
    """Held-out figures of the model as it stands."""
    from preftune.objectives.base import Reads
    from preftune.types import Layout

    objective = trainer.loss.objective
    found = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    figures = {
        "nll": found.get("nll", float("nan")),
        "margin": found.get("rewards/margins", float("nan")),
        "accuracy": 100 * found.get("rewards/accuracies", float("nan")),
        "chosen": found.get("logps/chosen", found.get("logps/response", float("nan"))),
        "rejected": found.get("logps/rejected", float("nan")),
    }
    if objective.layout == Layout.UNPAIRED:
        figures["accuracy"] = pair_accuracy(trainer, pairs)
    if objective.reads == Reads.LOGPS:
        figures["length"] = mean_length(trainer.model, tokenizer, pairs[: plan.prompts], seed)
    return figures


def pair_accuracy(trainer, pairs) -> float:
    """Percent of held-out pairs with the higher log-ratio (policy over reference) on the chosen response."""
    import torch

    from preftune.data.pack import pack

    right = 0
    trainer.model.eval()
    with torch.no_grad():
        for start in range(0, len(pairs), 16):
            batch = pack(pairs[start : start + 16])
            ratio = trainer.model(batch=batch).sums - trainer.reference(batch).sums
            right += (ratio[:, 0] > ratio[:, 1]).sum().item()
    return 100 * right / len(pairs)


def mean_length(model, tokenizer, pairs, seed: int) -> float:
    """Tokens of a sampled answer, the end included, at most 128."""
    import torch

    torch.manual_seed(seed)
    model.eval()
    width = max(len(pair.prompt_ids) for pair in pairs)
    ids = torch.tensor([[0] * (width - len(pair.prompt_ids)) + pair.prompt_ids for pair in pairs])
    real = torch.tensor([[0] * (width - len(pair.prompt_ids)) + [1] * len(pair.prompt_ids) for pair in pairs])
    ended = tokenizer.eos_token_id
    out = model.generate(ids, attention_mask=real, do_sample=True, max_new_tokens=128, pad_token_id=ended)
    answers = out[:, width:]
    return ((answers != ended).sum() + (answers == ended).any(dim=1).sum()).item() / len(pairs)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", help="comma-separated names of the sets; all in FOLDER by default")
    parser.add_argument("--objectives", help="comma-separated; all by default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, help="of the training set; all by default")
    parser.add_argument("--prompts", type=int, default=32, help="held-out prompts that are answered")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", metavar="OBJECTIVE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sets = sorted(path.name.removesuffix(".train.jsonl") for path in Path(options.data).glob("*.train.jsonl"))
    sets = [name for name in sets if name in options.sets.split(",")] if options.sets else sets
    plan = Plan(options.model, options.data, tuple(sets), options.epochs, options.batch, options.rows, options.prompts)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.one:
        print(json.dumps([run(plan, options.one, seed) for seed in seeds]))
        return
    from preftune.objectives import objective_names

    names = options.objectives.split(",") if options.objectives else objective_names()
    context = report.describe_run("objectives.py", None)
    found = run_all(names, options.jobs)
    context["load_after"] = report.load_average()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "objectives.json").write_text(
        json.dumps({**context, "objectives": found}, indent=1) + "\n", encoding="utf-8"
    )
    (options.out / "objectives.md").write_text(page(found, plan, seeds, context), encoding="utf-8")
    print(page(found, plan, seeds, context))


def run_all(names: list[str], jobs: int) -> dict[str, list[dict[str, float]]]:
    """Each objective in a process of its own, `jobs` at a time."""

    def run_one(name: str) -> list[dict[str, float]]:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found}", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(names, pool.map(run_one, names), strict=True))


def page(found: dict[str, list[dict[str, float]]], plan: Plan, seeds: list[int], context: dict) -> str:
    """The table as Markdown."""
    from preftune.objectives import objective_class

    def mean(runs: list[dict[str, float]], key: str) -> float:
        return statistics.fmean(run.get(key, float("nan")) for run in runs)

    def change(runs: list[dict[str, float]], key: str) -> str:
        difference = mean(runs, f"{key}_after") - mean(runs, f"{key}_before")
        return "" if difference != difference else f"{difference:+.1f}"

    lines = []
    for name, runs in found.items():
        referenced = objective_class(name)().needs_reference
        before = 50.0 if referenced else mean(runs, "accuracy_before")
        after = mean(runs, "accuracy_after")
        accuracy = ["", "", ""] if after != after else [f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"]
        nll = f"{mean(runs, 'nll_before'):.2f} to {mean(runs, 'nll_after'):.2f}"
        margin = mean(runs, "margin_after")
        cells = [
            f"`{name}`",
            *accuracy,
            "" if margin != margin else f"{margin:.3g}",
            "" if "nan" in nll else nll,
            change(runs, "chosen"),
            change(runs, "rejected"),
            change(runs, "length"),
            f"{mean(runs, 'seconds'):.0f}",
            f"{runs[0]['peak_mib']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Every objective on the same pairs",
            "",
            f"{plan.rows or 'All'} training rows, epochs: {plan.epochs}, steps of {plan.batch}, learning rate "
            f"{LEARNING_RATE:g}, all else by default; mean of seeds {', '.join(map(str, seeds))}. Held-out pairs. What "
            "the columns mean is said in `benchmarks/objectives.py`. With a reference all rewards are 0 at the start, "
            "and 50 stands for chance.",
            "",
            "| objective | accuracy before | after | change | margin | NLL per token | chosen log-prob "
            "| rejected log-prob | length | CPU seconds | peak MiB |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Model: `{Path(plan.model).name}`, data: {', '.join(f'`{name}`' for name in plan.sets)}. "
            "One thread a run.",
            "",
            *report.heading(context, threads=1),
            "",
        ]
    )


if __name__ == "__main__":
    main()
