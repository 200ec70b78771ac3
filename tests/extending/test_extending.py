"""docs/extending.md at its word: its files in an empty folder, its commands in a process."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

SMALL = [
    "trainer.max_steps=2", "optimizer.warmup_steps=0", "data.crop=16", "data.frames=3", "data.batch_size=1",
    "data.workers=0", "validation.every=2", "validation.frames=3", "validation.crop=32", "trainer.accelerator=cpu",
]  # fmt: skip
QUICK = [
    "evaluation.protocol=quick", "evaluation.sigmas=30", "evaluation.max_frames=3", "trainer.accelerator=cpu",
    "output=runs/evaluation",
]  # fmt: skip


def blocks(kind: str) -> list[str]:
    page = (ROOT / "docs" / "extending.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, davis_root: Path) -> Path:
    """The page's files, and nothing else but data."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_parts.py").write_text("\n".join(blocks("python")))
    (yaml,) = blocks("yaml")
    (folder / "mine.yaml").write_text(yaml)
    shutil.copytree(davis_root, folder / "data" / "DAVIS")
    shutil.copytree(davis_root / "JPEGImages/480p/d", folder / "noisy")
    return folder


@pytest.fixture(scope="module")
def commands() -> dict[str, list[list[str]]]:
    """The page's command lines by command."""
    (console,) = blocks("console")
    found: dict[str, list[list[str]]] = {}
    for line in console.splitlines():
        name, command, *words = line.split()
        assert name == "stan"
        found.setdefault(command, []).append([command, *words])
    return found


@pytest.fixture(scope="module")
def stan(run_stan: Callable, folder: Path) -> Callable:
    def run(*words: str, code: int = 0):
        return run_stan(*words, code=code, cwd=folder)

    return run


@pytest.fixture(scope="module")
def trained(stan: Callable, commands: dict[str, list[list[str]]], folder: Path) -> Path:
    for line in commands["train"]:
        assert f"imports my_parts from {folder / 'my_parts.py'}" in stan(*line, *SMALL).stderr
    return folder


def test_configuration_shows_and_checks_settings_of_own_parts(
    stan: Callable, commands: dict[str, list[list[str]]]
) -> None:
    (line,) = commands["config"]
    text = stan(*line).stdout
    assert re.search(r"spacing: 1\.5  # distance of neighbouring candidates", text)
    assert re.search(r"rows: 0\.3  # share of the variance", text)
    for word, *said in (
        ("model.settings.attention_settings.spacing=0", "spacing=0", "above 0"),
        ("model.settings.attention_settings.spaces=2", "'spaces'", "did you mean 'spacing'"),
        ("imports=[your_parts]", "'your_parts'", "neither in"),
    ):
        error = stan(*line, word, code=2).stderr
        assert all(part in error for part in said), error


def test_own_parts_are_trained_evaluated_and_used(
    trained: Path, stan: Callable, commands: dict[str, list[list[str]]]
) -> None:
    (line,) = commands["evaluate"]
    done = stan(*line, "evaluation.split=val", *QUICK)
    assert "imports my_parts" in done.stderr
    results = json.loads((trained / "runs/evaluation/results.json").read_text())
    assert {row["method"] for row in results["means"]} == {"mine/last", "framewise/last", "median"}
    assert all(0 < row["worst"] < 255 for row in results["means"])
    (line,) = commands["denoise"]
    assert "imports my_parts" in stan(*line, "--device", "cpu").stderr
    assert len(list((trained / "clean").iterdir())) == 6


@pytest.mark.slow
def test_a_changed_module_makes_earlier_results_out_of_date(trained: Path, stan: Callable) -> None:
    words = [
        "evaluate",
        "evaluate/davis.yaml",
        "imports=my_parts",
        "checkpoint=median",
        "evaluation.split=val",
    ]
    output = "output=runs/again"
    stan(*words, *QUICK, output)
    before = json.loads((trained / "runs/again/results.json").read_text())
    source = trained / "my_parts.py"
    text = source.read_text()
    assert ".median(dim=0).values" in text
    try:
        source.write_text(text.replace(".median(dim=0).values", ".amin(dim=0)"))
        stan(*words, *QUICK, output)
    finally:
        source.write_text(text)
    after = json.loads((trained / "runs/again/results.json").read_text())
    assert psnr_of(before) > psnr_of(after) + 1


def psnr_of(results: dict) -> float:
    (row,) = results["sequences"]
    return row["psnr"]


def test_a_missing_module_is_named(trained: Path, stan: Callable, tmp_path: Path, run_stan: Callable) -> None:
    checkpoint = trained / "runs/framewise/last.ckpt"
    line = [
        "denoise",
        trained / "noisy",
        "out",
        "--checkpoint",
        checkpoint,
        "--sigma",
        "30",
        "--device",
        "cpu",
    ]
    error = run_stan(*line, code=2, cwd=tmp_path).stderr
    assert "'my_parts'" in error
    assert str(tmp_path) in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_checkpoint_of_our_own_network_imports_nothing(
    trained: Path, tmp_path: Path, run_stan: Callable
) -> None:
    """Only what the network needs is imported: its noise and loss may be gone."""
    run_stan("train", "train/davis_tiny.yaml", *SMALL, "noise.kind=stripes", "imports=my_parts", "loss.name=huber",
             "output=runs/ours", cwd=trained)  # fmt: skip
    checkpoint = trained / "runs/ours/last.ckpt"
    (tmp_path / "my_parts.py").write_text("raise SystemExit('imported')")
    line = [
        "denoise",
        trained / "noisy",
        "out",
        "--checkpoint",
        checkpoint,
        "--sigma",
        "30",
        "--device",
        "cpu",
    ]
    assert "import" not in run_stan(*line, cwd=tmp_path).stderr
    (tmp_path / "my_parts.py").unlink()
    words = [
        f"data.root={trained / 'data/DAVIS'}",
        f"checkpoint={checkpoint}",
        "evaluation.split=val",
        *QUICK,
    ]
    assert "going on without it" in run_stan("evaluate", "evaluate/davis.yaml", *words, cwd=tmp_path).stderr
    error = run_stan(
        "evaluate", "evaluate/davis.yaml", *words, "noise.kind=stripes", code=2, cwd=tmp_path
    ).stderr
    assert "'my_parts'" in error


def test_a_module_that_fails_is_one_line_with_its_place(tmp_path: Path, run_stan: Callable) -> None:
    (tmp_path / "broken.py").write_text("\n\nprint(undefined)\n")
    error = run_stan("config", "train/demo.yaml", "imports=broken", code=2, cwd=tmp_path).stderr
    assert "NameError" in error
    assert "line 3" in error
    assert len(error.strip().splitlines()) == 1
