"""`preftune sweep`: one recipe with other values of some keys, over seeds, ranked by one measure.

A setting is one combination of values; an arm is a setting with a seed. All arms share one store of token ids and one
cache of reference log-probs, so both are made once. Arms train with the collapse watch at `stop`: what collapses ends
early and stands at the bottom of the table.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from preftune.errors import RecipeError
from preftune.experiments.arms import Arm, Outcome, Step, run_arms
from preftune.experiments.held_out import check_inputs, held_out_file, split_of, write_held_out
from preftune.experiments.together import joined
from preftune.objectives import ON_POLICY, objective_class
from preftune.recipe import Recipe, load_recipe
from preftune.recipe.values import nearest
from preftune.types import Layout

ANSWER_LOGP = "log-prob of the data's answers, nats a token"  # as `eval regress` calls it
MEASURES = ("accuracy", "likelihood", "reward", "health")
# The keys of a reference as they are where there is none.
_WITHOUT_REFERENCE = (
    "reference_model_name_or_path=null",
    "reference_model_revision=main",
    "precompute_reference=false",
    "reference_cache=null",
)
# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Plan:
    """What is run and how it is judged.

    Args:
        recipe: the file; overrides: `key=value` that hold for all arms.
        settings: what to try, a combination each.
        seeds: each setting is run with every one of them.
        folder: where all of it goes.
        measure: what ranks: `accuracy` (of the run's own implicit reward on its held-out pairs), `likelihood` (share of
            these pairs whose chosen response has the higher mean log-prob, the same for every objective), `reward` (of
            fresh answers), `health` (nats a token by which held-out answers are less likely), or the name of a metric
            of the run's summary.
        also: further measures for the table.
        minimize: a lower one is better; `health` always is.
        reward_model, prompts: what scores fresh answers, and the prompts that are answered.
        text: rows whose answers tell the health; null: the recipe's held-out rows.
        max_tokens: of a fresh answer.
        jobs: arms at a time.
        together: adapters of one seed train in one process over one base model, as far as their recipes allow it.
    """

    recipe: Path
    overrides: tuple[str, ...]
    settings: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    folder: Path
    measure: str = "accuracy"
    also: tuple[str, ...] = ()
    minimize: bool = False
    reward_model: str | None = None
    prompts: str | None = None
    text: str | None = None
    max_tokens: int = 256
    jobs: int = 1
    together: bool = False

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.measure, *self.also)))

    @property
    def held_out(self) -> tuple[Layout, ...]:
        """What the measures read of the recipe's held-out rows."""
        likelihood = (Layout.PAIRED,) if "likelihood" in self.measures else ()
        health = (Layout.SINGLE,) if "health" in self.measures and self.text is None else ()
        return (*likelihood, *health)

    @property
    def lower_is_better(self) -> bool:
        return self.minimize or self.measure == "health"


@dataclass(frozen=True)
class Ranked:
    """A setting over its seeds. values: measure -> seed -> value, of the arms that ended well."""

    settings: Mapping[str, Any]
    measure: str
    values: dict[str, dict[int, float]]
    outcomes: tuple[Outcome, ...] = field(repr=False)

    def mean_of(self, measure: str) -> float | None:
        found = self.values[measure].values()
        if not all(map(math.isfinite, found)):
            return math.nan
        return statistics.fmean(found) if found else None

    def half_of(self, measure: str) -> float | None:
        """Half of the 95 % interval of the mean; None for fewer than two seeds, or a value that is no number."""
        return half_interval(list(self.values[measure].values()))

    @property
    def mean(self) -> float | None:
        """Of the measure that ranks."""
        return self.mean_of(self.measure)

    @property
    def whole(self) -> bool:
        """Whether every seed ended well, with a number to rank by."""
        return all(one.state == "done" for one in self.outcomes) and is_number(self.mean)


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether it can be ranked by: neither absent nor what a run that has blown up leaves."""
    return value is not None and math.isfinite(value)


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of independent values; None for fewer than two, or one that is none."""
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return None
    freedom = count - 1  # from ten on by the expansion of Cornish and Fisher, within 0.1 %
    point = _T95[freedom - 1] if freedom <= len(_T95) else 1.95996 + 2.3723 / freedom + 2.823 / freedom**2
    return point * statistics.stdev(values) / math.sqrt(count)


def run_sweep(plan: Plan) -> list[Ranked]:
    """Run what is left of a sweep; returns its settings, the best first.

    Raises:
        RecipeError: a setting does not make a recipe, or the measure asks for what is not given. Nothing has run then.
        DataError: what the measures are to read cannot be read. Nothing has run then.
        Interrupted: stopped; the same call goes on.
    """
    for number, settings in enumerate(plan.settings):
        if settings in plan.settings[:number]:
            said = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise RecipeError(f"--try: {said} comes twice, and would be one run twice. Give each value once.")
    arms = [make_arm(plan, settings, seed) for settings in plan.settings for seed in plan.seeds]
    check_inputs(plan.prompts if "reward" in plan.measures else None, plan.text if "health" in plan.measures else None)
    write_held_out([load_recipe(None, yaml.safe_load(arm.recipe)) for arm in arms], plan.held_out, plan.folder)
    outcomes = run_arms(arms, plan.folder, plan.jobs, joined(arms) if plan.together else ())
    return rank(plan, outcomes)


def make_arm(plan: Plan, settings: Mapping[str, Any], seed: int) -> Arm:
    """The arm of a setting and a seed. Its name holds a hash of its recipe, so a changed recipe is another arm."""
    words = [*words_of(plan, settings), f"seed={seed}"]
    given = load_recipe(plan.recipe, words)
    words += ["save_total_limit=1", "resume_from_checkpoint=auto"]
    if given.watch and not any(word.lstrip("-").startswith("on_collapse=") for word in plan.overrides):
        words.append("on_collapse=stop")
    identity = load_recipe(plan.recipe, [*words, "output_dir=model"]).to_yaml()
    said = ",".join(f"{key}={value}" for key, value in {**settings, "seed": seed}.items())
    safe = "".join(sign if sign.isalnum() or sign in "=.,-_+" else "_" for sign in said)[:80]
    name = f"{safe}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    folder = plan.folder / "arms" / name
    words += _shared(given, plan.folder)
    recipe = load_recipe(plan.recipe, [*words, f"output_dir={folder / 'model'}"])
    return Arm(name, dict(settings), seed, recipe.to_yaml(), tuple(_steps(plan, recipe, folder)))


def words_of(plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    """A setting as overrides of the plan's recipe. What the recipe says of a reference is for objectives with one."""
    words = [*plan.overrides, *(f"{key}={_word(value)}" for key, value in settings.items())]
    objective = settings.get("objective")
    if objective is not None and not objective_class(objective).needs_reference:
        words += _WITHOUT_REFERENCE
    return words


def _shared(given: Recipe, folder: Path) -> list[str]:
    """Where all arms keep what is the same for them: token ids, and log-probs of the reference."""
    if given.streaming or given.objective in ON_POLICY:
        return []
    words = [] if given.tokens_cache else [f"tokens_cache={folder / 'tokens'}"]
    if objective_class(given.objective).needs_reference and not given.reference_cache:
        words += ["precompute_reference=true", f"reference_cache={folder / 'reference'}"]
    return words


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _steps(plan: Plan, recipe: Recipe, folder: Path) -> list[Step]:
    """Training, and what the measures ask for."""
    steps = [Step("train", ("train", str(folder / "recipe.yaml"), "--json"))]
    if "accuracy" in plan.measures and not recipe.evaluates:
        raise RecipeError(
            f"{plan.recipe}: the measure 'accuracy' is of held-out pairs, and there are none. Set eval_dataset or "
            "test_split_size, or give another --measure."
        )
    if "likelihood" in plan.measures:
        steps.append(_likelihood(plan, recipe, folder))
    if "reward" in plan.measures:
        steps += _reward(plan, folder)
    if "health" in plan.measures:
        steps.append(_health(plan, recipe, folder))
    return steps


def _likelihood(plan: Plan, recipe: Recipe, folder: Path) -> Step:
    data = str(held_out_file(recipe, Layout.PAIRED, plan.folder))
    words = ("eval", "preferences", str(folder / "model"), data, "--objective", "simpo")
    return Step("likelihood", (*words, "--max-length", str(recipe.max_length), "--json"))


def _reward(plan: Plan, folder: Path) -> list[Step]:
    if not plan.reward_model or not plan.prompts:
        raise RecipeError("The measure 'reward' needs --reward-model and --prompts: fresh answers are scored.")
    fresh, scored = map(str, _answer_files(plan, folder))
    sample = ("sample", str(folder / "model"), plan.prompts, "--output", fresh, "--seeds", "1")
    annotate = ("annotate", fresh, "--output", scored, "--reward-model", plan.reward_model)
    return [
        Step("fresh", (*sample, "--max-tokens", str(plan.max_tokens)), prints_json=False),
        Step("score", annotate, prints_json=False),
    ]


def _answer_files(plan: Plan, folder: Path) -> tuple[Path, Path]:
    """Of fresh answers and of their scores; others of each are in other files, so none is gone on with by mistake."""
    asked = f"{plan.prompts} {plan.max_tokens}"
    fresh, scored = (hashlib.sha256(said.encode()).hexdigest()[:8] for said in (asked, f"{asked} {plan.reward_model}"))
    return folder / f"fresh-{fresh}.jsonl", folder / f"scored-{scored}.jsonl"


def _health(plan: Plan, recipe: Recipe, folder: Path) -> Step:
    text, split = plan.text, "train"
    if text is None:
        text = str(held_out_file(recipe, Layout.SINGLE, plan.folder))
    else:
        split = split_of(text)
    words = ("eval", "regress", recipe.model_name_or_path, str(folder / "model"), text, "--split", split)
    return Step("health", (*words, "--max-tokens", str(plan.max_tokens), "--json"))


def rank(plan: Plan, outcomes: Sequence[Outcome]) -> list[Ranked]:
    """Settings by the mean of the measure, the best first; those with a seed that did not end well come last, as do
    those whose measure is no number.
    """
    rows = []
    for settings in plan.settings:
        own = tuple(outcome for outcome in outcomes if outcome.arm.settings == settings)
        done = [one for one in own if one.state == "done"]
        values = {name: {one.arm.seed: measured(plan, one, name) for one in done} for name in plan.measures}
        rows.append(Ranked(settings, plan.measure, values, own))
    sign = 1 if plan.lower_is_better else -1
    return sorted(rows, key=lambda row: (not row.whole, sign * row.mean if is_number(row.mean) else math.inf))


def measured(plan: Plan, outcome: Outcome, measure: str) -> float:
    """A measure of an arm that ended well.

    Raises:
        RecipeError: the run has no such metric.
    """
    if measure == "reward":
        return mean_score(_answer_files(plan, plan.folder / "arms" / outcome.arm.name)[1])
    if measure == "health":
        return health_cost(outcome.printed["health"])
    if measure == "likelihood":
        return float(outcome.printed["likelihood"]["overall"]["accuracy"]) / 100
    name = "eval_rewards/accuracies" if measure == "accuracy" else measure
    summary = outcome.printed["train"]
    metrics = {**summary, **(summary.get("metrics") or {})}
    value = metrics.get(name)
    if not isinstance(value, (int, float)):
        known = [key for key, one in metrics.items() if isinstance(one, (int, float))]
        raise RecipeError(f"--measure '{measure}' is no metric of the runs{nearest(name, known)}")
    return float(value)


def mean_score(path: Path) -> float:
    """Of the fresh answers that were scored.

    Raises:
        RecipeError: none was.
    """
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    scores = [score for row in rows for score in row["scores"] if score is not None]
    if not scores:
        raise RecipeError(f"{path}: no fresh answer has a score; all of them are empty.")
    return statistics.fmean(scores)


def health_cost(report: Mapping[str, Any]) -> float:
    """From `eval regress --json`: nats a token by which held-out answers are less likely than before training."""
    return -float(next(one["change"] for one in report["figures"] if one["name"] == ANSWER_LOGP))
