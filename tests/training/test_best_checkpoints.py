"""The best checkpoints are what a run says of them, wherever it was killed, resumed or begun: really run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.forked import Forks
from tests.training.test_faults import TINY, one_line
from tests.training.test_runs import logged

IN_STEP = """
import os, signal
from stan.training.module import DenoisingModule
step = DenoisingModule.training_step
def struck(self, batch, batch_idx):
    if self.global_step == {step} - 1:
        os.kill(os.getpid(), signal.{name})
    return step(self, batch, batch_idx)
DenoisingModule.training_step = struck
"""
RENAMING = """
import os, signal
rename, left = os.replace, [{count}]
def struck(old, new):
    if os.path.basename(new).startswith("best"):
        left[0] -= 1
        if left[0] < 0:
            {what}
    rename(old, new)
os.replace = struck
"""
QUICK = (
    "model.name=unet_tiny", "model.flow=zero", "model.settings={channels: [8, 16]}", "optimizer.schedule=constant",
    "ema.decay=0", "validation.every=1",
)  # fmt: skip
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def words(davis_root: Path) -> Callable[..., list[str]]:
    return lambda output, *more: [*TINY, *QUICK, f"data.root={davis_root}", f"output={output}", *more]


def kept(folder: Path) -> dict[str, int]:
    """Name -> the step that the file holds."""
    return {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("best*.ckpt")
    }


def told(folder: Path) -> dict[str, int]:
    """The same as the summary has it."""
    best = json.loads((folder / "summary.json").read_text())["best"]
    return {f"best-{place}.ckpt" if place > 1 else "best.ckpt": b["step"] for place, b in enumerate(best, 1)}


def struck(run_stan: Forks, command: list[str], setup: str, code: int = -9) -> None:
    run = run_stan.start(*command, setup=setup)
    assert run.wait() == code, run.stderr


def test_killed_anywhere_the_best_are_those_of_an_uninterrupted_run(
    run_stan: Forks, words: Callable, tmp_path: Path
) -> None:
    """Between renames before there is a last.ckpt and at the start, and between validations and the next last.ckpt."""
    more = ("validation.keep=3", "validation.patience=3", "trainer.max_steps=8", "trainer.checkpoint_every=4")
    run_stan(*words(tmp_path / "straight", *more))
    psnr = logged(tmp_path / "straight", "val/psnr")
    output, highest = tmp_path / "struck", 0.0
    command = words(output, *more)
    strikes = [RENAMING.format(count=count, what=KILL) for count in (11, 1, 3)]
    for setup in (*strikes, IN_STEP.format(step=8, name="SIGKILL")):
        struck(run_stan, command, setup)
        before, highest = highest, max(psnr[step] for step in kept(output).values())
        assert highest >= before
    run_stan(*command)
    assert kept(output) == told(output) == kept(tmp_path / "straight") == told(tmp_path / "straight")
    assert len(kept(output)) == 3
    ends = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("straight", "struck")]
    assert ends[0]["ended"] == ends[1]["ended"]
    assert ends[0]["best"] == ends[1]["best"]


def test_the_best_of_another_validation_outlives_kills_and_stops(
    run_stan: Forks, words: Callable, tmp_path: Path
) -> None:
    """Killed between two renames, then with a new best but no new last.ckpt, then stopped before a validation."""
    run_stan(*words(tmp_path, "trainer.max_steps=2", "validation.keep=2"))
    old = kept(tmp_path)
    aside = {name.replace(".", "-before."): step for name, step in old.items()}
    command = words(tmp_path, "trainer.max_steps=6", "validation.crop=16", "validation.keep=2")
    struck(run_stan, command, RENAMING.format(count=1, what=KILL))
    assert sorted(kept(tmp_path).values()) == sorted(old.values())
    struck(run_stan, command, IN_STEP.format(step=4, name="SIGKILL"))
    assert kept(tmp_path) == {**aside, "best.ckpt": 3}
    seldom = [*command, "validation.every=6"]
    struck(run_stan, seldom, IN_STEP.format(step=4, name="SIGTERM"), 130)
    assert kept(tmp_path) == {**aside, **told(tmp_path)} == {**aside, "best.ckpt": 3}
    run_stan(*seldom)
    assert kept(tmp_path) == {**aside, **told(tmp_path)}
    assert sorted(told(tmp_path).values()) == [3, 6]


def test_a_best_that_is_elsewhere_is_not_named(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    run_stan(*words(tmp_path / "old", "trainer.max_steps=2"))
    run_stan(*words(tmp_path / "new", "trainer.max_steps=2", "optimizer.lr=1e-4"))
    old = kept(tmp_path / "new")["best.ckpt"]
    on = f"resume={tmp_path / 'old/last.ckpt'}"
    none = words(tmp_path / "new", on, "trainer.max_steps=3", "validation.every=0")
    assert "PSNR" not in run_stan(*none).stdout.splitlines()[-1]
    assert kept(tmp_path / "new") == {"best-before.ckpt": old}
    assert told(tmp_path / "new") == {}
    worse = words(tmp_path / "on", on, "trainer.max_steps=4", "optimizer.lr=0.3")
    named = run_stan(*worse).stdout.splitlines()[-1]
    best = json.loads((tmp_path / "on/summary.json").read_text())["best"][0]
    assert f"PSNR {best['psnr']:.2f} dB in {tmp_path / 'on/best.ckpt'}" in named
    assert kept(tmp_path / "on") == told(tmp_path / "on")
    assert best["step"] > 2
    (tmp_path / "on/best.ckpt").unlink()
    assert "PSNR" not in run_stan(*words(tmp_path / "on", "trainer.max_steps=4")).stdout.splitlines()[-1]


def test_a_best_that_cannot_be_written_is_not_named(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    full = RENAMING.format(count=1, what="raise OSError(28, 'No space left on device')")
    run = run_stan(*words(tmp_path, "trainer.max_steps=2", "validation.keep=2"), setup=full, code=2)
    assert "No space left" in one_line(run)
    assert kept(tmp_path) == told(tmp_path) == {"best.ckpt": 1}
