"""The command line itself: help, versions, unknown words, errors in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stan
from stan.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Runs the command in this process and an empty folder; gives what it prints, on standard error where it fails."""

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.chdir(tmp_path)
        try:
            ended = main([str(word) for word in words])
        except SystemExit as left:
            ended = int(left.code or 0)
        done = capsys.readouterr()
        assert ended == code, done
        return done.err if code else done.out

    return run


def test_help_lists_every_command(run_stan: Callable) -> None:
    text = run_stan("--help").stdout
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(run_here: Callable, command: str) -> None:
    assert f"stan {command}" in run_here(command, "--help")


def test_help_does_not_import_torch() -> None:
    """Help must be instant, so nothing heavy may be imported for it."""
    code = "import sys, stan.cli; stan.cli.build_parser(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(run_stan: Callable) -> None:
    assert run_stan("--version").stdout.strip() == stan.__version__


def test_no_command_and_unknown_command(run_stan: Callable) -> None:
    assert "usage: stan" in run_stan(code=2).stdout
    assert "invalid choice" in run_stan("trian", code=2).stderr


def test_config_prints_what_a_run_would_use(run_here: Callable) -> None:
    text = run_here("config", ROOT / "configs/train/davis_tiny.yaml", "noise.sigma=0..50", "data.crop=96")
    assert "sigma: 0..50  #" in text
    assert "crop: 96  #" in text


def test_own_configurations_are_found_from_anywhere(run_stan: Callable, tmp_path: Path) -> None:
    assert "max_steps" in run_stan("config", "train/demo.yaml", cwd=tmp_path).stdout
    assert "max_steps" in run_stan("config", "configs/train/demo.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["config", "train/demo.yaml", "noise.sgma=3"], "noise.sgma"),
        (["train", "train/demo.yaml", "data.root=/nowhere/DAVIS"], "/nowhere/DAVIS"),
        (["train", "train/demo.yaml", "model.name=stan_tni"], "stan_tni"),
        (["train", "train/demo.yaml", "noise.sigma=50..10"], "50..10"),
        (["train", "train/demo.yaml", "noise.kind=gausian"], "gausian"),
        (["finetune", "finetune/davis.yaml"], "checkpoint="),
        (["finetune", "finetune/davis.yaml", "checkpoint=/nowhere.ckpt"], "/nowhere.ckpt"),
    ],
)
def test_bad_input_is_one_line(run_here: Callable, words: list[str], part: str) -> None:
    told = run_here(*words, code=2)
    assert part in told
    assert len(told.strip().splitlines()) == 1, told


def test_doctor_names_versions_devices_and_backend(run_stan: Callable) -> None:
    text = run_stan("doctor").stdout
    for word in ("stan", "torch", "opencv-python", "cuda", "operator"):
        assert word in text
    needed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    labels = {line.split()[0] for line in text.splitlines() if not line.startswith(" ")}
    assert needed is not None
    assert {*re.findall(r'"([\w-]+)', needed[1]), "tensorboard", "bm3d"} <= labels
    assert not {"pytest", "ruff", "mkdocs-material"} & labels


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train"], "CONFIG"),
        (["tarin"], "tarin"),
        (["train", "x.yaml", "--fast"], "--fast"),
        (["denoise", "in.mp4", "out.mp4", "--window", "x" * 5000], "--window"),
    ],
)
def test_a_wrong_command_line_is_one_line_without_the_usage(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert part in line
    assert "--help` explains" in line
    assert line.count("\n") == 1
    assert len(line) < 900


@pytest.mark.parametrize("word", ["output=" + "x" * 400, "data.root=" + "x" * 5000])
def test_names_that_no_file_can_have_are_one_line(run_here: Callable, word: str) -> None:
    line = run_here("evaluate", "evaluate/demo.yaml", "checkpoint=noisy", word, code=2)
    assert line.count("\n") == 1
    assert len(line) < 900


@pytest.mark.parametrize(
    ("where", "code"),
    [
        (">&-", 0),
        (">&- 2>&-", 0),
        ("<&- >&- 2>&-", 0),
        (">/dev/full", 2),
        (">/dev/full 2>/dev/full", 2),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, where: str, code: int) -> None:
    """Nobody reads, or the disk is full: no traceback, and the exit code says which."""
    words = f"{sys.executable} -m stan.cli config {ROOT / 'configs/train/demo.yaml'} {where}"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_reads(tmp_path: Path, where: str) -> None:
    words = f"{sys.executable} -m stan.cli config nothing.yaml {where}"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize(
    "line",
    [
        ["train", "c.yaml", "seed=1", "data.crop=32"],
        ["experiment", "attention", "seed=1", "data.crop=32", "--quick"],
        ["experiment", "attention", "--quick", "seed=1", "data.crop=32"],
        ["experiment", "--quick", "attention", "seed=1", "data.crop=32"],
        ["experiment", "attention", "seed=1", "--output", "out", "data.crop=32"],
        ["bench", "train", "c.yaml", "--steps", "3", "seed=1", "data.crop=32"],
    ],
)
def test_words_stand_before_and_behind_options(line: list[str]) -> None:
    args = vars(build_parser().parse_args(line))
    assert args.get("words", args.get("overrides")) == ["seed=1", "data.crop=32"]
    assert args.get("name", args.get("config")) in ("attention", "c.yaml")


def test_unknown_options_are_still_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args(["train", "c.yaml", "--bogus", "seed=1"])
    assert left.value.code == 2
    assert "unrecognized arguments: --bogus;" in capsys.readouterr().err
