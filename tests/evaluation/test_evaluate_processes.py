"""``stan evaluate`` in real processes: going on after a kill, sharing the work, one line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stan import config as configs
from stan.errors import CheckpointError, ConfigError, DataError, StanError
from stan.evaluation import evaluate
from stan.evaluation.devices import Ranks, sharing
from tests.conftest import ROOT
from tests.evaluation.conftest import Make
from tests.evaluation.runs import MANY, quiet, rows
from tests.forked import Forks, Run


def command(out: Path, root: Path, *words: str) -> list[str]:
    """An evaluation of 4 sequences at 3 levels by two methods: 24 pieces."""
    common = ["checkpoint=[nlmeans,noisy]", "data.kind=davis", f"data.root={root}", f"output={out}", MANY]
    common += ["evaluation.split=trainval", "trainer.accelerator=cpu"]
    return ["evaluate", str(ROOT / "configs/evaluate/folder.yaml"), *common, *words]


def pieces(out: Path) -> dict[str, int]:
    """Finished pieces with the time of their writing."""
    return {p.name + p.parent.name: p.stat().st_mtime_ns for p in (out / "parts").rglob("*.json")}


@pytest.fixture(scope="module")
def undisturbed(davis_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of that evaluation by one process in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    _, config, *words = command(out, davis_root)
    evaluate(configs.load(config, words), console=quiet())
    return rows(out)


def test_killed_it_goes_on_and_ends_with_the_same_table(
    run_stan: Forks, davis_root: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    out = tmp_path / "killed"
    run = run_stan.start(*command(out, davis_root))
    run.until(lambda: len(pieces(out)) >= 6)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    before = pieces(out)
    assert 6 <= len(before) < 24
    assert not (out / "results.json").exists()

    done = run_stan(*command(out, davis_root))
    assert rows(out) == undisturbed
    after = pieces(out)
    assert len(after) == 24
    assert before.items() <= after.items(), "a finished piece was written again"
    assert f"{len(before)} of 24 pieces were done already" in done.stderr
    assert not list(out.rglob("*.lock"))
    table = [line for line in done.stdout.splitlines() if "nlmeans" in line]
    means = json.loads((out / "results.json").read_text())["means"]
    assert [f"{row['psnr']:.2f}" in line for line, row in zip(table, means[::2])] == [True] * 3
    assert str(out / "report.html") in done.stdout


def test_helper_processes_share_the_work(
    run_stan: Forks, davis_root: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    """trainer.devices=2 on the CPU starts one more process; the table is the same."""
    out = tmp_path / "shared"
    done = run_stan(*command(out, davis_root, "trainer.devices=2"))
    assert rows(out) == undisturbed
    assert "ended with code" not in done.stderr


def test_processes_of_torchrun_share_the_work_and_outlive_each_other(
    run_stan: Forks, davis_root: Path, tmp_path: Path, undisturbed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two processes with RANK and WORLD_SIZE: the second begins in the middle of the list, and is killed
    while both work; the first does the rest."""
    out = tmp_path / "ranks"

    def start(rank: int) -> Run:
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        return run_stan.start(*command(out, davis_root))

    second = start(1)
    second.until(lambda: list((out / "parts").rglob("c-10-*.json")))
    assert not list((out / "parts").rglob("a-10-*.json"))
    first = start(0)
    while not (first.ended or second.ended) and len(pieces(out)) < 18:
        time.sleep(0.005)
    if not second.ended:
        os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert first.wait(120) == 0, first.stderr
    assert rows(out) == undisturbed


def test_interrupting_says_how_to_go_on(run_stan: Forks, davis_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    run = run_stan.start(*command(out, davis_root))
    run.until(lambda: len(pieces(out)) >= 3)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    assert "Traceback" not in run.stderr
    assert "the same command goes on" in run.stderr
    assert 3 <= len(pieces(out)) < 24


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["checkpoint=null"], ConfigError, "nothing to evaluate"),
        (["checkpoint=gone.ckpt"], CheckpointError, "gone.ckpt does not exist"),
        (["evaluation.protocol=davis"], ConfigError, "'davis' is not known"),
        (["evaluation.split=vall"], DataError, "did you mean 'val'"),
        (["evaluation.split=null", "evaluation.protocol=davis-85"], DataError, "davis-85 uses test-dev"),
        (["evaluation.sequences=[aa]"], ConfigError, "no sequence 'aa'"),
        (["evaluation.sigmas=[]"], ConfigError, "sigmas is empty"),
        (["evaluation.border=22"], DataError, "too small"),
        (["evaluation.tiles={framez: 3}"], ConfigError, "'framez'.*'frames'"),
        (["evaluation.tiles={frames: 2.5}"], ConfigError, "frames=2.5"),
        (["evaluation.tiles={frames: 4}", "evaluation.memory=1GiB"], ConfigError, "not both"),
        (["evaluation.memory=lots"], ConfigError, "lots"),
        (["trainer.precision=64-true"], ConfigError, "64-true"),
        (["trainer.devices=0"], ConfigError, "devices=0"),
        (["noise.kind=gausian"], ConfigError, "'gausian'"),
        (["output=/dev/null"], ConfigError, "/dev/null cannot be made"),
        (["output=/dev/null/x"], ConfigError, "/dev/null/x cannot be made"),
        (["data.root=/nowhere"], DataError, "/nowhere does not exist"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(
    make_config: Make, words: list[str], error: type[StanError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        evaluate(make_config("checkpoint=noisy", *words), console=quiet())
    assert "\n" not in str(caught.value)


def test_damaged_checkpoint_and_frame_are_named(
    make_config: Make, davis_root: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoints["known"].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"broken\.ckpt"):
        evaluate(make_config(f"checkpoint={broken}"), console=quiet())
    data = tmp_path / "data"
    shutil.copytree(davis_root, data)
    (data / "JPEGImages/480p/c/00003.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"c/00003\.jpg"):
        evaluate(make_config("checkpoint=noisy", f"data.root={data}"), console=quiet())


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.of_environment() == Ranks(0, 1, 0, 1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Ranks.of_environment() == Ranks(5, 8, 1, 4)
    monkeypatch.setenv("RANK", "five")
    with pytest.raises(ConfigError, match="RANK='five'"):
        Ranks.of_environment()


def test_the_first_process_shares_memory_with_those_it_is_about_to_start(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    config = make_config("trainer.devices=4")
    cpu = torch.device("cpu")
    assert sharing(config, cpu, Ranks.of_environment()) == 4
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert sharing(config, cpu, Ranks.of_environment()) == 4
