"""A judge behind an OpenAI-compatible endpoint as the reward of PPO: its rating of each response, 1 to 10.

Replies are kept in the run folder, a file for each process, so that a run that goes on from a checkpoint gets the
ratings it had, and pays for none twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.endpoint import Endpoint, Failure, ReplyCache
from preftune.endpoint.client import Outcome
from preftune.endpoint.rating import TEMPLATE, rating_request, read_rating, read_template
from preftune.errors import TrainingError
from preftune.objectives.ppo import PPO
from preftune.train.ppo.prompts import Prompt
from preftune.types import TokenizedGroup

logger = logging.getLogger(__name__)

MOST_UNRATED = 0.5  # share of a rollout; above it the mean of the rest says little


@dataclass(frozen=True)
class JudgedReward:
    """A response that got no rating is worth the mean of the others, so that it teaches little either way.

    kept: the file of replies, opened with the first question: a run that cannot start writes nothing.
    """

    endpoint: Endpoint
    template: str
    kept: Path | None = None

    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[TokenizedGroup], texts: Sequence[str]
    ) -> list[float]:
        if self.kept is not None and self.endpoint.cache is None:
            self.endpoint.cache = ReplyCache(self.kept)
        requests = [
            rating_request(str(prompt.origin), prompt.to_chat(), text, self.template)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        outcomes = self.endpoint.ask_in_order(requests)
        ratings = [None if isinstance(outcome, Failure) else read_rating(outcome.text)[0] for outcome in outcomes]
        known = [rating for rating in ratings if rating is not None]
        if len(known) < len(ratings):
            place = ratings.index(None)
            said = (
                f"{len(ratings) - len(known)} of {len(ratings)} responses got no rating from the judge "
                f"'{self.endpoint.model}'; {prompts[place].origin}: {_reason(outcomes[place])}"
            )
            if len(known) < MOST_UNRATED * len(ratings) or not known:
                raise TrainingError(f"{said}. Look at the endpoint, and go on from the last checkpoint.")
            logger.warning("%s. They are worth the mean of the others.", said)
        return [sum(known) / len(known) if rating is None else rating for rating in ratings]

    def close(self) -> None:
        """Let others have the file of replies; a further question opens it again."""
        self.endpoint.close()
        self.endpoint.cache = None


def _reason(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return f"{outcome.reason} ({outcome.tries} tries)"
    return str(read_rating(outcome.text)[1])


def load_judge(ppo: PPO, folder: str | Path) -> JudgedReward:
    """The judge that the keys name; what it has said before in this run folder is known.

    Raises:
        RecipeError: an address or the template is wrong.
    """
    assert ppo.reward_endpoint is not None and ppo.reward_judge is not None
    template = read_template(ppo.reward_template) if ppo.reward_template else TEMPLATE
    urls = [url.strip() for url in ppo.reward_endpoint.split(",")]
    endpoint = Endpoint(urls, ppo.reward_judge, key_from=ppo.reward_key_from)
    kept = Path(folder) / "judge" / f"replies-{os.environ.get('RANK', '0')}.jsonl"
    logger.info("Reward: ratings of '%s' at %s, kept in %s.", endpoint.model, ", ".join(urls), kept)
    return JudgedReward(endpoint, template, kept)
