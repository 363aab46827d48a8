"""What training says of its own data: `examine` a run, write the page, write the set without the rows it lists."""

from __future__ import annotations

from preftune.autopsy.examine import Autopsy, examine

__all__ = ["Autopsy", "examine"]
