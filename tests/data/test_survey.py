"""What is counted of rows before a run: figures that can be checked by hand, on small rows and on published ones."""

from __future__ import annotations

import pytest

from preftune.data import load_preferences, read_chat_format, tokenize_examples
from preftune.data.advice import advise
from preftune.data.bad_rows import SkippedRows
from preftune.data.plan import Cut
from preftune.data.savings import measure_savings
from preftune.data.survey import count_shared_prompts, measure_bias, survey
from preftune.types import Example, Layout, Message, Origin, TokenizedGroup

HERE = Origin("pairs.jsonl", "train", 1)


def group(prompt: int, *responses: int, scores=()) -> TokenizedGroup:
    """Ids that all differ, so that nothing but the prompt is shared."""
    ids = [list(range(100 * k, 100 * k + length)) for k, length in enumerate(responses, 2)]
    return TokenizedGroup(list(range(prompt)), ids, HERE, scores)


def look(rows, tokenizer, layout=Layout.PAIRED, **settings):
    groups, report = tokenize_examples(rows, tokenizer, **settings)
    chat = read_chat_format(tokenizer)
    counts = survey(rows, groups, layout, chat)
    return counts, advise(counts, report, chat, SkippedRows(), settings.get("max_length"))


# --- counts


def test_repeats_and_contradictions_are_counted(word_tokenizer, example):
    rows = [
        example("w1", "w2", "w3", row=1),
        example("w1", "w2", "w3", row=2),  # equal to row 1
        example("w1", "w3", "w2", row=3),  # the opposite of row 1
        example("w4", "w2 w5", "w3", row=4),
    ]
    counts, warnings = look(rows, word_tokenizer)
    assert (counts.read, counts.kept, counts.duplicates, counts.conflicts) == (4, 4, 1, 1)
    assert (counts.prompts, counts.most_repeated) == (2, 3)
    assert "1 of 4 rows (25 %) are equal to an earlier one. Set dedupe: true." in warnings
    assert any(line.startswith("1 pairs say the opposite of an earlier one") for line in warnings)


def test_duplicates_that_are_taken_out_are_no_warning(word_tokenizer, example):
    rows = [example("w1", "w2", "w3", row=row) for row in (1, 2)]
    counts, warnings = look(rows, word_tokenizer, dedupe=True)
    assert (counts.read, counts.kept, counts.duplicates) == (2, 1, 1)
    assert not any("dedupe" in line for line in warnings)


def test_systems_turns_and_ends_are_counted(byte_tokenizer, chatml, example):
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    rows = [
        example((Message("system", "s"), Message("user", "a")), "one more", "two", row=1),
        example(turns, "one", "two", row=2),
    ]
    counts, warnings = look(rows, byte_tokenizer(chatml))
    assert (counts.with_system, counts.multi_turn) == (1, 1)
    assert (counts.one_bos, counts.responses, counts.ended, counts.ended_twice) == (2, 4, 4, 0)
    assert counts.hollow == 0 and warnings == []


def test_cut_responses_have_lost_their_end_and_cut_prompts_their_text(byte_tokenizer, chatml, example):
    tokenizer = byte_tokenizer(chatml)
    rows = [example("q" * 50, "a" * 60, "b" * 60)]
    counts, warnings = look(rows, tokenizer, max_length=40, truncation="keep_end")
    assert (counts.ended, counts.hollow) == (0, 1)
    assert any("1 of 1 rows (100 %) are longer than max_length 40 and are cut" in line for line in warnings)
    assert any("2 of 2 responses lose their end" in line for line in warnings)
    assert any("keep nothing of their prompt" in line for line in warnings)


def test_short_answers_are_counted_with_their_end(word_tokenizer, example):
    rows = [example("w1", "w2 w3", "w4", row=1), example("w1", "w2 w3 w4", "w4", row=2)]  # 3 and 4 tokens
    counts, warnings = look(rows, word_tokenizer)
    assert counts.short == 1
    assert any("In 1 of 2 rows (50 %) the first response has 3 tokens or fewer" in line for line in warnings)


def test_prompts_on_both_sides_are_counted_by_held_out_row(example):
    train = [example("a", "1", "2"), example("b", "1", "2")]
    assert count_shared_prompts(train, [example("b", "3", "4"), example("b", "5", "6"), example("c", "1", "2")]) == 2


# --- length bias


def test_length_bias_by_hand():
    bias = measure_bias([group(5, 4, 2), group(5, 6, 2), group(5, 3, 3), group(5, 1, 3)], Layout.PAIRED)
    assert (bias.better_longer, bias.worse_longer, bias.equal) == (2, 1, 1)
    assert bias.share_longer == (2 + 0.5) / 4
    assert bias.difference == 1.0  # of 2, 4, 0, -2
    assert (bias.better_mean, bias.worse_mean) == (3.5, 2.5)
    # lengths 4 6 3 1 | 2 2 3 3: mean 3, deviations 1 3 0 -2 | -1 -1 0 0, squares 16; labels +-1/2, squares 2; cross 2
    assert bias.correlation == pytest.approx(2 / (16 * 2) ** 0.5)


def test_a_correlation_of_equal_lengths_is_none():
    assert measure_bias([group(5, 2, 2)], Layout.PAIRED).correlation is None


def test_unpaired_rows_have_a_correlation_and_no_pairs():
    bias = measure_bias([group(5, 4, scores=(1.0,)), group(5, 2, scores=(0.0,))], Layout.UNPAIRED)
    assert (bias.pairs, bias.share_longer, bias.difference) == (0, None, None)
    assert (bias.better_mean, bias.worse_mean, bias.correlation) == (4, 2, pytest.approx(1))
    assert measure_bias([group(5, 4)], Layout.SINGLE) is None


def test_a_strong_length_bias_is_a_warning_with_its_figures(word_tokenizer, example):
    rows = [example(f"w{n}", "w1 w2 w3 w4 w5", "w6 w7 w8", row=n) for n in range(1, 21)]
    _, warnings = look(rows, word_tokenizer)
    assert [line for line in warnings if line.startswith("Chosen is longer in 100 % of the pairs (6 tokens on average")]


# --- templates


def test_turns_without_a_template_are_a_warning(word_tokenizer, example):
    turns = (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    _, warnings = look([example(turns, "w4 w5 w6", "w7")], word_tokenizer)
    assert "hold several turns, and the tokenizer has no chat template" in warnings[0]
    _, warnings = look([example("w1", "w4 w5 w6", "w7")], word_tokenizer)
    assert warnings[0].startswith("The tokenizer has no chat template")


def test_a_template_without_a_system_role_is_a_warning(byte_tokenizer, chatml, example):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    rows = [example((Message("system", "Be brief."), Message("user", "Hi")), "Hello there, you.", "What is it?")]
    assert look(rows, byte_tokenizer(chatml))[1] == []
    _, warnings = look(rows, byte_tokenizer(refuses + chatml))
    assert warnings[0].startswith("1 of 1 rows (100 %) have a system text, and the chat template no such role")


# --- tokens of an epoch


def test_savings_by_hand():
    groups = [group(10, 4, 2), group(3, 2, 5)]
    costs = [one.packed_length() for one in groups]
    found = measure_savings(groups, costs, global_batch=2, cut=Cut(max_tokens=15), padded_groups=2)
    assert found.padded == 4 * 14  # both pairs in one batch, as wide as 10 + 4
    assert found.unshared == (13 + 11) + (4 + 7)  # the last token is not fed
    assert found.shared == found.tokens == (10 + 3 + 1) + (3 + 1 + 4)
    assert (found.steps, found.micro_batches, found.fullest) == (1, 2, 14)  # 14 + 8 do not fit into 15
    together = measure_savings(groups, costs, global_batch=2, cut=Cut(max_tokens=22))
    assert (together.micro_batches, together.fullest) == (1, 22)
    apart = measure_savings(groups, costs, global_batch=1, cut=Cut(), padded_groups=1)
    assert (apart.padded, apart.steps, apart.micro_batches) == (2 * 14 + 2 * 8, 2, 2)


def test_a_value_head_is_fed_the_last_token_too():
    groups = [group(10, 4, 2)]
    costs = [groups[0].packed_length(feed_last=True)]
    found = measure_savings(groups, costs, global_batch=1, cut=Cut(), feed_last=True)
    assert (found.unshared, found.shared) == (14 + 12, 16)


# --- published rows


def test_hh_rlhf_under_llama3(data_folder, real_tokenizer):
    file = data_folder / "preferences/hh-rlhf/helpful-online.eval.jsonl.gz"
    skipped = SkippedRows()
    mappings = {}
    rows = load_preferences(file, on_bad_row="skip", skipped=skipped, mappings=mappings)
    counts, _ = look(rows, real_tokenizer("llama3"), max_length=1024)
    assert (skipped.read, skipped.total, counts.read) == (103, 1, 102)
    assert [str(mapping.form) for mapping in mappings.values()] == ["paired"]
    assert counts.one_bos == counts.kept
    assert counts.multi_turn == sum(len(row.prompt) > 1 for row in rows) > 50
    longer = sum(row.better_longer for row in [counts.bias])
    assert longer + counts.bias.worse_longer + counts.bias.equal == counts.kept


def test_the_survey_of_no_pairs_is_whole(example, byte_tokenizer, chatml):
    rows = [Example((Message("user", "q"),), ("answer",), HERE)]
    counts, warnings = look(rows, byte_tokenizer(chatml), Layout.SINGLE)
    assert counts.bias is None and counts.to_dict()["bias"] is None and warnings == []
