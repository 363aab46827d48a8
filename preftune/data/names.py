"""The names that columns bear, by the role they play; the first name of a tuple that a file has is taken."""

from __future__ import annotations

from preftune.data.winners import WINNER_INDEX, WINNERS

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "query", "question", "instruction")
LESSER_QUESTIONS = ("context", "problem", "input")  # where nothing better is there
PROMPTS = (*QUESTIONS, *CONVERSATIONS, *LESSER_QUESTIONS)
CHOSEN = ("chosen", "response", "chosen_response", "chosen_messages", "chosen.text", "response_j", "response_chosen")
REJECTED = (
    "rejected",
    "rejected_response",
    "rejected_responses",
    "rejected_messages",
    "rejected.text",
    "response_k",
    "response_rejected",
)  # fmt: skip
ANSWERS = ("response", "completion", "output", "answer", "chosen", *CHOSEN[2:])
RESPONSES = ("responses", "completions", "outputs", "answers", "all_generated_responses", "generations")
COMPARED = ("answer_1", "answer_2")  # two answers that a winner decides between, see `preftune.data.winners`
LISTED_ANSWERS = ("output", "answer")  # these hold ranked responses where they hold lists of texts
LABELS = ("label", "kto_tag", "desirable")
TAG = "tag"  # a label where it holds labels
SCORES = ("scores", "rewards", "all_rm_scores", "ratings", "rating", "score", "reward")
ONE_SCORE = ("rating", "score", "reward")  # scores of responses where they hold lists
RANKS = ("ranks", "rank")
CHOSEN_SCORES = ("chosen_score", "score_chosen", "chosen_rating", "chosen-rating")
REJECTED_SCORES = ("rejected_score", "score_rejected", "rejected_rating", "rejected-rating")
MARGIN = "margin"
SCORE_ROLES = (MARGIN, "chosen_score", "rejected_score")
EXTRAS = {"input": ("input", "context"), "history": ("history",), "system": ("system", "system_prompt")}
ROW_EXTRAS = {"weight": ("weight",), "tools": ("tools",)}  # they go with the row, whatever its form
ANSWER_COLUMNS = (*CHOSEN, *REJECTED, *ANSWERS, *RESPONSES, *COMPARED)
FEEDBACK_COLUMNS = (
    *LABELS, TAG, *SCORES, *RANKS, *CHOSEN_SCORES, *REJECTED_SCORES, MARGIN, *WINNERS, WINNER_INDEX,
)  # fmt: skip
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (
            *PROMPTS,
            *ANSWER_COLUMNS,
            *(name for names in (EXTRAS | ROW_EXTRAS).values() for name in names),
            *FEEDBACK_COLUMNS,
        )
    )
)
