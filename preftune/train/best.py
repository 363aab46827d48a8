"""The best checkpoint of a run: the metric it is chosen by exists, and the run says which one its model is.

Trainer compares at every evaluation, keeps the best checkpoint beside the newest one, and with
`load_best_model_at_end` loads it when training is over.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from preftune.errors import RecipeError
from preftune.recipe.values import nearest
from preftune.train.checkpoint import step_of

logger = logging.getLogger(__name__)
LOWER_IS_BETTER = ("loss", "nll")
LOOKED_AT = 16  # groups that are evaluated to learn the names


def lower_is_better(metric: str) -> bool:
    """Of a metric whose direction nobody has said; Trainer knows of losses alone."""
    return metric.endswith(LOWER_IS_BETTER)


class CheckMetric(TrainerCallback):
    """Refuses a `metric_for_best_model` that no evaluation will have, before the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.metric_for_best_model is None or args.eval_strategy == "no":
            return
        wanted = args.metric_for_best_model.removeprefix("eval_")
        if wanted == "loss" and set(self.trainer._eval_sets()) == {""}:  # which every evaluation of one set has
            return
        known = self._names()
        if wanted not in known:
            raise RecipeError(
                f"'metric_for_best_model' {wanted} is none of the metrics of an evaluation: {', '.join(sorted(known))}"
                + nearest(wanted, known)
            )

    def _names(self) -> set[str]:
        """With the set's name in front, where there are several."""
        found = set()
        for name, groups in self.trainer._eval_sets().items():
            sums = self.trainer.evaluated(self.trainer.get_eval_dataloader(groups[:LOOKED_AT]))
            margins = {"rewards/margins"} if "rewards/chosen" in sums.names else set()
            names = {"loss", *margins, *(key for key in sums.names if not key.startswith("loss/"))}
            found |= {f"{name}_{key}" if name else key for key in names}
        return found


def find_best(state: Any, run: Path) -> None:
    """Of a run that goes on: its best checkpoint in the place where it is now, if the run's folder has been moved."""
    known, here = state.best_model_checkpoint, run / f"checkpoint-{state.best_global_step}"
    if (known is None or not Path(known).is_dir()) and here.is_dir():
        state.best_model_checkpoint = str(here)


def say_best(trainer: Any) -> dict[str, Any] | None:
    """After training with `load_best_model_at_end`: say which model the run ends with; for `summary.json`."""
    args, state = trainer.args, trainer.state
    if not args.load_best_model_at_end:
        return None
    metric, best = args.metric_for_best_model.removeprefix("eval_"), state.best_model_checkpoint
    kept = Path(best) if best is not None and Path(best).is_dir() else None
    if kept is None or step_of(kept) != state.best_global_step:
        ends_with = "the last step" if kept is None else kept.name
        logger.warning(
            "The best eval_%s (%s) was that of step %s, of which there is no checkpoint: the final model is that of "
            "%s. Set save_strategy: best, or save_steps to eval_steps.",
            metric, state.best_metric, state.best_global_step, ends_with,
        )  # fmt: skip
        return None
    logger.info("The final model is that of %s: eval_%s %.4g is the best.", kept.name, metric, state.best_metric)
    return {"step": step_of(kept), "metric": f"eval_{metric}", "value": state.best_metric}
