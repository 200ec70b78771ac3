"""Real trainings in a process: repeatable, killed and resumed, interrupted, fine-tuned."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stan.models import load, save
from tests.forked import Forks, Run

ROOT = Path(__file__).parents[2]

SMALL = (
    "data.crop=32", "data.frames=3", "data.batch_size=2", "data.workers=1", "optimizer.lr=1e-3",
    "validation.every=6", "validation.frames=3", "validation.crop=32", "trainer.accelerator=cpu",
    "trainer.log_every=1", "model.settings={}",
)  # fmt: skip


def words(root: Path, output: Path, *more: str) -> list[str]:
    return [
        "train", "train/davis_tiny.yaml", f"data.root={root}", f"output={output}", *SMALL,
        "optimizer.warmup_steps=2", *more,
    ]  # fmt: skip


def logged(output: Path, key: str = "train/loss") -> dict[int, float]:
    """The logged values of a run, by step; of a run in several parts the latest wins."""
    values = {}
    for path in sorted((output / "csv").glob("version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get(key):
                values[int(row["step"])] = float(row[key])
    return values


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["weights"]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.fixture(scope="module")
def straight(run_stan: Callable, davis_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps in one go."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    run_stan(*words(davis_root, output, "trainer.max_steps=12"))
    return output


def test_bfloat16_that_a_processor_emulates_is_said(
    run_stan: Callable, davis_root: Path, tmp_path: Path
) -> None:
    told = "bfloat16 is emulated on this device: trainer.precision=32-true is faster"
    few = words(davis_root, tmp_path / "run", "trainer.max_steps=3", "trainer.precision=bf16-mixed")
    done = run_stan(*few, "trainer.accelerator=cpu")
    assert (told in done.stdout + done.stderr) == (not torch.cpu._is_avx512_bf16_supported())


def test_a_run_leaves_checkpoints_log_pictures_and_configuration(straight: Path) -> None:
    assert {"last.ckpt", "best.ckpt", "config.yaml", "csv", "images"} <= {p.name for p in straight.iterdir()}
    assert sorted(logged(straight)) == list(range(1, 13))
    assert all(value > 0 for value in logged(straight).values())
    assert sorted(logged(straight, "val/psnr")) == [6, 12]
    assert len(list((straight / "images").glob("*.png"))) == 2
    assert not list(straight.glob(".*part"))
    content = torch.load(straight / "last.ckpt", weights_only=True)
    assert content["stan"]["config"]["data"]["crop"] == 32
    assert content["stan"]["trained"] == {"kind": "gaussian", "sigma": [30.0, 30.0], "steps": 12}


def test_same_seed_gives_the_same_losses_whatever_the_workers(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    run_stan(*words(davis_root, tmp_path / "again", "trainer.max_steps=12", "data.workers=4"))
    assert logged(tmp_path / "again") == logged(straight)
    assert_same_weights(tmp_path / "again/last.ckpt", straight / "last.ckpt")


def test_another_seed_gives_other_losses(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    run_stan(*words(davis_root, tmp_path / "other", "trainer.max_steps=3", "seed=1", "validation.every=0"))
    assert logged(tmp_path / "other")[1] != logged(straight)[1]


def test_killed_training_resumes_to_the_same_weights(
    run_stan: Forks, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    """SIGKILL at some moment after the checkpoint of step 4; the resumed run must end as the straight one."""
    output = tmp_path / "killed"
    command = words(davis_root, output, "trainer.max_steps=12", "trainer.checkpoint_every=4")
    run = run_stan.start(*command)
    run.until((output / "last.ckpt").exists)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    steps = torch.load(output / "last.ckpt", weights_only=True)["stan"]["trained"]["steps"]
    assert 4 <= steps < 12
    run_stan(*command)
    assert_same_weights(output / "last.ckpt", straight / "last.ckpt")
    for step, value in logged(output).items():
        assert value == logged(straight)[step]


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGINT, os.killpg)],
    ids=["SIGTERM to the trainer", "SIGTERM to all its processes", "Ctrl-C"],
)
def test_a_signal_saves_the_state_and_the_same_command_goes_on(
    run_stan: Forks,
    davis_root: Path,
    straight: Path,
    tmp_path: Path,
    number: signal.Signals,
    send: Callable,
) -> None:
    output = tmp_path / "stopped"
    command = words(davis_root, output, "trainer.max_steps=12", "trainer.checkpoint_every=3")
    run = run_stan.start(*command)
    run.until((output / "last.ckpt").exists)
    send(run.pid, number)  # a session of its own: the process group that Ctrl-C reaches in a terminal
    code = run.wait(120)
    assert not {"Traceback", "defect"} & set(run.stderr.split()), run.stderr
    assert code in (0, 130), run.stderr
    if code == 130:  # else the last step was done before the signal came
        assert "goes on from" in run.stdout
        run_stan(*command)
    assert_same_weights(output / "last.ckpt", straight / "last.ckpt")


def loaders(run: Run) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def test_a_killed_loader_is_started_anew_and_the_weights_are_the_same(
    run_stan: Forks, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    run = run_stan.start(*words(davis_root, output, "trainer.max_steps=12", "trainer.checkpoint_every=3"))
    run.until((output / "last.ckpt").exists)
    (loader,) = loaders(run)
    os.kill(loader, signal.SIGKILL)
    assert run.wait(120) == 0, run.stderr
    assert "a loader process was killed" in run.stderr
    assert_same_weights(output / "last.ckpt", straight / "last.ckpt")


def test_finished_run_and_foreign_run(run_stan: Callable, davis_root: Path, straight: Path) -> None:
    before = (straight / "last.ckpt").stat().st_mtime_ns
    done = run_stan(*words(davis_root, straight, "trainer.max_steps=12"))
    assert "12 steps already" in done.stdout
    assert (straight / "last.ckpt").stat().st_mtime_ns == before
    done = run_stan(*words(davis_root, straight, "trainer.max_steps=20", "model.name=unet_small"), code=2)
    assert "stan_tiny" in done.stderr
    assert "resume=never" in done.stderr


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_weights_alone_are_not_resumed(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path, suffix: str
) -> None:
    weights = save(load(straight / "last.ckpt"), tmp_path / f"weights{suffix}")
    command = words(davis_root, tmp_path / "on", "trainer.max_steps=14", f"resume={weights}")
    done = run_stan(*command, code=2)
    (line,) = done.stderr.strip().splitlines()
    assert f"{weights} holds weights alone" in line
    assert f"stan finetune checkpoint={weights}" in line
    assert not (tmp_path / "on/last.ckpt").exists()


def test_damaged_checkpoint_is_one_line(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    whole = (straight / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    done = run_stan(*words(davis_root, tmp_path, "trainer.max_steps=20"), code=2)
    assert "last.ckpt" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_finetune_reports_old_and_new_levels(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    done = run_stan(
        "finetune", "finetune/davis.yaml", f"checkpoint={straight / 'last.ckpt'}", f"data.root={davis_root}",
        f"output={output}", *SMALL[:-1], "noise.sigma=70", "trainer.max_steps=8", "optimizer.warmup_steps=1",
        "validation.every=0", "finetune.freeze=['*bias']", "finetune.keep_optimizer=true",
    )  # fmt: skip
    gains = {gain["sigma"]: gain for gain in json.loads((output / "finetune.json").read_text())["gains"]}
    assert {sigma: gain["origin"] for sigma, gain in gains.items()} == {30.0: "old", 70.0: "new"}
    assert gains[70.0]["after"] > gains[70.0]["before"]
    assert "70" in done.stdout
    old, new = weights(straight / "last.ckpt"), weights(output / "last.ckpt")
    assert all(torch.equal(old[key], new[key]) for key in old if key.endswith("bias"))
    assert any(not torch.equal(old[key], new[key]) for key in old)
    assert torch.load(output / "last.ckpt", weights_only=True)["stan"]["trained"]["sigma"] == [70.0, 70.0]


def test_finetune_goes_on_with_a_larger_network(
    run_stan: Callable, davis_root: Path, straight: Path, tmp_path: Path
) -> None:
    """It begins as the checkpoint's, is resumed as itself, and cannot be resumed as another."""
    command = [
        "finetune", "finetune/davis.yaml", f"checkpoint={straight / 'last.ckpt'}", f"data.root={davis_root}",
        f"output={tmp_path}", *SMALL[:-1], "noise.sigma=30", "optimizer.warmup_steps=1", "validation.every=0",
    ]  # fmt: skip
    grow = "finetune.grow={channels: [40, 64, 96], depths: [2, 2, 2]}"
    run_stan(*command, grow, "trainer.max_steps=2", "finetune.keep_optimizer=true")  # moments of other shapes
    (gain,) = json.loads((tmp_path / "finetune.json").read_text())["gains"]
    run_stan(*command[:4], f"output={tmp_path}-same", *command[5:], "trainer.max_steps=2")
    (same,) = json.loads((Path(f"{tmp_path}-same") / "finetune.json").read_text())["gains"]
    assert gain["before"] == pytest.approx(same["before"], abs=1e-3)
    assert gain["after"] != gain["before"]
    large = load(tmp_path / "last.ckpt")
    assert large.settings["channels"] == [40, 64, 96]
    done = run_stan(*command, grow, "trainer.max_steps=4")
    assert "resumed at step 2" in done.stdout
    done = run_stan(*command, "finetune.grow={name: stan_small}", "trainer.max_steps=6", code=2)
    assert "holds the network 'stan_tiny', but model.name is 'stan_small'" in done.stderr
    done = run_stan(*command, "finetune.grow={chanels: [40, 64, 96]}", code=2)
    assert "finetune.grow.chanels is not known; did you mean 'channels'?" in done.stderr


def test_accumulated_batches_make_one_step(run_stan: Callable, davis_root: Path, tmp_path: Path) -> None:
    run_stan(
        *words(
            davis_root, tmp_path / "sum", "trainer.max_steps=3", "trainer.accumulate=2", "validation.every=0"
        )
    )
    content = torch.load(tmp_path / "sum/last.ckpt", weights_only=True)
    assert content["global_step"] == 3


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "none"])
def test_loggers(run_stan: Callable, davis_root: Path, tmp_path: Path, logger: str) -> None:
    more = ("trainer.max_steps=2", "validation.every=2", "optimizer.warmup_steps=1", f"logger={logger}")
    run_stan(*words(davis_root, tmp_path / "run", *more))
    files = {
        "tensorboard": "tensorboard/version_0/events*",
        "wandb": "wandb/offline-run*/*.wandb",
        "none": "images/*.png",
    }
    assert list((tmp_path / "run").glob(files[logger]))
    assert (logger == "none") == (
        not list((tmp_path / "run").glob("*/*/events*")) and not (tmp_path / "run/wandb").exists()
    )


def test_small_clips_are_named(run_stan: Callable, davis_root: Path, tmp_path: Path) -> None:
    done = run_stan(*words(davis_root, tmp_path / "x", "data.crop=64", "trainer.max_steps=3"), code=2)
    assert "data.crop=64" in done.stderr
    assert not (tmp_path / "x").exists()  # nothing is left of a training that never began
    assert "a (64x48)" in done.stderr
