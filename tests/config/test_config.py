"""The configuration: what is read, what is refused and in which words."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

import stan.models
from stan import config
from stan.errors import ConfigError
from stan.training.fit import build_network

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "experiments")


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


def test_entries_of_a_list_are_changed_by_their_numbers(tmp_path: Path, empty: Path) -> None:
    name = "train/stan_tiny.yaml"
    parts = config.load(name).data.parts
    words = ["data.parts.0.split=few", "data.parts.2.share=2"]
    wanted = [{**parts[0], "split": "few"}, parts[1], {**parts[2], "share": 2.0}, parts[3]]
    assert config.load(name, words).data.parts == wanted
    numbered = "data: {parts: {0: {split: few}, 2: {share: 2}}}\n"
    assert config.load(write(tmp_path / "x.yaml", f"include: {name}\n{numbered}")).data.parts == wanted
    assert "no entry '4'" in (line := refusal(Path(name), "data.parts.4.share=2"))
    assert "it has 4" in line
    wrong = write(tmp_path / "wrong.yaml", "data: {parts: [{}, {downscale: a}]}\n")
    assert refusal(wrong, "data.parts.0.share=2").startswith(f"{wrong}: data.parts.1.downscale='a'")
    words = ["data.parts=[{},{split: few}]", "data.parts.1.still=true", "optimizer.betas.1=0.95"]
    result = config.load(empty, words)
    assert result.data.parts == [{}, {"split": "few", "still": True}]
    assert result.optimizer.betas == [0.9, 0.95]  # over the default


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
        ("data.parts.0.share=1", ["command line: data.parts has no entry '0'", "it has 0"]),
        ("data.parts={share: 1}", ["data.parts={'share': 1}", "a list of sections"]),
        ("data.parts=[{},{shrae: 1}]", ["data.parts.1.shrae=1", "'share'"]),
        ("data.parts=[{share: abc}]", ["command line: data.parts.0.share='abc'", "a number above 0"]),
        ("data.parts=[{share: null}]", ["command line: data.parts.0.share=None", "a number above 0"]),
        ("data.parts=[{},{downscale: 1.5}]", ["data.parts.1.downscale=1.5", "a whole number"]),
        ("data.parts=[{root: null}]", ["data.parts.0.root=None", "text"]),
        ("data.parts=[{kind: davsi}]", ["data.parts.0.kind='davsi'", "'davis'"]),
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


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("text", "word", "parts"),
    [
        ("include: 5", "seed=1", ["include=5"]),
        (f"include: {'x' * 400}", "seed=1", ["too long"]),
        ("data: [1]", "seed=1", ["data=[1]", "section", "root"]),
        ("data:\n  1: 2", "seed=1", ["data.1"]),
        ("seed: 1", "optimizer.betas=[2,2]", ["optimizer.betas=[2, 2]", "below 1"]),
        ("seed: 1", "optimizer.clip_norm=-1", ["optimizer.clip_norm=-1", "at least 0"]),
        ("seed: 1", "noise.sigma=abc", ["noise.sigma='abc'", "0..50"]),
        ("seed: 1", f"{LONG}=1", ["unknown key"]),
        ("seed: 1", f"seed={LONG}", ["seed="]),
        ("seed: 1", LONG, ["key=value"]),
        ("seed: 1", "seed=" + "[" * 500 + "]" * 500, ["seed="]),
        ("seed: 1", ".".join("x" * 2000) + "=1", ["x.x"]),
        ("seed: 1", "trainer.max_steps=1" + "0" * 400, ["trainer.max_steps="]),
        ("seed: 1", "data.root=${oc.env:NOT_SET_ANYWHERE}", ["NOT_SET_ANYWHERE"]),
        ("seed: 1", "model.settings.windw=3", ["'windw'", "'window'"]),
        ("seed: 1", "model.settings.window=0", ["model.settings.window=0", "from 1 to 255"]),
        (
            "seed: 1",
            "model.settings.flow_settings.blur=-1",
            ["model.settings.flow_settings.blur=-1", "from 0"],
        ),
        ("model: {name: unet_tiny}", "model.settings.matches=9", ["matches=9", "search_matches"]),
        ("seed: 1", "noise.settings.blur=1", ["'gaussian' has no setting 'blur'"]),
        ("seed: 1", "imports=no_such_module", ["'no_such_module'", "neither in"]),
        ("seed: 1", "imports=../up", ["no module name"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_input_is_one_short_line(tmp_path: Path, text: str, word: str, parts: list[str]) -> None:
    line = refusal(write(tmp_path / "x.yaml", text + "\n"), word)
    assert len(line) < 500
    for part in parts:
        assert part in line, line


def test_a_name_brings_its_settings() -> None:
    """The trap of before: the small network was trained with the tiny one's settings, which a file stated."""
    result = config.load(ROOT / "configs/train/davis_tiny.yaml", ["model.name=unet_small"])
    parameters = build_network(result).parameters()
    assert sum(p.numel() for p in parameters) == 3_811_611


def test_settings_of_another_network_are_left_behind(
    tmp_path: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resolved configuration states all settings of its network; another name must not inherit them."""
    old = write(tmp_path / "config.yaml", config.to_yaml(config.load(empty, ["model.settings.window=5"])))
    result = config.load(old, ["model.name=stan_small"])
    assert result.model == config.load(empty, ["model.name=stan_small"]).model
    assert "leaves the settings of 'stan_tiny' behind" in capsys.readouterr().err
    assert config.load(old, ["model.name=stan_tiny"]).model.settings["window"] == 5
    assert config.load(old, ["model.flow=tvl1"]).model.settings["flow_settings"]["warps"] == 5
    assert config.load(old, ["noise.kind=correlated"]).noise.settings == {"blur": 1.0}
    unet = write(tmp_path / "unet.yaml", config.to_yaml(config.load(empty, ["model.name=unet_tiny"])))
    assert config.load(unet, ["model.name=stan_tiny"]).model.blind is None
    with pytest.raises(ConfigError, match="no setting 'blind'"):
        config.load(unet, ["model.name=stan_tiny", "model.blind=true"])
    words = ["noise.kind=correlated", "noise.settings.blur=2"]
    assert config.load(
        write(tmp_path / "c.yaml", "noise: {kind: poisson_gaussian, settings: {shot: 1}}\n"), words
    )


def test_configurations_of_before_load(empty: Path) -> None:
    """Those in checkpoints state a flat list of settings, and loss.epsilon whatever the loss."""
    before = config.to_dict(config.load(empty))
    before["model"] = {
        "name": "unet_tiny", "flow": "zero", "blind": True, "settings": {"channels": [8, 8], "flow_settings": {}},
    }  # fmt: skip
    before["loss"] = {"name": "l1", "epsilon": 0.001}
    del before["imports"]
    result = config.from_dict(before, "an old checkpoint")
    assert (result.model.flow, result.model.blind, result.model.settings["channels"]) == (
        "zero",
        True,
        [8, 8],
    )
    assert result.loss.epsilon is None
    assert build_network(result).blind
    whole = stan.models.build("unet_tiny").settings | {"window": 5}
    before["model"] = {"name": "stan_tiny", "flow": "dis", "blind": False, "settings": whole}
    result = config.from_dict(before, "an old checkpoint")
    assert (result.model.name, result.model.settings["window"]) == ("unet_tiny", 5)
    before["loss"] = {"name": "rmse", "epsilon": 0.25}
    assert config.from_dict(before, "an old checkpoint").loss.given == {"epsilon": 0.25}


def test_references_are_resolved_from_files_and_words_but_never_from_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAN_TEST_DATA", "/somewhere")
    path = write(tmp_path / "x.yaml", "data: {root: '${oc.env:STAN_TEST_DATA}/DAVIS'}\n")
    result = config.load(path, ["output=${data.root}/runs", "trainer.max_steps=${oc.env:STAN_TEST_STEPS,7}"])
    assert (result.data.root, result.output) == ("/somewhere/DAVIS", "/somewhere/DAVIS/runs")
    assert result.trainer.max_steps == 7
    record = config.to_dict(result) | {"output": "${oc.env:STAN_TEST_DATA}"}
    assert config.from_dict(record, "a checkpoint").output == "${oc.env:STAN_TEST_DATA}"


def test_one_value_stands_for_a_list_of_one(empty: Path) -> None:
    result = config.load(
        empty, ["evaluation.sigmas=30", "finetune.freeze=encoder*", "evaluation.sequences=2024"]
    )
    assert result.evaluation.sigmas == [30.0]
    assert result.finetune.freeze == ["encoder*"]
    assert result.evaluation.sequences == ["2024"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
def test_dependencies_are_what_is_imported() -> None:
    """Each import of the package is a dependency, and each dependency is imported, or used by one that is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    optional = {
        re.match(r"[\w-]+", line)[0] for group in project["optional-dependencies"].values() for line in group
    }
    distributions = {
        "cv2": "opencv-python", "skimage": "scikit-image", "pytorch_lightning": "pytorch-lightning", "yaml": "pyyaml",
            "PIL": "pillow",
    }  # fmt: skip
    modules = set()
    for path in (ROOT / "stan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            modules |= {name.partition(".")[0] for name in names}
    used = {distributions.get(name, name) for name in modules - set(sys.stdlib_module_names) - {"stan"}}
    by_others = {"typing_extensions"}  # for type checkers only, which bring it
    assert used - declared - optional - by_others == set()
    assert declared - used - by_others == {"wandb"}  # Lightning's logger imports it


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
