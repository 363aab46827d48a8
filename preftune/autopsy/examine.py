"""A run folder -> what its margins say of its pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from preftune.autopsy.checkpoints import score_checkpoints
from preftune.autopsy.findings import GAINED, LOST, NEVER, LengthFit, fit_length, kind
from preftune.autopsy.neighbours import Contradiction, Texts, find_contradictions
from preftune.autopsy.rows import find_examples
from preftune.autopsy.trajectories import Key, Trajectory, read_trajectories
from preftune.errors import DataError
from preftune.recipe import Recipe, load_recipe
from preftune.train.data import load_examples
from preftune.types import Example

logger = logging.getLogger(__name__)
CONTRADICT, LENGTH = "contradict", "length"
LISTS = (NEVER, LOST, GAINED, CONTRADICT, LENGTH)
DROPS = {"never": NEVER, "flip": LOST, "contradict": CONTRADICT, "length": LENGTH}  # --drop word -> list


@dataclass(frozen=True)
class Autopsy:
    """Of one run.

    pairs: all of them, the lowest mean margin first; lists: by name, places in `pairs`, in the same order.
    examples: the data of the run, or none of a streamed one; places: where in it each pair stands.
    contradictions: by place in `pairs`. scored: with checkpoints, not in training; other_data: rows of another file.
    """

    run: Path
    recipe: Recipe
    pairs: list[Trajectory]
    lists: dict[str, list[int]]
    length: LengthFit
    contradictions: dict[int, Contradiction] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    places: dict[Key, list[int]] = field(default_factory=dict)
    scored: bool = False
    other_data: bool = False

    @cached_property
    def names(self) -> list[list[str]]:
        """The lists that each pair is on."""
        names: list[list[str]] = [[] for _ in self.pairs]
        for name, places in self.lists.items():
            for place in places:
                names[place].append(name)
        return names

    def example(self, pair: int) -> Example | None:
        """The text of a pair, where it is known."""
        places = self.places.get(self.pairs[pair].key)
        return self.examples[places[0]] if places else None


def examine(run: str | Path, *, checkpoints: bool = False, data: str | None = None) -> Autopsy:
    """Read the margins of a run and look at its pairs.

    Args:
        run: the output_dir of `preftune train`.
        checkpoints: take the margins under the models that it has left, not those of training.
        data: other rows to score so.

    Raises:
        DataError: there are no margins, or the data cannot be read any more.
        RecipeError: checkpoints of an objective that they cannot be scored for.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise DataError(f"{folder}: no recipe.yaml there; expected a run, the output_dir of `preftune train`.")
    recipe = load_recipe(folder / "recipe.yaml")
    scored = checkpoints or data is not None
    if scored:
        pairs, examples = score_checkpoints(folder, recipe, data)
    else:
        pairs = read_trajectories(folder)
        examples = [] if recipe.streaming else load_examples(recipe, recipe.dataset, "train")
    pairs = sorted(pairs, key=lambda pair: pair.mean)
    places = find_examples(recipe, pairs, examples) if examples else {}
    lost = [pair for pair in pairs if pair.key not in places]
    if examples and lost:
        raise DataError(
            f"{lost[0]}: {len(lost)} of the {len(pairs)} pairs that were trained on are not in the data any more, this "
            "is the first. Put the data back as it was."
        )
    if recipe.streaming and not scored:
        logger.info("The run read a stream, which is not read again: no texts, no neighbours, nothing to drop from.")
    against = _contradictions([examples[places[pair.key][0]] for pair in pairs] if examples else [])
    length = fit_length(pairs)
    kinds = [kind(pair) for pair in pairs]
    lists = {name: [n for n, own in enumerate(kinds) if own == name] for name in (NEVER, LOST, GAINED)}
    lists[CONTRADICT] = sorted(against)
    lists[LENGTH] = [n for n, pair in enumerate(pairs) if length.alone(pair)]
    return Autopsy(folder, recipe, pairs, lists, length, against, examples, places, scored, data is not None)


def _contradictions(examples: Sequence[Example]) -> dict[int, Contradiction]:
    return find_contradictions([
        Texts(
            "\n".join(f"{turn.role}: {turn.content}" for turn in example.prompt),
            example.responses[0],
            example.responses[-1],
        )
        for example in examples
    ])  # fmt: skip
