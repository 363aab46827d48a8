"""From files to token groups: `load_preferences` reads, `tokenize_examples` encodes. Imports no transformers."""

from __future__ import annotations

from preftune.data.balance import Balance, class_balance
from preftune.data.catalog import Catalog, CatalogEntry, load_catalog
from preftune.data.chat import ChatFormat, generation_prompt_ids, read_chat_format
from preftune.data.columns import ColumnMapping, recognise
from preftune.data.formats import to_examples
from preftune.data.preferences import load_preferences
from preftune.data.ranked import RankedPairs
from preftune.data.sources import Row, load_rows
from preftune.data.tokenize import TokenizationReport, tokenize_examples

__all__ = [
    "Balance",
    "Catalog",
    "CatalogEntry",
    "ChatFormat",
    "ColumnMapping",
    "RankedPairs",
    "Row",
    "TokenizationReport",
    "class_balance",
    "generation_prompt_ids",
    "load_catalog",
    "load_preferences",
    "load_rows",
    "read_chat_format",
    "recognise",
    "to_examples",
    "tokenize_examples",
]
