"""Files beside the pages: citation, changelog, declared types, tools of the site, and the picture of the search."""

from __future__ import annotations

import importlib.util
import re

import pytest
import yaml

import stan
from tests.conftest import ROOT


def test_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == stan.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert "2309.16849" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gauen", "Chan"]


def test_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[([\d.]+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0][0] == stan.__version__
    assert all(date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings)


def test_the_map_names_every_room_and_module() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"stan/(\w+(?:\.py|/))", page))
    package = ROOT / "stan"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == rooms | modules
    for path in re.findall(r"`((?:ops|metrics|data|config)/[\w/.]+\.(?:py|h))`", page):
        assert (package / path).is_file(), path


def test_imports_run_one_way() -> None:
    """As the map says: a room imports those below it; `stan.config` is for the four uppermost."""
    order = ["ops", "flow", "models data", "inference", "evaluation", "training", "experiments", "cli"]
    height = {room: n for n, rooms in enumerate(order) for room in rooms.split()} | {"metrics": 2}
    for room in height:
        for path in (ROOT / "stan" / room).rglob("*.py"):
            text = re.sub(r"^( *)from stan import ", r"\1from stan.", path.read_text(), flags=re.M)
            found = re.findall(r"^ *(?:from|import) stan\.(\w+)", text, re.M)
            for other in set(found) - {room}:
                if other == "config":
                    assert room in ("cli", "experiments", "training", "evaluation"), path
                elif other in height:
                    assert height[other] < height[room], f"{path} imports stan.{other}"


def test_types_are_declared_and_packed() -> None:
    assert (ROOT / "stan/py.typed").is_file()
    assert '"stan" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


def test_tools_of_the_site_are_pinned_and_no_part_of_the_setup() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "docs/requirements.txt").read_text().splitlines()]
    tools = [line.partition("==") for line in lines if line]
    assert all(version for _, _, version in tools)
    setup = (ROOT / "constraints.txt").read_text()
    assert {name for name, _, _ in tools} & set(re.findall(r"^([\w-]+)==", setup, re.M)) <= {"ruff"}


def test_figures_of_the_picture_are_those_that_its_script_computes(capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("operator_picture", ROOT / "scripts/operator_picture.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.search()
    computed = [float(n) for n in re.findall(r"\d\.\d", capsys.readouterr().out)]
    page = " ".join((ROOT / "docs/operator.md").read_text().split())
    (told,) = re.findall(
        r"wrong by (\d\.\d) pixels in both neighbours, the best match by (\d\.\d) and (\d\.\d)", page
    )
    flow, before, after = map(float, told)
    assert computed == pytest.approx([flow, flow, before, after], abs=0.15)
    assert [frame for frame, _, _ in found.matches].count(
        1
    ) == 1  # the query itself; the rest in both neighbours
    assert sum(weight for _, _, weight in found.matches) == pytest.approx(1, abs=1e-5)
