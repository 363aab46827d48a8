"""SFT: supervised fine-tuning on the response tokens, -log π(y|x), averaged over the tokens of the whole step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from preftune.objectives.base import Objective, Per
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class SFT(Objective):
    """Negative log-likelihood of the response; the prompt and BOS are never scored.

    The losses are sums over tokens (nats); the step divides their total by the number of response tokens of the
    whole step, so that every token counts the same however the step was cut.
    """

    layout: ClassVar[Layout] = Layout.SINGLE
    per: ClassVar[Per] = Per.TOKEN
    source: ClassVar[str] = "maximum likelihood"
    formula: ClassVar[str] = "-log π(y|x), per token"

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        return ObjectiveOutput(losses=-policy.sums[:, 0], rewards=policy.means.detach())

    def describe(self) -> str:
        return "-log π(y|x) per token"
