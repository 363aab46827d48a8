"""The page of results: what was run where, and the tables."""

from __future__ import annotations

from collections.abc import Iterator

import report
from goals import GOAL_PAIRS, goals_table
from plan import Plan, Results
from workload import ModelSize, padded_tokens, response_tokens, useful_tokens


def render(plan: Plan, results: Results, context: dict) -> str:
    """The page: what was run where, then the tables."""
    lines = [
        "# One optimizer step",
        "",
        *report.heading(context, plan.threads),
        "",
        f"Llama, hidden {plan.size.hidden}, {plan.size.layers} layers, {plan.size.heads} heads, mlp {plan.size.mlp}, "
        f"untied vocabulary {plan.size.vocab}; {plan.pairs} pairs a step; forward, backward, clipping, fused AdamW; "
        "float32 weights, bf16 is autocast. SimPO, same weights, same tokens, no gradient checkpointing.",
        "",
    ]
    goals = goals_table(results) if plan.size == ModelSize() else ""  # of a self test they say nothing
    if goals:
        lines += ["## Goals", "", goals, "", _of_the_goals(plan), ""]
    if results.steps:
        lines += [*_speed_section(plan, results), ""]
    if results.memory:
        lines += [*_memory_section(plan, results), ""]
    lines += ["## Versions", ""]
    for design, versions in results.versions.items():
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append("; ".join([f"- {design}: {named}", *results.notes[design]]))
    return "\n".join(lines) + "\n"


def _of_the_goals(plan: Plan) -> str:
    stated = f"The goals of speed are stated for {GOAL_PAIRS} pairs a step"
    measured = "as here" if plan.pairs == GOAL_PAIRS else f"and {plan.pairs} were measured"
    return f"{stated}, {measured}. Found: the median over the repetitions, wall clock."


def _speed_section(plan: Plan, results: Results) -> list[str]:
    lines = ["## Speed", "", report.speed_table(results.steps, plan.baseline), ""]
    lines += [
        f"{plan.repeats} repetition(s) after a dropped warm-up{_of_the_takes(plan)}. Tokens are useful ones: each "
        "prompt once, each response once. Speed-up: all repetitions together, and in brackets the median and each. "
        "Floor: the time of the matrix products no design can avoid, at the best rate measured in the same repetition "
        "(attention and everything elementwise counted as nothing).",
        "",
        f"Largest difference between two designs' losses on one batch: {_spread(results)}.",
        "",
        "Batches (useful / response / padded tokens): " + "; ".join(_batch_sizes(plan)) + ".",
        "",
        report.rates_table(results.floors),
    ]
    added = {sample.design for sample in results.steps if sample.added_tokens}
    if added:
        lines += ["", f"Fed more tokens than the pairs have: {', '.join(sorted(added))} (see step.json)."]
    return lines


def _of_the_takes(plan: Plan) -> str:
    return f", each gone through {plan.takes} times, the quickest counting" if plan.takes > 1 else ""


def _spread(results: Results) -> str:
    return ", ".join(f"{precision} {spread:.1e}" for precision, spread in report.loss_spread(results.steps).items())


def _batch_sizes(plan: Plan) -> Iterator[str]:
    for mix in plan.mixes:
        for repetition in range(1, plan.repeats + 1):
            batch = plan.batch(mix, repetition)
            yield f"{mix} {repetition}: {useful_tokens(batch)} / {response_tokens(batch)} / {padded_tokens(batch)}"


def _memory_section(plan: Plan, results: Results) -> list[str]:
    lines = ["## Peak memory above the training state", "", report.memory_table(results.memory, plan.baseline), ""]
    lines.append(
        "Peak resident memory of one step above weights, gradients, moments and libraries, each in a process of its "
        "own, one run each. Gradients `new`: a step of one micro-batch, which makes them. `from before`: they are "
        "there already, as in every micro-batch but the first when gradients are accumulated."
    )
    if not all(sample.peak_was_reset for sample in results.memory):
        lines.append("The peak could not be reset on this system: it is that of the whole process, loading included.")
    return lines
