"""The configuration: what is read, what is refused and in which words."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stan import config
from stan.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, words)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return write(tmp_path / "empty.yaml", "seed: 1\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_file_loads_and_comments_every_key(path: Path) -> None:
    config.load(path)
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*[\w-]+:", line):
            assert "# " in line, f"{path}:{number + 1} has a key without a comment"


def test_comments_say_what_the_schema_says() -> None:
    """A key is described in one place; the files repeat it word for word, with its default."""
    texts = {key: setting.help for key, setting in config.documented_keys()}
    for path in FILES:
        keys: list[str] = []
        for line in path.read_text().splitlines():
            match = re.match(r"( *)(\w+):.*?  # (.*)$", line)
            if match:
                keys = [*keys[: len(match[1]) // 2], match[2]]
                text = texts.get(".".join(keys))
                assert text is None or match[3].startswith(text), f"{path}: {line}"


def test_includes_lie_underneath_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub/a.yaml", "seed: 1\noutput: a\nnoise: {sigma: 10, kind: poisson}\n")
    write(tmp_path / "sub/b.yaml", "output: b\n")
    top = write(tmp_path / "top.yaml", "include: [sub/a.yaml, sub/b.yaml]\nnoise: {sigma: 0..50}\n")
    result = config.load(top, ["trainer.max_steps=7"])
    assert (result.seed, result.output, result.noise.sigma, result.noise.kind) == (1, "b", "0..50", "poisson")
    assert result.trainer.max_steps == 7


def test_circular_include_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "include: b.yaml\n")
    write(tmp_path / "b.yaml", "include: a.yaml\n")
    assert "includes itself" in refusal(tmp_path / "a.yaml")


def test_words_of_the_command_line(empty: Path) -> None:
    words = [
        "evaluation.sigmas=[10,20.5]",
        "evaluation.max_frames=3",
        "checkpoint=[a.ckpt,b.ckpt]",
        "data.cache=/some/where",
        "noise.sigma=[10,30]",
        "optimizer.clip_norm=null",
        "model.settings.patch=3",
    ]
    result = config.load(empty, words)
    assert result.evaluation.sigmas == [10.0, 20.5]
    assert result.evaluation.max_frames == 3
    assert result.checkpoint == ["a.ckpt", "b.ckpt"]
    assert result.noise.sigma == [10, 30]
    assert result.optimizer.clip_norm is None
    assert result.model.settings["patch"] == 3


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("noise.sgma=3", ["noise.sgma", "3", "'sigma'"]),
        ("lr=3", ["lr", "'optimizer.lr'"]),
        ("modle.name=stan", ["modle", "'model'"]),
        ("seed=x", ["seed", "'x'", "whole number"]),
        ("trainer.max_steps=1.5", ["trainer.max_steps", "1.5", "whole number"]),
        ("data=3", ["data=3", "section", "root"]),
        ("data.augment=maybe", ["data.augment", "maybe", "true or false"]),
        ("evaluation.sigmas=[a]", ["evaluation.sigmas", "'a'", "numbers"]),
        ("evaluation.sigmas=[300]", ["300", "255"]),
        ("data.crop=2", ["data.crop=2", "8"]),
        ("data.kind=davsi", ["'davsi'", "'davis'"]),
        ("ema.decay=1", ["ema.decay", "below 1"]),
        ("optimizer.warmup_steps=1000", ["warmup_steps=1000", "max_steps=1000"]),
        ("optimizer.lr=nan", ["optimizer.lr='nan'", "a number"]),
        ("seed", ["'seed'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
    ],
)
def test_refusals_name_key_value_and_way_out(empty: Path, word: str, parts: list[str]) -> None:
    line = refusal(empty, word)
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just text"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    assert "bad.yaml" in refusal(write(tmp_path / "bad.yaml", text))


def test_missing_file_and_missing_include(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refusal(tmp_path / "nowhere.yaml")
    assert "gone.yaml" in refusal(write(tmp_path / "a.yaml", "include: gone.yaml\n"))


def test_printed_configuration_reads_back_and_comments_each_key(tmp_path: Path, empty: Path) -> None:
    original = config.load(empty, ["noise.sigma=0..50", "model.settings.patch=3", "checkpoint=[a,b]"])
    text = config.to_yaml(original)
    assert config.load(write(tmp_path / "again.yaml", text)) == original
    for line in text.splitlines():
        assert not line or "  # " in line


def test_plain_data_reads_back(empty: Path) -> None:
    original = config.load(empty, ["data.root=/x y/ü"])
    plain = config.to_dict(original)
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert config.from_dict(plain, "test") == original


@settings(deadline=None, derandomize=True, max_examples=60)
@given(word=st.text(min_size=1, max_size=40))
def test_no_word_gives_anything_but_one_line(word: str) -> None:
    with contextlib.suppress(ConfigError):
        config.load(ROOT / "configs/data/davis.yaml", [word])


def test_documentation_lists_every_key() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    for key, setting in config.documented_keys():
        assert f"`{key}`" in page, "run scripts/config_page.py"
        assert setting.help in page, "run scripts/config_page.py"
