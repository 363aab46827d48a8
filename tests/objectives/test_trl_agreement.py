"""Our objectives against the losses of TRL's own trainers (benchmarks/trl_losses.py), on the same log-probs."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks.trl_losses import CASES, agreement_table, departed_difference, read_json, worst_difference

VERSIONS, INPUTS, RECORDED = read_json()
DEPARTED = [case for case in RECORDED if case.departure]


def name(case):
    return f"{case.trainer}-{case.loss_type}-{case.settings}-{case.batch}"


@pytest.mark.parametrize("case", RECORDED, ids=name)
def test_we_agree_with_trl_where_we_mean_the_same(case):
    assert worst_difference(case, INPUTS) < case.within <= 1e-6


@pytest.mark.parametrize("case", DEPARTED, ids=name)
def test_what_we_do_instead_is_another_loss(case):
    """With the test above: the named difference is there, and it is the whole difference."""
    assert departed_difference(case, INPUTS) > 1e-3


def test_the_json_is_of_the_cases_of_the_script():
    def written(case):
        kept = asdict(case)
        del kept["losses"]
        if case.trainer == "KTOTrainer":  # the run finds z
            del kept["baseline"]
            kept["departure"] = case.departure and case.departure.why
        return kept

    assert [written(case) for case in RECORDED] == [written(case) for case in CASES]


def test_the_table_has_a_line_for_every_loss_and_names_every_departure():
    table = agreement_table()
    for case in RECORDED:
        trl = f"{case.trainer} `{case.loss_type}`" if case.loss_type else case.trainer
        line = next(line for line in table.splitlines() if line.startswith(f"| `{case.objective}` | {trl} |"))
        assert case.departure is None or case.departure.why in line
    assert VERSIONS["trl"] in table
