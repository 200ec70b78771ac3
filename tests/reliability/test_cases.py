"""Bad input gets one line and exit code 2, as docs/reliability.md tells; the page is made by running the cases here.

``python -m tests.reliability.test_cases`` writes it.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.reliability import world
from tests.reliability.cases import CASES, SECTIONS, WORDS, spoil
from tests.reliability.runner import Said, run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """\
# Reliability

What is wrong with the input is told in one line that names the value and the way out; the exit code is 2, and nothing
half-written has its final name. What is an error of this program itself is one line as well, with exit code 1, and
its traceback lies in the file that the line names. The tables below are written by the tests, which run every case
(`python -m tests.reliability.test_cases`); the cases of `stan denoise` stand in
[Denoising video](denoise.md).
"""


def ran(number: int, base: Path, work: Path) -> Said:
    """Run a case in a copy of the folder `base`."""
    shutil.copytree(base, work)
    words = CASES[number].words
    for name, whole in WORDS.items():
        words = words.replace("{" + name + "}", whole)
    return run(words.split(" "), work, before=functools.partial(spoil, number), memory=3 << 30)


def row(number: int, said: Said, work: Path) -> str:
    """The line of the table."""
    text = said.lines[-1].removeprefix("stan: ") if said.lines else ""
    text = text.replace(f"{work}/", "").replace(str(work), ".").replace(f"{ROOT}/", "")
    text = re.sub(r"(cache/\w+)-[0-9a-f]{16}", r"\1-0123456789abcdef", text)
    text = re.sub(r"file of [\d,]+ bytes", "file of its size", text)
    return f"| {CASES[number].what} | {text.replace('|', chr(92) + '|').replace('<', '&lt;')} |"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.build(folder)
    return folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.what for case in CASES])
def test_one_line(number: int, base: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    said = ran(number, base, work)
    assert said.code == 2, said
    assert len(said.lines) == 1, said.errors
    assert said.lines[0].startswith(("stan: ", "stan train: ")), said.errors
    assert "Error" not in said.output  # what it was about to do may have been told
    left = [path for path in work.rglob(".*") if path.name.endswith((".part", ".tmp"))]
    assert not left
    line = row(number, said, work)
    assert line in PAGE.read_text(), f"docs/reliability.md does not tell this as it is:\n{line}"


def test_page_has_no_other_cases() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(CASES) + len(SECTIONS)


def write_page() -> None:
    """Run all cases and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "world"
        base.mkdir()
        world.build(base)
        lines, number = [HEAD], 0
        for title, cases in SECTIONS.items():
            lines += [f"## {title}\n", "| case | what it gets |", "|---|---|"]
            for case in cases:
                work = Path(folder) / str(number)
                said = ran(number, base, work)
                lines.append(row(number, said, work))
                if said.code != 2 or len(said.lines) != 1:
                    print(
                        f"{case.what}: exit code {said.code}, {said.seconds:.0f} s: {said.errors}",
                        file=sys.stderr,
                    )
                number += 1
            lines.append("")
            PAGE.write_text("\n".join(lines).rstrip() + "\n")
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    write_page()
