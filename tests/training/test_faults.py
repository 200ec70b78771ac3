"""Trainings that diverge, are killed, resumed with other settings, or lose one of their processes: really run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stan.config import documented_keys
from stan.config.schema import Resumed, on_resuming, option
from stan.training.lock import only_training
from stan.training.resuming import what_happens
from tests.conftest import ROOT
from tests.forked import Forks, Run
from tests.training.test_runs import assert_same_weights, logged

TINY = (
    "train", "train/davis_tiny.yaml", "data.crop=24", "data.frames=2", "data.batch_size=1", "data.workers=0",
    "optimizer.lr=1e-3", "optimizer.warmup_steps=1", "validation.every=0", "validation.frames=2", "validation.crop=24",
    "trainer.accelerator=cpu", "trainer.log_every=1",
)  # fmt: skip
FAULTY = """
import os, sys
from stan.training.module import DenoisingModule
step = DenoisingModule.training_step
def faulty(self, batch, batch_idx):
    if self.global_step == 1 and os.environ.get("LOCAL_RANK") == "1":
        raise RuntimeError("boom in one process")
    return step(self, batch, batch_idx)
DenoisingModule.training_step = faulty
"""


@pytest.fixture
def words(davis_root: Path) -> Callable[..., list[str]]:
    return lambda output, *more: [*TINY, f"data.root={davis_root}", f"output={output}", *more]


def ranks(run: Run) -> list[int]:
    """The processes of a training, which a fork server below it has started; the first is rank 0."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
    return sorted(pid for pid, parent in parents.items() if parents.get(parent) == run.pid)


def one_line(run: Run) -> str:
    lines = [
        line
        for line in run.stderr.strip().splitlines()
        if line.startswith("stan: ") and " imports " not in line
    ]
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_a_diverged_training_stops_and_writes_nothing_that_is_not_finite(
    run_stan: Forks, words: Callable, tmp_path: Path
) -> None:
    more = ("trainer.max_steps=40", "optimizer.lr=1e10", "optimizer.clip_norm=null", "trainer.max_skips=3")
    run = run_stan(*words(tmp_path, *more), code=2)
    assert "diverged" in one_line(run)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for table in ("weights", "state_dict"):
        assert all(bool(value.isfinite().all()) for value in content[table].values())
    (batch,) = tmp_path.glob("not_finite-*.pt")
    assert {"clean", "noisy", "sigma", "loss", "step"} <= torch.load(batch, weights_only=True).keys()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended"].startswith("failed")
    assert summary["skipped_steps"] == 3


def test_a_step_that_is_not_finite_changes_nothing(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    spoil = """
import torch
from stan.training.module import DenoisingModule
step = DenoisingModule.training_step
def faulty(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    return loss * (float("nan") if self.global_step == 2 else 1)
DenoisingModule.training_step = faulty
"""
    run_stan(*words(tmp_path / "two", "trainer.max_steps=2", "optimizer.schedule=constant"))
    run_stan(*words(tmp_path / "three", "trainer.max_steps=3", "optimizer.schedule=constant"), setup=spoil)
    assert_same_weights(tmp_path / "two/last.ckpt", tmp_path / "three/last.ckpt")
    assert logged(tmp_path / "three", "train/skipped_steps") == {1: 0, 2: 0, 3: 1}


def test_killed_inside_accumulated_steps_it_still_ends_in_the_same_bits(
    run_stan: Forks, words: Callable, tmp_path: Path
) -> None:
    """SIGKILL in the second of three batches of a step, twice; SIGTERM inside another."""
    more = ("trainer.max_steps=7", "trainer.accumulate=3", "trainer.checkpoint_every=2", "validation.every=3")
    run_stan(*words(tmp_path / "straight", *more))
    strike = """
import os, signal
from stan.training.module import DenoisingModule
step = DenoisingModule.training_step
def struck(self, batch, batch_idx):
    if batch_idx == {batch}:
        os.kill(os.getpid(), signal.{name})
    return step(self, batch, batch_idx)
DenoisingModule.training_step = struck
"""
    command = words(tmp_path / "struck", *more)
    for batch, name, code in ((7, "SIGKILL", -9), (10, "SIGTERM", 130), (16, "SIGKILL", -9)):
        run = run_stan.start(*command, setup=strike.format(batch=batch, name=name))
        assert run.wait() == code, run.stderr
        content = torch.load(tmp_path / "struck/last.ckpt", weights_only=True)
        done = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        assert done == 3 * content["global_step"]
    resumed = run_stan(*command)
    assert "resumed at step" in resumed.stdout
    assert_same_weights(tmp_path / "struck/last.ckpt", tmp_path / "straight/last.ckpt")
    assert sorted(logged(tmp_path / "struck", "val/psnr")) == [3, 6, 7]


def test_resuming_with_other_settings(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    run_stan(*words(tmp_path, "trainer.max_steps=2", "validation.every=2"))
    configuration = (tmp_path / "config.yaml").read_text()

    refused = run_stan(*words(tmp_path, "trainer.max_steps=9", "model.settings.channels=[8,12,16]"), code=2)
    assert "channels" in one_line(refused)
    assert "resume=never" in refused.stderr
    assert (tmp_path / "config.yaml").read_text() == configuration

    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"]
    told = run_stan(
        *words(
            tmp_path, "trainer.max_steps=3", "validation.every=2", "optimizer.lr=1e-5", "optimizer.weight_decay=0.1",
            "optimizer.schedule=constant", "validation.crop=16", "optimizer.rates={merge*: 0.5}",
        )
    )  # fmt: skip
    assert "resumed at step 2" in told.stdout
    assert "optimizer.lr=1e-05 (was 0.001)" in told.stdout
    assert "chosen anew" in told.stdout
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    groups = content["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [5e-6, 1e-5]
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert content["stan"]["starts"][1]["changed"]["optimizer.lr"] == [1e-3, 1e-5]
    assert torch.load(tmp_path / "best-before.ckpt", weights_only=True)["global_step"] == best
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3

    whole = bytearray((tmp_path / "last.ckpt").read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(whole)
    flipped = one_line(run_stan(*words(tmp_path, "trainer.max_steps=9"), code=2))
    assert "checksum" in flipped
    assert "best.ckpt" in flipped


def test_every_key_says_what_a_resumed_run_does() -> None:
    declared = dict(on_resuming())
    assert list(declared) == [key for key, setting in documented_keys() if not setting.section]
    assert all(isinstance(resumed, Resumed) for resumed in declared.values())
    assert what_happens("model.settings") is Resumed.REFUSED
    assert what_happens("optimizer.lr") is Resumed.TOLD
    assert what_happens("noise.sigma") is what_happens("seed") is Resumed.MEASURED
    assert what_happens("task_settings.blur") is what_happens("task_settings")
    assert what_happens("data.workers") is Resumed.APPLIED
    with pytest.raises(TypeError, match="resumed"):
        option(1, "a key that does not say it")


def test_the_table_of_resuming_is_that_of_the_page() -> None:
    program = "import scripts.config_page as page; print(page.resuming_table(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout in (ROOT / "docs/training.md").read_text(), "run python scripts/config_page.py"


def test_no_folder_is_left_of_a_training_that_never_began(tmp_path: Path, run_stan: Callable) -> None:
    words = ["train", "configs/train/demo.yaml", f"output={tmp_path}/runs/one", f"data.root={tmp_path}/none"]
    run_stan(*words, code=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    for folder, stays in (("mine", True), ("new/one", False)):
        with pytest.raises(ZeroDivisionError), only_training(tmp_path / folder):
            1 / 0  # noqa: B018
        assert (tmp_path / folder).exists() == stays
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_two_trainings_in_one_folder(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    """The second is refused; a lock left by a killed one is no obstacle, nor are its half-written files."""
    first = run_stan.start(*words(tmp_path, "trainer.max_steps=9999", "trainer.checkpoint_every=1"))
    first.until((tmp_path / "last.ckpt").exists)
    assert "training going on" in one_line(run_stan(*words(tmp_path, "trainer.max_steps=2"), code=2))
    tuning = "finetune", *words(tmp_path, "trainer.max_steps=2", "checkpoint=stan_tiny")[1:]
    assert "training going on" in one_line(run_stan(*tuning, code=2))
    assert not (tmp_path / "before.json").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (tmp_path / ".training.lock").exists()
    (tmp_path / ".last.ckpt.x.part").write_bytes(b"half")
    run_stan(*words(tmp_path, "trainer.max_steps=2"))
    assert not (tmp_path / ".training.lock").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_is_one_line_and_the_old_checkpoint_survives(
    run_stan: Forks, words: Callable, tmp_path: Path
) -> None:
    run_stan(*words(tmp_path, "trainer.max_steps=1", "optimizer.warmup_steps=0"))
    before = (tmp_path / "last.ckpt").read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    run = run_stan(*words(tmp_path, "trainer.max_steps=3"), code=2, setup=limit)
    assert "last.ckpt" in one_line(run)
    assert "kept" in run.stderr
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_patience_best_k_and_several_logs(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    more = ("trainer.max_steps=9", "validation.every=1", "validation.patience=2", "validation.keep=2")
    still = (
        "optimizer.lr=0",
        "ema.decay=0",
        "logger=[csv,tensorboard]",
    )  # no validation is better than the first
    run = run_stan(*words(tmp_path, *more, *still))
    assert "ended early at step 3" in run.stdout
    steps = [torch.load(tmp_path / n, weights_only=True)["global_step"] for n in ("best.ckpt", "best-2.ckpt")]
    assert steps == [1, 2]
    assert list(tmp_path.glob("tensorboard/version_0/events*"))
    assert sorted(logged(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("word", "says"), [("trainer.devices=99", "processors"), ("trainer.strategy=fsdp", "not supported")]
)
def test_what_cannot_be_used_is_told_at_once(
    run_stan: Forks, words: Callable, tmp_path: Path, word: str, says: str
) -> None:
    run = run_stan(*words(tmp_path / "out", word), code=2)
    assert says in one_line(run)
    assert not (tmp_path / "out").exists()


needs_two = pytest.mark.skipif(
    (os.cpu_count() or 1) < 2 or sys.platform != "linux", reason="needs two processors"
)


@needs_two
def test_two_processes_are_one_with_their_batches(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    """Noise included; one validation clip for two processes; a signal to one stops both."""
    run_stan(*words(tmp_path / "one", "trainer.max_steps=3", "data.batch_size=2", "validation.every=2"))
    run_stan(*words(tmp_path / "two", "trainer.max_steps=3", "trainer.devices=2", "validation.every=2"))
    for key in ("train/loss", "train/psnr", "val/psnr"):
        one, two = logged(tmp_path / "one", key), logged(tmp_path / "two", key)
        assert one.keys() == two.keys()
        assert all(math.isclose(one[step], two[step], rel_tol=1e-5) for step in one), key

    run = run_stan.start(
        *words(tmp_path / "stop", "trainer.max_steps=9999", "trainer.devices=2", "trainer.checkpoint_every=2")
    )
    run.until((tmp_path / "stop/last.ckpt").exists)
    os.kill(ranks(run)[1], signal.SIGTERM)
    assert run.wait(60) == 130, run.stderr
    stopped = json.loads((tmp_path / "stop/summary.json").read_text())
    content = torch.load(tmp_path / "stop/last.ckpt", weights_only=True)
    assert stopped["ended"] == "interrupted"
    assert content["global_step"] == stopped["steps"]


@needs_two
def test_a_process_that_fails_or_is_killed_ends_all(run_stan: Forks, words: Callable, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    failing = words(tmp_path / "out", "trainer.max_steps=9999", "trainer.devices=2", "imports=[faulty]")
    run = run_stan.start(*failing, cwd=tmp_path)
    assert run.wait(120) == 2
    assert "boom in one process" in one_line(run)
    assert "boom" in (tmp_path / "out/error-rank1.txt").read_text()
    assert torch.load(tmp_path / "out/last.ckpt", weights_only=True)["global_step"] == 1

    run = run_stan.start(
        *words(tmp_path / "out", "trainer.max_steps=9999", "trainer.devices=2", "trainer.checkpoint_every=2")
    )
    start = (tmp_path / "out/last.ckpt").stat().st_mtime_ns
    run.until(lambda: (tmp_path / "out/last.ckpt").stat().st_mtime_ns != start)
    mine = ranks(run)
    os.kill(mine[1], signal.SIGKILL)
    begun = time.monotonic()
    assert run.wait(60) == 2
    assert time.monotonic() - begun < 30
    assert "killed by signal 9" in one_line(run)
    left = subprocess.run(
        ["ps", "-o", "stat=", "-p", f"{mine[0]}"], capture_output=True, text=True, check=False
    )
    assert left.stdout.strip() in ("", "Z")


@pytest.mark.parametrize("size", ["data.frames", "data.batch_size"])
def test_batches_that_no_memory_holds(run_stan: Forks, words: Callable, tmp_path: Path, size: str) -> None:
    run = run_stan(*words(tmp_path, f"{size}=100000000", "trainer.max_steps=2"), code=2)
    assert f"{size}=100000000" in (line := one_line(run))
    assert "GiB" in line
