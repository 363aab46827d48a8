"""The preference losses of TRL, computed by TRL's own trainers, beside preftune's objective for each.

    .bench-env/bin/python benchmarks/trl_losses.py    makes tests/objectives/trl_losses.json, in the peers' environment
    agreement_table()                                 the comparison in Markdown, from preftune and the json alone

Each case is one trainer with one setting. Its `compute_loss` runs on tiny random models in float64, micro-batch by
micro-batch, and the log-probs that enter the loss are held against a forward pass of one response at a time. TRL's
fused head rounds log-probs to float32 whatever the model's type; they are widened before the loss, so that the loss's
arithmetic is what is compared.

A case names the objective and the keys with which preftune gives TRL's numbers. Where preftune, given the same
settings, does something else on purpose, the case holds a departure: why, and what preftune does instead.

TRL's losses without an objective here: CPOTrainer `ipo` (IPO on average log-probs, without a reference), KTOTrainer
`apo_zero_unpaired` (KTO with z = 0), f-divergences, `use_weighting` (WPO) and `ld_alpha` (LD-DPO) of DPOTrainer.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

JSON = Path(__file__).resolve().parents[1] / "tests" / "objectives" / "trl_losses.json"
PROMPT_LENGTHS = [4, 9, 2, 6, 12, 3, 7, 5]
CHOSEN_LENGTHS = [1, 5, 12, 30, 8, 3, 20, 7]
REJECTED_LENGTHS = [4, 1, 12, 9, 25, 3, 6, 40]
MARGINS = [0.0, 0.5, 1.0, 2.0, 0.25, 3.0, 0.125, 1.5]  # of the reward model's pairs, where a case uses them
LABELS = [True, False, True, True, False, False, True, False]  # of KTO's rows
VOCABULARY, GROUPS = 61, len(LABELS)
CLOSE = 1e-5  # nats: how near the summed log-probs that TRL's float32 head gives must be to our own in float64


@dataclass
class Departure:
    """Why preftune differs, and the fields of the case that are other with it (`keys`: those that are other)."""

    why: str
    instead: dict[str, Any]


@dataclass
class Case:
    """One setting of a TRL trainer, and how preftune says the same.

    loss_type: several with + between them, where `loss_weights` mixes them; empty where the trainer has only one.
    batch: pairs in a micro-batch; the loss of TRL's step is the mean over its micro-batches.
    baseline: what preftune finds in `Feedback.baseline`, one number or one for each micro-batch.
    prompt_in_nll: put ORPO's NLL as TRL has it, over the tokens of prompts and chosen answers of a micro-batch.
    within: how far apart the losses may be, relative to their mean; 1e-6 where TRL computes in float32.
    losses: TRL's, one for each micro-batch; the run fills them in.
    """

    trainer: str
    loss_type: str
    settings: dict[str, Any]
    objective: str
    keys: dict[str, Any]
    batch: int = 1
    sft_weight: float = 0.0
    baseline: float | list[float] | None = None
    prompt_in_nll: bool = False
    within: float = 1e-12
    departure: Departure | None = None
    losses: list[float] | None = None


def dpo(loss_type: str, objective: str, settings: dict, keys: dict | None = None, batch: int = 1, **rest: Any) -> Case:
    keys = {"beta": settings["beta"]} | (keys or {})
    return Case("DPOTrainer", loss_type, settings, objective, keys, batch, **rest)


def cpo(loss_type: str, objective: str, settings: dict, keys: dict | None = None, batch: int = 1, **rest: Any) -> Case:
    keys = {"beta": settings["beta"]} | (keys or {})
    return Case("CPOTrainer", loss_type, {"cpo_alpha": 0.0} | settings, objective, keys, batch, **rest)


IN_FLOAT32 = 1e-6  # exo_pair's log of label_smoothing, ORPO's odds
SMOOTHED = {"label_smoothing": 0.1}
TRL_SIMPO = {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0}  # what loss_type "simpo" alone means
MPO = {"beta": 0.1, "loss_weights": [0.8, 0.2, 1.0]}
OUR_MPO = {"mixture": {"dpo": {"weight": 0.8, "beta": 0.1}, "bco_pair": {"weight": 0.2, "beta": 0.1}}}
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.75}
WHOLE_STEP = {"batch": GROUPS}
IGNORED_SMOOTHING = Departure(
    "TRL ignores `label_smoothing` in its sigmoid loss; ours smooths (cDPO).", {"keys": {"label_smoothing": 0.2}}
)
MEANS_IN_IPO = Departure(
    "TRL divides log-ratios by length; ours takes the paper's sums unless `normalize: length`.",
    {"keys": {"normalize": "none"}},
)
NO_REWARD_SHIFT = Departure(
    "TRL leaves out the paper's reward shift; ours subtracts the running mean reward (0 in the first step).",
    {"baseline": 0.3},
)
SORTS_MICRO_BATCHES = Departure(
    "TRL sorts within a micro-batch, so that one pair at a time is DPO; ours sorts the whole step.", WHOLE_STEP
)
AVERAGES_MICRO_BATCHES = Departure(
    "TRL averages the NLL over the tokens of a micro-batch, ours over those of the whole step.", WHOLE_STEP
)
SFT_TERM_BY_DEFAULT = Departure(
    "TRL adds 1.0·NLL unless `cpo_alpha: 0`; ours is the paper's loss, and adds an SFT term where `sft_weight` asks.",
    {"sft_weight": 0.0},
)
PROMPT_IN_NLL = Departure(
    "TRL's NLL is a mean over the tokens of a micro-batch, prompts included; ours is the paper's, over each answer.",
    {"prompt_in_nll": False},
)
ORPO: dict[str, Any] = {"prompt_in_nll": True, "within": IN_FLOAT32, "departure": PROMPT_IN_NLL}
POINT_OF_MICRO_BATCH = Departure("TRL's reference point z is of a micro-batch, ours of the whole step.", {})

CASES = [
    *(dpo("sigmoid", "dpo", {"beta": beta}) for beta in (0.1, 0.5)),
    dpo("sigmoid", "dpo", {"beta": 0.1, "label_smoothing": 0.2}, departure=IGNORED_SMOOTHING),
    *(dpo("hinge", "dpo", {"beta": beta}, {"loss_type": "hinge"}) for beta in (0.1, 0.5)),
    dpo("robust", "dpo", {"beta": 0.1} | SMOOTHED, {"loss_type": "robust"} | SMOOTHED),
    dpo("robust", "dpo", {"beta": 0.5, "label_smoothing": 0.3}, {"loss_type": "robust", "label_smoothing": 0.3}),
    *(
        Case("DPOTrainer", "ipo", {"beta": tau}, "ipo", {"tau": tau, "normalize": "length"}, departure=MEANS_IN_IPO)
        for tau in (0.1, 0.5)
    ),
    *(dpo("sigmoid_norm", "dpo_norm", {"beta": beta}) for beta in (0.5, 5.0)),
    dpo("exo_pair", "exo_pair", {"beta": 0.1, "label_smoothing": 1e-3}, {"label_smoothing": 1e-3}, within=IN_FLOAT32),
    dpo("exo_pair", "exo_pair", {"beta": 0.5, "label_smoothing": 0.2}, {"label_smoothing": 0.2}, within=IN_FLOAT32),
    *(dpo("bco_pair", "bco_pair", {"beta": beta}, baseline=0.0, departure=NO_REWARD_SHIFT) for beta in (0.1, 0.5)),
    *(dpo(name, name, {"beta": b}) for name in ("nca_pair", "sppo_hard", "apo_zero", "apo_down") for b in (0.1, 0.5)),
    dpo("discopop", "discopop", {"beta": 0.1, "discopop_tau": 0.05}, {"tau": 0.05}),
    dpo("discopop", "discopop", {"beta": 0.5, "discopop_tau": 0.5}, {"tau": 0.5}),
    dpo("aot", "aot", {"beta": 0.1}, batch=GROUPS),
    dpo("aot", "aot", {"beta": 0.5} | SMOOTHED, SMOOTHED, GROUPS),
    dpo("aot", "aot", {"beta": 0.5}, batch=2, departure=SORTS_MICRO_BATCHES),
    dpo("aot_unpaired", "aot", {"beta": 0.1}, {"loss_type": "unpaired"}, GROUPS),
    Case("DPOTrainer", "sft", {}, "sft", {}, batch=GROUPS),
    Case("DPOTrainer", "sft", {}, "sft", {}, batch=2, departure=AVERAGES_MICRO_BATCHES),
    dpo("sigmoid+sft", "dpo", {"beta": 0.1, "loss_weights": [1.0, 0.5]}, batch=GROUPS, sft_weight=0.5),
    Case("DPOTrainer", "sigmoid+bco_pair+sft", MPO, "mixture", OUR_MPO, GROUPS, sft_weight=1.0, baseline=0.0),
    cpo("simpo", "simpo", {"beta": 2.0, "simpo_gamma": 1.0}, {"gamma_beta_ratio": 0.5}),
    cpo("simpo", "simpo", {"beta": 10.0, "simpo_gamma": 3.0}, {"gamma_beta_ratio": 0.3}),
    cpo("simpo", "simpo", {"beta": 2.5, "simpo_gamma": 1.25} | SMOOTHED, {"gamma_beta_ratio": 0.5} | SMOOTHED),
    cpo("simpo", "simpo", TRL_SIMPO, {"gamma_beta_ratio": 5.0}, GROUPS, sft_weight=1.0, departure=SFT_TERM_BY_DEFAULT),
    *(
        cpo("alphapo", "alphapo", {"beta": 2.5, "simpo_gamma": 0.25} | alpha, {"gamma_beta_ratio": 0.1} | alpha)
        for alpha in ({"alpha": 0.25}, {"alpha": -0.5})
    ),
    cpo("sigmoid", "cpo", {"beta": 0.1}),
    cpo("sigmoid", "cpo", {"beta": 0.5} | SMOOTHED, SMOOTHED),
    cpo("sigmoid", "cpo", {"beta": 0.1, "cpo_alpha": 1.0}, batch=GROUPS, sft_weight=1.0),
    cpo("sigmoid", "cpo", {"beta": 0.1, "cpo_alpha": 1.0}, batch=2, sft_weight=1.0, departure=AVERAGES_MICRO_BATCHES),
    *(cpo("hinge", "cpo", {"beta": beta}, {"loss_type": "hinge"}) for beta in (0.1, 0.5)),
    Case("ORPOTrainer", "", {"beta": 0.1}, "orpo", {"beta": 0.1}, **ORPO),
    Case("ORPOTrainer", "", {"beta": 1.0}, "orpo", {"beta": 1.0}, batch=4, **ORPO),
    Case("KTOTrainer", "kto", {"beta": 0.1}, "kto", {"beta": 0.1}, GROUPS),
    Case("KTOTrainer", "kto", {"beta": 0.5} | WEIGHTS, "kto", {"beta": 0.5} | WEIGHTS, GROUPS),
    Case("KTOTrainer", "kto", {"beta": 0.1}, "kto", {"beta": 0.1}, batch=2, departure=POINT_OF_MICRO_BATCH),
    Case("RewardTrainer", "", {}, "reward", {}),
    Case("RewardTrainer", "", {"margin": True}, "reward", {"margin_scale": 1.0}),
    Case("RewardTrainer", "", {"center_rewards_coefficient": 0.05}, "reward", {"center_rewards_coefficient": 0.05}),
]


def preftune_losses(case: Case, inputs: dict, **instead: Any) -> list[float]:
    """What preftune makes of the log-probs that TRL read: one loss for each micro-batch. `instead` as in Departure."""
    from preftune.objectives import load_objective
    from preftune.objectives.base import Per
    from preftune.train.step import StepLoss
    from preftune.types import Feedback, Layout, ResponseLogps

    case = replace(case, **{**instead, "keys": {**case.keys, **instead.get("keys", {})}})
    loss = StepLoss(load_objective(case.objective, **case.keys), case.sft_weight)
    responses = 1 if loss.objective.layout in (Layout.SINGLE, Layout.UNPAIRED) else 2
    read = {
        name: torch.tensor(values, dtype=torch.float64)[:, :responses] for name, values in inputs[case.trainer].items()
    }
    totals: list[float] = []
    for start in range(0, GROUPS, case.batch):
        given = {name: values[start : start + case.batch] for name, values in read.items()}
        lengths = given["lengths"].long()
        policy = ResponseLogps(given["policy"], lengths)
        reference = ResponseLogps(given["reference"], lengths) if "reference" in given else None
        baseline = case.baseline[len(totals)] if isinstance(case.baseline, list) else case.baseline
        feedback = Feedback(
            given.get("scores", torch.zeros_like(policy.sums)),
            torch.ones_like(lengths, dtype=torch.bool),
            None if baseline is None else torch.tensor(baseline, dtype=torch.float64),
        )
        counts = {Per.GROUP: case.batch, Per.TOKEN: int(lengths[:, 0].sum())}
        total = loss.total(policy, reference, feedback, torch.ones(case.batch, dtype=torch.float64), counts)
        if case.prompt_in_nll:
            tokens = (given["lengths"] + given["prompt_lengths"])[:, 0].sum()
            total += policy.means[:, 0].mean() - (given["policy"] + given["prompt"])[:, 0].sum() / tokens
        totals.append(total.item())
    return totals


def worst_difference(case: Case, inputs: dict) -> float:
    """The largest difference of a micro-batch's loss, relative to the mean loss of the case."""
    assert case.losses
    found = preftune_losses(case, inputs)
    return max(abs(a - b) for a, b in zip(found, case.losses, strict=True)) / abs(mean(case.losses))


def departed_difference(case: Case, inputs: dict) -> float:
    """The relative difference of the step's loss where preftune does what it does instead."""
    assert case.losses and case.departure
    found = preftune_losses(case, inputs, **case.departure.instead)
    return abs(mean(found) / mean(case.losses) - 1)


def read_json(path: Path = JSON) -> tuple[dict[str, str], dict, list[Case]]:
    """Versions, inputs by trainer, cases."""
    found = json.loads(path.read_text(encoding="utf-8"))
    cases = [Case(**case) for case in found["cases"]]
    for case in cases:
        case.departure = case.departure and Departure(**case.departure)
    return found["versions"], found["inputs"], cases


def agreement_table(path: Path = JSON) -> str:
    """Markdown: one line for each loss of TRL, how well ours agrees, and what ours does otherwise on purpose."""
    versions, inputs, cases = read_json(path)
    lines: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        lines.setdefault((case.objective, case.trainer, case.loss_type), []).append(case)
    table = ["| objective | TRL | settings | agree within | departure |", "|---|---|---|---|---|"]
    for (objective, trainer, loss_type), members in sorted(lines.items()):
        agree = all(worst_difference(case, inputs) < case.within for case in members)
        within = f"{max(case.within for case in members):.0e}" if agree else "no"
        whys = list(dict.fromkeys(case.departure.why for case in members if case.departure))
        name = f"{trainer} `{loss_type}`" if loss_type else trainer
        table.append(f"| `{objective}` | {name} | {len(members)} | {within} | {' '.join(whys) or '-'} |")
    head = (
        f"TRL {versions['trl']}'s own trainers and preftune on the same log-probs, {GROUPS} pairs or rows a setting. "
        "`agree within`: relative to the mean loss, with preftune made to do as TRL does where a departure is named.\n"
    )
    return "\n".join([head, *table])


def make_json(path: Path) -> None:
    """Run all cases through TRL."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    pairs, models = build_pairs(), build_models()
    inputs: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            fused = run_case(case, build_trainer(case, pairs, models, scratch), models)
            alone = inputs_alone(case.trainer, pairs, models)
            for side, sums in fused.items():
                torch.testing.assert_close(sums, torch.tensor(alone[side], dtype=sums.dtype), rtol=0, atol=CLOSE)
            read = alone | {side: sums.tolist() for side, sums in fused.items()}
            inputs.setdefault(case.trainer, read)
            print(case.trainer, case.loss_type, case.settings, case.losses)
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(asdict(case), ensure_ascii=False) for case in CASES)
    path.write_text(
        f'{{"made_by": "benchmarks/trl_losses.py",\n"versions": {json.dumps(versions)},\n'
        f'"inputs": {json.dumps(inputs)},\n"cases": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )


def build_pairs() -> list[Any]:
    """Pairs of the lengths above; the prompt starts with BOS and the responses end with EOS."""
    from workload import BOS, EOS, FIRST_WORD, Pair

    draw = random.Random(0)

    def words(count: int) -> list[int]:
        return [draw.randrange(FIRST_WORD, VOCABULARY) for _ in range(count)]

    return [
        Pair([BOS, *words(prompt - 1)], [*words(chosen - 1), EOS], [*words(rejected - 1), EOS])
        for prompt, chosen, rejected in zip(PROMPT_LENGTHS, CHOSEN_LENGTHS, REJECTED_LENGTHS, strict=True)
    ]


def build_models() -> dict[str, Any]:
    """Small random models in float64. The policy is the reference moved a little, as it is in training."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from workload import BOS, EOS, PAD

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
    )
    torch.manual_seed(0)
    models = {"reference": LlamaForCausalLM(config).double(), "scorer": LlamaForSequenceClassification(config).double()}
    for model in models.values():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    models["policy"] = copy.deepcopy(models["reference"])
    for parameter in models["policy"].parameters():
        parameter.data += 0.08 * torch.randn_like(parameter)
    return models


def build_trainer(case: Case, pairs: list[Any], models: dict[str, Any], scratch: str) -> Any:
    """TRL's trainer with the case's settings, on these pairs as text."""
    import datasets
    import trl
    import trl.experimental.cpo
    import trl.experimental.orpo
    from worker_trl import build_tokenizer, text_row

    home = {"CPOTrainer": trl.experimental.cpo, "ORPOTrainer": trl.experimental.orpo}.get(case.trainer, trl)
    settings = dict(case.settings)
    if case.loss_type:
        settings["loss_type"] = case.loss_type.split("+") if "+" in case.loss_type else case.loss_type
    rows = [text_row(pair) for pair in pairs]
    if case.trainer == "KTOTrainer":
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
            for row, label in zip(rows, LABELS, strict=True)
        ]
    if settings.pop("margin", False):
        rows = [{**row, "margin": margin} for row, margin in zip(rows, MARGINS, strict=True)]
    arguments = getattr(home, case.trainer.replace("Trainer", "Config"))(
        output_dir=scratch,
        per_device_train_batch_size=case.batch,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        **settings,
    )
    own = copy.deepcopy(models)
    trained = own["scorer" if case.trainer == "RewardTrainer" else "policy"]
    reference = {"ref_model": own["reference"]} if case.trainer in ("DPOTrainer", "KTOTrainer") else {}
    return getattr(home, case.trainer)(
        model=trained,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=build_tokenizer(VOCABULARY),
        **reference,
    )


def run_case(case: Case, trainer: Any, models: dict[str, Any]) -> dict[str, Tensor]:
    """Fill in the losses, and KTO's z; returns the summed log-probs that a fused head gave to the loss."""
    fused = {"policy": trainer.model, "reference": trainer.ref_model} if hasattr(trainer, "ref_model") else {}
    calls = {side: widen(model) for side, model in fused.items()}
    rows, points = list(trainer.train_dataset), []
    case.losses = []
    for start in range(0, GROUPS, case.batch):
        batch = trainer.data_collator(rows[start : start + case.batch])
        with torch.no_grad():
            case.losses.append(trainer.compute_loss(trainer.model, batch).item())
        points.append(trainer._metrics["train"]["kl"][-1] if case.trainer == "KTOTrainer" else None)
    if case.trainer != "KTOTrainer":
        return {side: torch.cat([sums.view(2, -1).T for sums in seen]) for side, seen in calls.items()}

    probes = [sums_alone(models, row["prompt_ids"], row["KL_completion_ids"]) for row in rows]
    ratios = torch.tensor([policy - reference for policy, reference in probes])
    expected = ratios.view(-1, case.batch).mean(dim=1).clamp(min=0)
    torch.testing.assert_close(torch.tensor(points), expected, rtol=0, atol=CLOSE)
    case.baseline = points
    if case.departure:
        case.departure.instead = {**WHOLE_STEP, "baseline": max(ratios.mean().item(), 0.0)}
    return {side: torch.cat(seen[1::2])[:, None] for side, seen in calls.items()}  # the pass over the probes is first


def widen(model: Any) -> list[Tensor]:
    """Let the fused head's float32 log-probs go on in float64; the list fills with their sums, call by call."""
    sums: list[Tensor] = []

    def hook(module: Any, arguments: Any, output: Any) -> Any:
        output.log_probs = output.log_probs.double()
        sums.append(output.log_probs.sum(dim=1))
        return output

    model.register_forward_hook(hook)
    return sums


def inputs_alone(trainer: str, pairs: list[Any], models: dict[str, Any]) -> dict[str, list]:
    """What a trainer's losses are made of, one row a group, from one sequence at a time: no padding, no fused head."""
    groups = [(pair.prompt, [pair.chosen, pair.rejected]) for pair in pairs]
    if trainer == "KTOTrainer":
        groups = [(prompt, [both[0 if label else 1]]) for (prompt, both), label in zip(groups, LABELS, strict=True)]
    read: dict[str, list] = {"lengths": [[len(ids) for ids in responses] for _, responses in groups]}
    if trainer == "RewardTrainer":
        with torch.no_grad():
            read["policy"] = [
                [models["scorer"](torch.tensor([prompt + ids])).logits.item() for ids in responses]
                for prompt, responses in groups
            ]
        return read | {"scores": [[margin, 0.0] for margin in MARGINS]}
    sums = [[sums_alone(models, prompt, ids) for ids in responses] for prompt, responses in groups]
    read["policy"] = [[policy for policy, _ in row] for row in sums]
    if trainer in ("DPOTrainer", "KTOTrainer"):
        read["reference"] = [[reference for _, reference in row] for row in sums]
    if trainer == "KTOTrainer":
        read["scores"] = [[float(label)] for label in LABELS]
    if trainer == "ORPOTrainer":  # the first token of a prompt is predicted by nothing
        read["prompt"] = [[sums_alone(models, prompt[:1], prompt[1:])[0]] for prompt, _ in groups]
        read["prompt_lengths"] = [[len(prompt) - 1] for prompt, _ in groups]
    return read


def sums_alone(models: dict[str, Any], prompt: list[int], response: list[int]) -> tuple[float, float]:
    """log π(response | prompt) under the policy and the reference."""
    sums = []
    for name in ("policy", "reference"):
        with torch.no_grad():
            logits = models[name](torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item())
    return sums[0], sums[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=JSON, help="default: %(default)s")
    make_json(parser.parse_args().output)


if __name__ == "__main__":
    main()
