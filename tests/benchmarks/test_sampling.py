"""The sampling benchmark runs end to end on a tiny model."""

from __future__ import annotations

import json


def test_tiny_run_writes_a_table(bench, tmp_path, capsys):
    bench("sampling").main(["--tiny", "--threads", "1", "--out", str(tmp_path)])

    record = json.loads((tmp_path / "sampling.json").read_text(encoding="utf-8"))
    assert all(record[key] for key in ("machine", "date", "commit", "command"))
    assert [sample["side"] for sample in record["samples"]] == ["engine", "generate"]
    assert all(sample["tokens"] >= 20 for sample in record["samples"])
    assert (tmp_path / "sampling.md").read_text(encoding="utf-8") in capsys.readouterr().out
