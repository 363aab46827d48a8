"""The page of gpu.py: backends, speed and MFU, memory by phase, kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import report
from shapes import useful_flops
from workload import padded_tokens, response_tokens, useful_tokens

if TYPE_CHECKING:
    from gpu import GpuPlan, GpuResults, GpuSample

GOAL_MFU = 0.55  # of 8B on one GPU
OURS = "packed"


def render(plan: GpuPlan, results: GpuResults, context: dict[str, Any]) -> str:
    """Markdown."""
    peak = f"{results.peak_flops / 1e12:.0f}" if results.peak_flops else "not listed"
    lines = ["# One optimizer step on a GPU", "", *report.heading(context, threads=2), ""]
    lines += [
        f"{results.device}: {peak} TFLOP/s by its data sheet, {results.measured_flops / 1e12:.3g} measured in bare "
        f"products. Llama of {plan.shape.parameters / 1e9:.3g} B parameters (hidden {plan.shape.hidden}, "
        f"{plan.shape.layers} layers, vocabulary {plan.shape.vocab}), {plan.precision}, optimizer {plan.optimizer}, "
        f"gradient checkpointing {'on' if plan.checkpointing else 'off'}; {plan.pairs} pairs a step, micro-batches of "
        f"{plan.tokens} packed tokens or {plan.per_device} padded pairs.",
        "",
        "## Attention backends",
        "",
        backends_table(results.verdicts),
        "",
        "Gaps: largest difference from float64 under a written-out mask, in units of the largest value.",
        "",
        "## Speed",
        "",
        speed_table(plan, results),
        "",
        f"MFU: useful operations (prompt once, head on scored rows, attention to what is seen) by the data sheet's "
        f"rate; the goal of 8B on one GPU is {GOAL_MFU:.0%}. Times: medians of {plan.repeats} after a dropped one.",
        "",
        "Batches (useful / response / padded tokens): " + "; ".join(_batches(plan)) + ".",
        "",
        "## Memory by phase, GiB",
        "",
        memory_table(results.samples),
        "",
        "State: before the step. Others: the highest in any such phase of the step. On a CPU, of the whole process.",
        "",
        "## Kernels, share of their time",
        "",
        kernels_table(results.samples),
        "",
    ]
    lines += [*_longest_kernels(results.samples), "## Versions", ""]
    for design, versions in results.versions.items():
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append("; ".join([f"- {design}: {named}", *results.notes[design]]))
    return "\n".join(lines) + "\n"


def backends_table(verdicts: list[dict[str, Any]]) -> str:
    words = {True: "right", False: "WRONG"}
    rows = []
    for found in verdicts:
        ran = found["right"] is not None
        gaps = [f"{found[name]:.1e}" if ran else "" for name in ("output_gap", "gradient_gap", "allowed")]
        verdict = words[found["right"]] if ran else found["reason"]
        rows.append([found["backend"], found["dtype"], str(found["window"] or "none"), *gaps, verdict])
    return report.markdown_table(["backend", "type", "window", "output", "gradients", "allowed", ""], rows)


def speed_table(plan: GpuPlan, results: GpuResults) -> str:
    ours = {sample.mix: sample.median for sample in results.samples if sample.design == OURS and sample.seconds}
    header = ["mix", "design", "s", "pairs/s", "tokens/s", "useful TFLOP/s", "MFU", "of measured"]
    header += [f"{OURS} is times as fast", "loss", "peak GiB", ""]
    rows = []
    for sample in results.samples:
        if not sample.seconds:
            rows.append([sample.mix, sample.design, *[""] * 9, sample.failed])
            continue
        rate = useful_rate(plan, sample)
        batches = [plan.batch(sample.mix, number) for number in range(1, len(sample.seconds) + 1)]
        tokens = sum(useful_tokens(batch) for batch in batches)
        rows.append(
            [
                sample.mix,
                sample.design,
                f"{sample.median:.3g}",
                f"{plan.pairs / sample.median:.3g}",
                f"{tokens / sum(sample.seconds):.0f}",
                f"{rate / 1e12:.3g}",
                f"{rate / results.peak_flops:.1%}" if results.peak_flops else "",
                f"{rate / results.measured_flops:.1%}",
                f"{sample.median / ours[sample.mix]:.2f}" if sample.mix in ours else "",
                f"{sum(sample.losses) / len(sample.losses):.4f}",
                f"{sample.peak_gib:.2f}",
                sample.failed,
            ]
        )
    return report.markdown_table(header, rows)


def useful_rate(plan: GpuPlan, sample: GpuSample) -> float:
    """Useful FLOPs a second, over all repetitions."""
    batches = (plan.batch(sample.mix, number) for number in range(1, len(sample.seconds) + 1))
    return sum(useful_flops(plan.shape, batch) for batch in batches) / sum(sample.seconds)


def memory_table(samples: list[GpuSample]) -> str:
    names = ("forward", "backward", "update")
    rows = []
    for sample in samples:
        if sample.memory:
            phases = sample.memory["phases"]
            highest = [max(p["peak_gib"] for p in phases if p["name"] == name) for name in names]
            seconds = [sum(p["seconds"] for p in phases if p["name"] == name) for name in names]
            cells = [f"{sample.memory['state_gib']:.2f}", *(f"{value:.2f}" for value in highest)]
            rows.append([sample.mix, sample.design, *cells, *(f"{value:.3g}" for value in seconds)])
    return report.markdown_table(["mix", "design", "state", *names, *(f"{name} s" for name in names)], rows)


def kernels_table(samples: list[GpuSample]) -> str:
    measured = [sample for sample in samples if sample.profile]
    families = list(dict.fromkeys(name for sample in measured for name in sample.profile["families"]))
    rows = []
    for sample in measured:
        found = sample.profile["families"]
        total = sum(found.values()) or 1.0
        shares = [f"{found.get(name, 0.0) / total:.0%}" for name in families]
        rows.append([sample.mix, sample.design, f"{total:.0f}", *shares])
    return report.markdown_table(["mix", "design", "ms", *families], rows)


def _longest_kernels(samples: list[GpuSample]) -> list[str]:
    lines = []
    for sample in samples:
        if sample.design == OURS and sample.profile:
            rows = [[k["name"].replace("|", "/"), f"{k['ms']:.1f}", str(k["calls"])] for k in sample.profile["kernels"]]
            table = report.markdown_table(["kernel", "ms", "calls"], rows)
            lines += [f"### The longest of {OURS}, {sample.mix}", "", table, ""]
    return lines


def _batches(plan: GpuPlan) -> list[str]:
    found = []
    for mix in plan.mixes:
        batch = plan.batch(mix, 1)
        found.append(f"{mix} {useful_tokens(batch)} / {response_tokens(batch)} / {padded_tokens(batch)}")
    return found
