from __future__ import annotations

from preftune.train.plots import plot_log


def test_plots_are_drawn_for_the_keys_that_were_logged(tmp_path):
    records = [{"step": step, "loss": 1 / step, "rewards/margins": step} for step in range(1, 5)]
    drawn = plot_log([*records, {"step": 5, "eval_loss": 1.0}], tmp_path / "plots")
    assert [path.name for path in drawn] == ["loss.png", "margins.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_an_empty_log_draws_nothing(tmp_path):
    assert plot_log([], tmp_path) == []
