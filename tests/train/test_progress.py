"""The bar on a terminal: steps, time left and the newest figures; elsewhere a line for each log event."""

from __future__ import annotations

import io
import re

from rich.console import Console

from preftune.train.record import TerminalProgress
from tests.train.test_trainer import build_trainer


def shown(folder, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160, legacy_windows=False)
    trainer = build_trainer(folder, save_strategy="no", max_steps=3)
    trainer.add_callback(TerminalProgress("simpo", console))
    trainer.train()
    return console.file.getvalue()


def test_a_terminal_has_a_bar_with_the_time_that_is_left(tmp_path):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(tmp_path, terminal=True))
    last = text.strip().splitlines()[-1]
    assert "simpo" in last and "3/3" in last and "loss" in last
    assert re.findall(r"\d+:\d\d:\d\d", last)[1] == "0:00:00"  # elapsed, then left


def test_elsewhere_there_is_a_line_a_log_event(tmp_path):
    lines = shown(tmp_path, terminal=False).strip().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("loss" in line and "accuracy" in line for line in lines)
