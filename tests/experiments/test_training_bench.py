"""The training benchmark: time is shared out without a gap, and the real command says what it should."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import stan.cli
from stan.config import Config, load
from stan.experiments.training_bench.bench import Settings, by_part, run_bench, synthetic_parts
from stan.experiments.training_bench.measured import MeasuredModule
from stan.experiments.training_bench.report import print_tables
from stan.experiments.training_bench.timeline import (
    MARK,
    PARTS,
    PHASE,
    RANGE,
    Event,
    Label,
    Partition,
    Segment,
    partition,
    visible,
)
from stan.training.data_module import training_samples
from stan.training.fit import build_network
from stan.training.loading import TrainingBatches
from stan.training.module import DenoisingModule
from stan.training.trainer import build_trainer, quiet_lightning
from tests.conftest import ROOT
from tests.forked import Run

SMALL = [
    "data.crop=24", "data.frames=3", "data.batch_size=1", "data.workers=0", "trainer.accelerator=cpu",
    "model.settings={}",
]  # fmt: skip


def small(*words: str) -> Config:
    return load("train/davis_tiny.yaml", [*SMALL, *words])


def host(name: str, start: int, end: int, **more: int) -> Event:
    return Event(name, start, end, **more)


def marks(*moments: int) -> list[Event]:
    return [Event(MARK, at, at + 1) for at in moments]


def shared_out(found: Partition) -> dict[tuple[str, str], int]:
    """Nanoseconds by part and phase."""
    sums: dict[tuple[str, str], int] = {}
    for label, seconds in found.seconds.items():
        key = (label.part, label.phase)
        sums[key] = sums.get(key, 0) + round(seconds * 1e9)
    return sums


STEP = [
    host("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 110, 150),
    host("aten::stack", 120, 140),
    host(f"{RANGE}optimiser", 200, 1000),
    host(f"{PHASE}forward", 210, 500),
    host(f"{RANGE}noise", 220, 240),
    host("aten::randn", 225, 235),
    host("aten::conv2d", 250, 300, sequence=7, id=1),
    host("aten::convolution", 260, 290, sequence=7, id=2),
    host(f"{RANGE}flow", 300, 340),
    host("stan::search", 310, 320),  # as the source `pyramid` does
    host("stan::search", 340, 360, sequence=8),
    host(f"{RANGE}aggregation", 360, 420),
    host("aten::conv2d", 370, 380, sequence=8, id=3),
    host("aten::relu", 380, 390, sequence=9),
    host("stan::search", 390, 400),
    host("aten::relu", 430, 440, sequence=10),
    host(f"{PHASE}backward", 500, 800),
    host("autograd::engine::evaluate_function: ReluBackward0", 510, 530, sequence=10),
    host("autograd::engine::evaluate_function: ConvolutionBackward0", 540, 600, sequence=8),
    host("aten::convolution_backward", 550, 590),
    host("autograd::engine::evaluate_function: ConvolutionBackward0", 600, 700, sequence=7),
    host("aten::convolution_backward", 610, 690),
    host("aten::_foreach_lerp_", 850, 900),
]
EXPECTED = {
    ("data", "other"): 40,
    ("noise", "forward"): 20,
    ("flow", "forward"): 40,
    ("search", "forward"): 20 + 10,
    ("aggregation", "forward"): 60 - 10,
    ("convolutions", "forward"): 50,
    ("rest", "forward"): 290 - 20 - 40 - 20 - 60 - 50,
    ("rest", "backward"): 300 - 60 - 100,
    ("aggregation", "backward"): 60,
    ("convolutions", "backward"): 100,
    ("optimiser", "other"): 10 + 200,
    ("rest", "other"): 10 + 50 + 100,
}


def test_a_step_is_shared_out_without_a_gap() -> None:
    found = partition([*marks(100, 1100), *STEP, host("before", 0, 90), host("after", 1200, 1300)])
    assert shared_out(found) == EXPECTED
    assert sum(EXPECTED.values()) == 1000
    assert found.steps == 1
    assert found.device_busy == 0
    operations = {label.operation for label in found.seconds}
    assert {"aten::randn", "aten::stack", "aten::convolution_backward", "aten::_foreach_lerp_"} <= operations


def test_on_a_gpu_kernels_count_and_the_host_where_none_runs() -> None:
    """With the backward pass in a thread of its own, and kernels that run after the host has gone on."""
    backward = [e for e in STEP if "Backward" in e.name or ("backward" in e.name and "stan" not in e.name)]
    main = [e for e in STEP if e not in backward]
    moved = [Event(e.name, e.start, e.end, thread=5, sequence=e.sequence, id=e.start) for e in backward]
    kernels = [
        Event("conv", 320, 380, link=2, device=True),
        Event("conv in the merge", 380, 430, link=3, device=True),
        Event("backward", 620, 720, link=610, device=True),
        Event("at once in another stream", 700, 730, link=3, device=True),
    ]
    elsewhere = [host("aten::pin_memory", 300, 900, thread=9)]  # of no step's waiting
    found = partition([*marks(100, 1100), *main, *moved, *kernels, *elsewhere])
    sums = shared_out(found)
    assert sum(sums.values()) == 1000
    assert sums["convolutions", "forward"] == 50 + 60
    assert sums["aggregation", "forward"] == 50 + 10
    assert sums["flow", "forward"] == 20
    assert ("search", "forward") not in sums
    assert sums["convolutions", "backward"] == 120
    assert found.device_busy == pytest.approx(0.220)


def test_marks_are_needed() -> None:
    with pytest.raises(ValueError, match="two marks"):
        partition([*marks(100), *STEP])


def test_what_is_covered_by_later_segments_is_not_counted() -> None:
    a, b = Label("rest", "other", "a"), Label("loss", "other", "b")
    lower = [Segment(0, 10, a), Segment(10, 20, a), Segment(30, 40, a)]
    upper = [Segment(2, 4, b), Segment(8, 12, b), Segment(19, 35, b), Segment(50, 60, b)]
    assert visible([*lower, *upper], 0, 100) == [2 + 4, 7, 5, *(s.end - s.start for s in upper)]
    assert visible([*lower, *upper], 9, 32) == [0, 7, 0, 0, 3, 13, 0]


def test_parts_are_in_times_of_a_step_that_was_not_profiled() -> None:
    found = Partition({Label("noise", "forward", "x"): 3.0, Label("rest", "backward", "y"): 1.0}, 2, 0.0)
    parts = by_part(found, 0.1)
    assert list(parts) == list(PARTS)
    assert parts["noise"] == {
        "share": 0.75, "milliseconds": pytest.approx(75), "forward": pytest.approx(75), "backward": 0, "other": 0,
    }  # fmt: skip


def test_what_is_measured_is_what_trains() -> None:
    config = small("trainer.max_steps=2", "optimizer.warmup_steps=0")
    samples = training_samples(config, synthetic_parts(config))
    weights = []
    for kind in (DenoisingModule, MeasuredModule):
        module = kind(build_network(config), config)
        with quiet_lightning():
            build_trainer(config).fit(module, TrainingBatches(config, samples, workers=0))
        weights.append(module.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def shares(row: dict) -> dict[str, float]:
    return {part: found["share"] for part, found in row["parts"].items()}


def test_the_command_writes_what_it_measured(run_stan: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = [*SMALL, "--models", "stan_tiny,unet_tiny", "--steps", 2, "--profiled", 2, "--json", path]
    done = run_stan("bench", "train", *words, "--operations", 5, "--threads", 1, cwd=tmp_path)
    assert "samples/s" in done.stdout
    assert "Kineto" not in done.stderr
    assert "USDT" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == 1
    assert report["settings"]["own_data"] is False
    assert [row["model"] for row in report["rows"]] == ["stan_tiny", "unet_tiny"]
    for row in report["rows"]:
        assert row["config"]["data"]["crop"] == 24
        assert row["config"]["trainer"]["precision"] == "bf16-mixed"  # of the recipe, CONFIG left out
        assert len(row["step_seconds"]) == 2
        assert row["steps_per_second"] == pytest.approx(2 / sum(row["step_seconds"]))
        assert row["samples_per_second"] == pytest.approx(row["steps_per_second"])
        assert 0 <= row["data_wait"] < 1
        assert row["cpu_seconds_per_step"] > 0
        assert row["peak_bytes"] > 100 << 20
        assert all(rate > 0 for rate in row["loader"].values())
        # what training takes, waiting left out, times the ratio is the loader's rate
        consumed = row["samples_per_second"] / (1 - row["data_wait"])
        assert row["loader_times"]["1"] * consumed == pytest.approx(row["loader"]["1"])
        found = shares(row)
        assert tuple(found) == PARTS
        assert sum(found.values()) == pytest.approx(1)
        seconds = sum(part["milliseconds"] for part in row["parts"].values()) / 1000
        assert seconds == pytest.approx(sum(row["step_seconds"]) / 2)
        for part in row["parts"].values():
            phases = part["forward"] + part["backward"] + part["other"]
            assert part["milliseconds"] == pytest.approx(phases)
        assert found["window attention"] == 0
        for part in ("noise", "flow", "search", "aggregation", "convolutions", "loss", "optimiser", "rest"):
            assert found[part] > 0, part
        assert row["parts"]["convolutions"]["backward"] > 0
        assert row["parts"]["aggregation"]["backward"] > 0
        assert row["parts"]["flow"]["backward"] == row["parts"]["optimiser"]["forward"] == 0
        assert row["device_busy"] == 0
        assert sum(o["share"] for o in row["operations"]) <= 1 + 1e-9


def test_parts_are_plausible(davis_root: Path) -> None:
    """No attention, no search; a window part; a search by the reference; accumulated steps; own data."""
    tiny = "model.name=unet_tiny"
    own = [f"data.root={davis_root}", "trainer.accumulate=2"]
    configs = [
        small(tiny, "model.settings={attention: none}", *own),
        small(tiny, "model.settings={mixer: window, window_heads: 1}", *own, "model.flow=zero"),
    ]
    settings = Settings(
        steps=1, warm=1, profiled=1, own_data=True, operators=("reference",), loader_seconds=0.01
    )
    plain, window = run_bench(configs, settings).rows
    assert plain.operator == window.operator == "reference"
    assert plain.samples_per_second == pytest.approx(2 * plain.steps_per_second)
    for part in ("flow", "search", "aggregation", "window attention"):
        assert plain.parts[part]["share"] == 0, part
    assert plain.parts["convolutions"]["share"] > 0.1
    for part in ("search", "aggregation", "window attention"):
        assert window.parts[part]["forward"] > 0, part
        assert window.parts[part]["backward"] > 0, part


def test_tables_fit_into_80_columns() -> None:
    settings = Settings(steps=1, warm=1, profiled=1, loader_seconds=0.01)
    report = run_bench([small(), small("model.name=unet_tiny")], settings)
    text = StringIO()
    print_tables(report, Console(file=text, width=80), operations=8)
    assert "…" not in text.getvalue()
    for part in PARTS:
        assert text.getvalue().count(f"  {part} ") >= 2


def test_gpu_check_ends_with_the_table(tmp_path: Path) -> None:
    """Its training step, rehearsed on the CPU."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts/gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    gpu_check = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = gpu_check
    try:
        spec.loader.exec_module(gpu_check)
    finally:
        del sys.modules["gpu_check"]
    run, path = gpu_check.Run(tmp_path, minutes=5), tmp_path / "training.json"
    gpu_check._training(run, path, [*SMALL, "--models", "unet_tiny", "--steps", "1", "--profiled", "1"])
    assert [step.result for step in run.steps] == ["ok"]
    lines = gpu_check._training_figures(json.loads(path.read_text())).splitlines()
    assert len(lines) == 2
    assert re.match(r"unet_tiny +[\d.]+ +[\d.]+ +[\d.]+% +0% +\d+  \w+ \d+%, ", lines[1]), lines[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--models", "stan_tinny"], "did you mean"),
        (["--operators", "quick"], "--operators"),
        (["--json", "/no/such/folder/x.json"], "/no/such/folder does not exist"),
        (["data.root=/no/such/data", "--own-data"], "/no/such/data"),
        (["nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["data.crop=0"], "data.crop=0"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert stan.cli.main(["bench", "train", *words]) == 2
    assert message in capsys.readouterr().err
