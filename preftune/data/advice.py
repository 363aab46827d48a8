"""Counts to warnings: what about these rows a reader can do something about, each with its remedy.

A line is written where a share passes the limit beside it. The limits are rules of thumb, not results.
"""

from __future__ import annotations

from collections.abc import Iterator

from preftune.data.bad_rows import SkippedRows
from preftune.data.chat import ChatFormat
from preftune.data.survey import SHORT, LengthBias, Survey
from preftune.data.token_report import TokenizationReport

MANY_CUT = 0.05  # of the rows
MANY_SKIPPED = 0.1  # of the rows
MANY_SHORT = 0.1  # of the rows
LONGER, CORRELATED = 0.65, 0.2  # share of pairs in which one side is the longer one; correlation of label and length
FEW_PAIRS = 20  # below it a share says little
ONE_PROMPT, OFTEN = 0.05, 5  # of the rows, and at least so many of them
MANY_UNENDED = 0.02  # of the responses


def advise(
    survey: Survey, report: TokenizationReport, chat: ChatFormat, skipped: SkippedRows, max_length: int | None
) -> list[str]:
    """The warnings, the gravest first."""
    return [
        *_of_templates(survey, chat),
        *_of_ends(survey),
        *_of_skipped(skipped),
        *_of_cuts(survey, report, max_length),
        *_of_repeats(survey, report),
        *_of_bias(survey.bias),
        *_of_short(survey),
    ]


def _of_templates(survey: Survey, chat: ChatFormat) -> Iterator[str]:
    if chat.template is None and survey.multi_turn:
        yield (
            f"{_rows(survey.multi_turn, survey.read)} hold several turns, and the tokenizer has no chat template, so "
            "nothing marks who speaks. Set chat_template: chatml, or the template of the model's family."
        )
    elif chat.template is None:
        yield (
            "The tokenizer has no chat template: prompt and answer are joined as they stand. Right for text that "
            "carries its own markers; else set chat_template: chatml, or the template of the model's family."
        )
    if chat.folds_system and survey.with_system:
        yield (
            f"{_rows(survey.with_system, survey.read)} have a system text, and the chat template no such role: it goes "
            "in front of the user's turn. Do the same when you sample, or set another chat_template."
        )


def _of_ends(survey: Survey) -> Iterator[str]:
    if survey.one_bos < survey.kept:
        yield (
            f"{_rows(survey.kept - survey.one_bos, survey.kept)} do not begin as the tokenizer's BOS rule has it. "
            "Look at them with --ids; set tokenization: preftune where it is not."
        )
    if survey.ended_twice:
        yield (
            f"{survey.ended_twice} of {survey.responses} responses end with their end token twice. Take it out of the "
            "texts; preftune writes it."
        )


def _of_skipped(skipped: SkippedRows) -> Iterator[str]:
    if skipped.total > MANY_SKIPPED * skipped.read:
        kinds = ", ".join(f"{count} {problem}" for problem, count in skipped.counts.items())
        yield (
            f"{_rows(skipped.total, skipped.read)} cannot be trained on ({kinds}). "
            "Check that the columns are what they are taken for, or mend the file."
        )


def _of_cuts(survey: Survey, report: TokenizationReport, max_length: int | None) -> Iterator[str]:
    if report.rows_cut > MANY_CUT * survey.kept:
        yield (
            f"{_rows(report.rows_cut, survey.kept)} are longer than max_length {max_length} and are cut "
            f"({report.prompts_cut} prompts, {report.responses_cut} responses). Raise max_length, or set truncation: "
            "drop."
        )
    too_long = len(report.dropped.get("longer than max_length", ()))
    if too_long > MANY_CUT * survey.read:
        yield f"{_rows(too_long, survey.read)} are dropped as longer than max_length {max_length}. Raise it."
    unended = survey.responses - survey.ended
    if report.responses_cut and unended > MANY_UNENDED * survey.responses:
        yield (
            f"{unended} of {survey.responses} responses lose their end, and with it the token "
            "that teaches when to stop. Raise max_length, set truncation: drop, or cut_response_end: append."
        )
    if survey.hollow:
        yield (
            f"{_rows(survey.hollow, survey.kept)} keep nothing of their prompt. "
            "Raise max_length, or set max_prompt_length."
        )


def _of_repeats(survey: Survey, report: TokenizationReport) -> Iterator[str]:
    if survey.duplicates and "duplicates" not in report.dropped:
        yield f"{_rows(survey.duplicates, survey.read)} are equal to an earlier one. Set dedupe: true."
    if survey.conflicts:
        yield (
            f"{survey.conflicts} pairs say the opposite of an earlier one (chosen there is rejected here). "
            "Delete those that are wrong."
        )
    if survey.most_repeated >= max(OFTEN, ONE_PROMPT * survey.read):
        yield (
            f"One prompt stands in {_rows(survey.most_repeated, survey.read)}: it will be learnt by heart. "
            "Keep a few of them."
        )


def _of_bias(bias: LengthBias | None) -> Iterator[str]:
    if bias is None or bias.better_mean is None or bias.worse_mean is None:
        return
    share, correlation = bias.share_longer, bias.correlation or 0.0
    remedy = (
        "A model can learn the length in place of the quality. SimPO divides by it and R-DPO has a price for it; DPO "
        "has neither. Or balance the pairs."
    )
    means = f"{bias.better_mean:.0f} tokens on average against {bias.worse_mean:.0f}"
    if share is None:
        if abs(correlation) > CORRELATED:
            side = "longer" if correlation > 0 else "shorter"
            yield f"Desirable responses are {side} ({means}; correlation with the label {correlation:+.2f}). {remedy}"
    elif bias.pairs >= FEW_PAIRS and (max(share, 1 - share) >= LONGER or abs(correlation) > CORRELATED):
        side, count = ("longer", bias.better_longer) if share > 0.5 else ("shorter", bias.worse_longer)
        yield f"Chosen is {side} in {_share(count, bias.pairs)} of the pairs ({means}). {remedy}"


def _of_short(survey: Survey) -> Iterator[str]:
    if survey.short > MANY_SHORT * survey.kept:
        yield (
            f"In {_rows(survey.short, survey.kept)} the first response has {SHORT} tokens or fewer, its end among "
            "them: a mean over so few is rough. Fine for labels; else check that the right column is taken."
        )


def _rows(count: int, of: int) -> str:
    return f"{count} of {of} rows ({_share(count, of)})"


def _share(count: int, of: int) -> str:
    share = 100 * count / max(of, 1)
    return f"{share:.0f} %" if share >= 1 or not count else "below 1 %"
