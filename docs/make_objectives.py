"""Makes docs/objectives.md from the docstrings of the objectives: `make docs`. A test fails when the page is old."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "objectives.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from trl_losses import agreement_table  # noqa: E402

from preftune.recipe.catalogue import all_facts  # noqa: E402

INTRO = """# The objectives

<!-- Made by docs/make_objectives.py from the docstrings; edit those, then run `make docs`. -->

Every objective is one file in `preftune/objectives/`, chosen by `objective: NAME` in a recipe; its keys are recipe
keys. `preftune objectives` prints the same.

S_w, S_l are the log-probs of the chosen and the rejected response, summed over their tokens (nats; the end-of-turn
token counts, the prompt never does); n their lengths in tokens; A = S/n; R is S under the reference model, r = S - R; σ
is the logistic function. Losses are summed over the groups of a whole optimizer step, over all processes, and divided
once by their number, so that the cut into micro-batches changes nothing.

**The SFT term.** `sft_weight` (also `cpo_alpha`, `rpo_alpha`, `pref_ftx`) adds the negative log-likelihood of the
chosen response to any objective on pairs or ranked responses, averaged as `sft_normalization` says: `token`, over the
chosen tokens of the step; `sequence`, per response and then over responses; `sum`, summed over the tokens of a response
and averaged over responses. Where a method's paper has the term, it is on by default with the paper's weight.

**The reference.** By default the model as it was at the start: the base model under a fresh adapter, the adapter as it
was when training starts from one, else a frozen copy of what is trained. `reference_model_name_or_path` names another;
`precompute_reference: true` computes its log-probs once, keeps them on disk and frees its memory.

The same training on the same pairs with each of them: `benchmarks/results/objectives.md`.

"""


def page() -> str:
    """The whole page."""
    facts = all_facts()
    lines = ["| objective | loss | data | reference | source |", "|---|---|---|---|---|"]
    for one in facts:
        formula = one["formula"].replace("|", "\\|")
        reference = "yes" if one["needs_reference"] else "no"
        lines.append(
            f"| [`{one['name']}`](#{one['name']}) | {formula} | {one['layout']} | {reference} | {one['source']} |"
        )
    return "\n".join(
        [
            INTRO + "\n".join(lines),
            "",
            *[_section(one) for one in facts],
            "## Agreement with TRL",
            "",
            agreement_table(ROOT / "tests" / "objectives" / "trl_losses.json"),
            "",
        ]
    )


def _section(one: dict) -> str:
    defaults = ", ".join(f"`{key}: {value}`" for key, value in one["defaults"].items()) or "none"
    return f"## {one['name']}\n\nKeys and defaults: {defaults}. Needs: {one['cost']}.\n\n```text\n{one['doc']}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
