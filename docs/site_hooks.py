"""What mkdocs does to the pages of docs/, which are read in a checkout too.

`docs/NAME.md` in code becomes a link, and what a page links to in benchmarks/results/ becomes part of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RESULT = re.compile(r"\]\(\.\./(benchmarks/results/[^)#\s]+)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the results that pages link to."""
    texts = [page.content_string for page in files.documentation_pages()]
    for name in sorted({found for text in texts for found in RESULT.findall(text)}):
        files.append(File(name, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Outside of fenced blocks: links to results, and to the pages that are named."""
    if page.file.src_uri.startswith("benchmarks/"):
        return markdown
    parts = FENCE.split(markdown)
    parts[::2] = [re.sub(r"(?<!\[)`docs/([\w-]+\.md)`", r"[\1](\1)", RESULT.sub(r"](\1", part)) for part in parts[::2]]
    return "".join(parts)
