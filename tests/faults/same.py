"""Whether a run that something happened to ended as the one that nothing happened to."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from preftune.train.record import read_log
from tests.faults.child import run
from tests.faults.faults import skip_plots

OF_THE_CLOCK = ("seconds", "tokens_per_second")


def assert_resumes_to_the_same(work: Path, output: str, *words: str) -> str:
    """Resume the run; its weights and its log are those of `whole`, bit for bit. Returns what it printed."""
    code, said = run(
        ["train", "recipe.yaml", f"output_dir={output}", "resume_from_checkpoint=auto", *words], work, skip_plots
    )
    assert code == 0, said
    assert_same(work / "whole", work / output)
    return said


def assert_same(whole: Path, other: Path) -> None:
    with safe_open(whole / "model.safetensors", "pt") as one, safe_open(other / "model.safetensors", "pt") as two:
        assert set(one.keys()) == set(two.keys())
        assert all((one.get_tensor(name) == two.get_tensor(name)).all() for name in one.keys())  # noqa: SIM118
    assert logged(other) == logged(whole), (other / "log.jsonl").read_text()


def logged(folder: Path) -> list[dict]:
    records = read_log(folder / "log.jsonl")
    return [{key: value for key, value in record.items() if key not in OF_THE_CLOCK} for record in records]
