"""The documentation as the tests see it: pages, links, anchors, fenced blocks, commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PROGRAMS = ("stan", "make", "pip", "git", "cd", "source", "sbatch", "torchrun", "python", "ffmpeg", "ffplay")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)


def prose(text: str) -> str:
    """A page without what stands in code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Where the links and pictures of a page point."""
    plain = prose(re.sub(r"\[`[^`\n]*`\]", "[code]", text))
    return re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r"(?:href|src)=\"([^\"]+)\"", plain)


def anchors(text: str) -> set[str]:
    """What can follow the # of a link: headings as a forge names them, and anchors set by hand."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        while name in found:  # a second heading of the same words
            stem, _, number = name.rpartition("-")
            name = f"{stem}-{int(number) + 1}" if stem in found and number.isdigit() else f"{name}-1"
        found.add(name)
    return found | set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text))


@dataclass(frozen=True)
class Command:
    """A command line of the documentation: where it stands, and its words, the program first."""

    page: str
    line: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def commands(path: Path) -> list[Command]:
    """Every command in the fenced shell blocks of a page; of a pipe each part; variables are filled in."""
    found: list[Command] = []
    for block in FENCE.finditer(path.read_text()):
        if block["kind"] not in ("", "bash", "console", "sh"):
            continue
        variables: dict[str, str] = {}
        for line in re.sub(r"\\\n", " ", block["text"]).splitlines():
            line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)  # noqa: B023
            try:
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&")
                lexer.whitespace_split = True
                words = list(lexer)
            except ValueError:  # prose or a diagram
                continue
            if len(words) == 1 and (set_here := re.fullmatch(r"([A-Z]+)=(.*)", words[0], re.S)):
                variables[set_here[1]] = set_here[2]
                continue
            part: list[str] = []
            for word in [*words, "|"]:
                if word not in ("|", "&&"):
                    part.append(word)
                    continue
                while part and re.fullmatch(r"[A-Z_]+=\S*", part[0]):  # environment of the command
                    part.pop(0)
                if part and (part[0] in PROGRAMS or re.fullmatch(r"scripts/\w+\.sh", part[0])):
                    found.append(Command(path.name, " ".join(part), tuple(part)))
                part = []
    return found
