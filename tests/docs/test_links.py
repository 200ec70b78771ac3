"""Links between the pages and into the repository lead somewhere; the site holds every page. No network."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

from .pages import PAGES, anchors, links

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    dead = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    assert not dead, f"dead links in {page.name}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT / "docs"], ids=lambda p: p.name)
def test_pages_link_to_nothing_outside_docs(page: Path) -> None:
    """The site has only what is in docs/; a file of the repository is named, not linked."""
    outside = [link for link in links(page.read_text()) if link.startswith("../")]
    assert not outside


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page: Path) -> None:
    """`stan/models/merge.py`, `configs/train/demo.yaml` and the like."""
    named = re.findall(
        r"`((?:stan|scripts|configs|tests|docs)/[\w./-]+\.(?:py|sh|yaml|md|cu|cpp))`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert not missing


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1].split("\n\n")[0]
    shown = re.findall(r"(\w+\.md)$", navigation, re.M)
    assert len(shown) == len(set(shown))
    assert set(shown) == {page.name for page in PAGES if page.parent == ROOT / "docs"}


def test_pages_of_the_readme_exist_in_the_table() -> None:
    table = (ROOT / "README.md").read_text().split("## Documentation")[1].split("\n## ")[0]
    assert set(re.findall(r"\]\(docs/(\w+\.md)\)", table)) | {"index.md"} == {
        page.name for page in PAGES if page.parent == ROOT / "docs"
    }


def test_names_of_the_python_page_exist_and_are_documented() -> None:
    for name in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.M):
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except AttributeError:
            found = importlib.import_module(name)
        assert (found.__doc__ or "").strip(), name


def test_every_operator_is_on_the_python_page() -> None:
    """All functions of `stan.ops`; of their module twins, which say the same, those that are networks' parts."""
    from stan import ops

    page = (ROOT / "docs/api.md").read_text()
    for name in ops.__all__:
        if name[0].islower():
            assert f"::: stan.ops.{name}\n" in page


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What moves a figure, and by how much", "what-moves-a-figure-and-by-how-much"),
        ("`evaluation`: what is measured", "evaluation-what-is-measured"),
        ("[Data](data.md) & noise", "data--noise"),
    ],
)
def test_anchors_are_those_of_a_forge(heading: str, anchor: str) -> None:
    assert anchors(f"# Title\n\n## {heading}\n\n```\n# not a heading\n```\n") == {"title", anchor}


def test_links_in_code_do_not_count() -> None:
    assert links("[a](b.md) `[c](d.md)` ![e](f.png)\n```\n[g](h.md)\n```\n[`i`](j.md)") == [
        "b.md",
        "f.png",
        "j.md",
    ]
