"""Every relative link of the documentation leads somewhere, anchors included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:docs|benchmarks|tests|preftune|training_configs|accelerate_configs|scripts)/[\w./-]*)`")


def without_blocks(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """The ids of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for link in LINK.findall(without_blocks(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_in_code_are_there(page):
    for name in NAMED.findall(without_blocks(page)):
        assert (ROOT / name).exists(), name


def test_no_picture_comes_from_elsewhere():
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(\w+:|<img|<script", without_blocks(page)), page.name


def test_every_page_is_in_the_navigation_of_the_site():
    named = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {page.name for page in Path(ROOT / "docs").glob("*.md")}
