"""The collapse watch: a fixed set of prompts is answered while a run trains, and held against the start.

rows.py (which prompts) -> look.py (answers and log-probs of one look) -> measures.py (figures) -> verdict.py (signs of
a collapse, in words) -> callback.py (when to look, and what follows).
"""

from preftune.train.watch.callback import Watch, watch_collapse

__all__ = ["Watch", "watch_collapse"]
