"""The experiments: the frame, alignment against a known motion, tiny runs of each kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats
from torchvision.models.optical_flow import raft_small

import stan.cli
import stan.models
from stan.errors import ConfigError, DataError
from stan.experiments.alignment.findings import gain, motion_gain
from stan.experiments.alignment.measure import Search, end_point_error, errors, pairs_of, searched
from stan.experiments.alignment.sequences import Truth, load
from stan.experiments.comparison import STUDENT, _difference
from stan.experiments.frame import ROWS, Experiment, Report, Task, run_tasks
from stan.experiments.plot import HEIGHT, WIDTH, Chart, Line, write_chart
from stan.experiments.run import available, make_plan
from stan.experiments.search_cost import ratios
from stan.flow import FlowPair

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Numbers:
    factor: int = 1


class Counting(Experiment):
    """Three tasks; the last one fails while `fails` is true."""

    def __init__(self, folder: Path, factor: int = 1) -> None:
        super().__init__(folder, Numbers(factor))
        self.ran: list[int] = []
        self.fails = False

    def tasks(self) -> Iterator[Task]:
        for n in range(3):
            yield Task({"n": n}, lambda n=n: self.one(n))

    def one(self, n: int) -> list[dict[str, Any]]:
        if self.fails and n == 2:
            raise KeyboardInterrupt
        self.ran.append(n)
        return [{"value": n * self.settings.factor}]

    def report(self, rows: list[dict[str, Any]]) -> Report:
        return Report()


def test_what_is_killed_goes_on(tmp_path: Path) -> None:
    first = Counting(tmp_path)
    first.fails = True
    with pytest.raises(KeyboardInterrupt):
        run_tasks(first, QUIET)
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"made_by": "half a li')
    second = Counting(tmp_path)
    assert run_tasks(second, QUIET) == [{"n": 0, "value": 0}, {"n": 1, "value": 1}, {"n": 2, "value": 2}]
    assert second.ran == [2]
    third = Counting(tmp_path)
    assert len(run_tasks(third, QUIET, compute=False)) == 3
    assert third.ran == []


def test_rows_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    run_tasks(Counting(tmp_path), QUIET)
    other = Counting(tmp_path, factor=10)
    with pytest.raises(DataError, match="without --report"):
        run_tasks(other, QUIET, compute=False)
    assert [row["value"] for row in run_tasks(other, QUIET)] == [0, 10, 20]
    assert [row["value"] for row in run_tasks(Counting(tmp_path), QUIET)] == [0, 1, 2]


def test_charts_are_pictures_of_the_size_that_is_said(tmp_path: Path) -> None:
    lines = [
        Line("a", [(1, 2), (10, float("nan")), (100, 5)], [0.1, 0, 0.2]),
        Line("b", [(3, 1)], dashed=True),
    ]
    chart = Chart("title", "x", "y", lines, (("level", 3.0),), x_log=True)
    assert write_chart(tmp_path / "chart.png", chart)
    picture = Image.open(tmp_path / "chart.png")
    assert picture.size == (WIDTH, HEIGHT)
    assert len(picture.getcolors(1 << 20) or ()) > 50
    assert not write_chart(tmp_path / "none.png", Chart("t", "x", "y", [Line("a", [])]))
    assert not (tmp_path / "none.png").exists()


def shifted_clip(dx: int = 2, dy: int = 1, frames: int = 4) -> tuple[torch.Tensor, FlowPair]:
    """A texture that moves by (dx, dy) a frame, `(1, T, 3, 32, 40)`, and its motion."""
    texture = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    views = [texture[:, 15 - dy * t : 47 - dy * t, 20 - dx * t : 60 - dx * t] for t in range(frames)]
    flow = torch.tensor([dx, dy]).float().view(1, 1, 2, 1, 1).expand(1, frames, 2, 32, 40).contiguous()
    return torch.stack(views)[None], FlowPair(flow, -flow)


@pytest.mark.parametrize("stride", [1, 2])
def test_alignment_finds_a_known_motion_in_both_directions(stride: int) -> None:
    clean, motion = shifted_clip()
    still = pairs_of(FlowPair(*(torch.zeros_like(f) for f in motion)))
    found = searched(clean, still, Search(window=5, patch=3, stride=stride))
    inside = (..., slice(6, -6), slice(6, -6), 0, slice(None))
    for pairs, true in zip(found, pairs_of(motion)):
        assert torch.equal(pairs.offsets[:, :, pairs.valid][inside], true.offsets[:, :, pairs.valid][inside])
    assert searched(clean, still, Search(window=1, patch=3)) is still


def test_errors_and_end_point_error_are_those_of_the_definition() -> None:
    clean, motion = shifted_clip(dx=1, dy=0, frames=3)
    true = pairs_of(motion)
    still = pairs_of(FlowPair(*(torch.zeros_like(f) for f in motion)))
    everywhere = torch.ones(3, 32, 40, dtype=torch.bool)
    truth = Truth(motion, (everywhere.clone(), everywhere.clone()))
    assert end_point_error(true, truth) == 0
    assert end_point_error(still, truth) == pytest.approx(1)
    found = errors(clean, still, true, averaging=1)
    pairs = [(0, 1), (1, 2), (1, 0), (2, 1)]
    expected = [-10 * (clean[0, a] - clean[0, b]).square().mean().log10() for a, b in pairs]
    assert found["psnr"] == pytest.approx(float(sum(expected)) / 4, abs=1e-4)
    assert found["pixels"][2] == 4 * 32 * 40  # all of them move by one pixel: the class "1 to 2"
    assert sum(found["pixels"]) == found["pixels"][2]


def test_significant_corrections_only() -> None:
    """Where the flow is right, noise alone moves a match; the test forbids nearly all of it."""
    clean, motion = shifted_clip()
    sigma = 0.02
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    flat = 0.5 + (noisy - clean)  # no texture: nothing but noise to compare
    kept = []
    for tested in (False, True):
        found = searched(flat, pairs_of(motion), Search(3, 7, tested=tested, variance=25 * sigma**2))
        kept.append(float((found[0].offsets == pairs_of(motion)[0].offsets).all(-1).float().mean()))
    assert kept[0] < 0.4
    assert kept[1] > 0.9


def test_true_motion_of_synthetic_clips_is_cut_with_the_frames() -> None:
    whole = load("synthetic", "train", "1x-00", frames=3, crop=0, size=(48, 64), seed=0)
    part = load("synthetic", "train", "1x-00", frames=3, crop=32, size=(48, 64), seed=0)
    assert whole.truth
    assert part.truth
    assert torch.equal(part.frames, whole.frames[..., 8:40, 16:48])
    assert torch.equal(part.truth.flow.forward, whole.truth.flow.forward[..., 8:40, 16:48])
    assert part.truth.seen[0].shape == (3, 32, 32)


def test_gains_are_of_the_flow_alone_with_the_same_averaging() -> None:
    rows = [
        {"window": 1, "psnr_averaged": 30.0, "psnr_single": 31.0, "squares_single": [4.0, 0.0]},
        {"window": 9, "psnr_averaged": 33.0, "psnr_single": 30.5, "squares_single": [0.4, 0.0]},
    ]
    assert gain(rows, 9, "averaged") == 3.0
    assert gain(rows, 9, "single") == -0.5
    found = motion_gain(rows, 9, "single")
    assert found[0] == pytest.approx(10)
    assert found[1] != found[1]  # no pixel


ALIGN = [
    "root=synthetic", "size=[48,64]", "sequences=1", "speeds=[1]", "frames=3", "windows=[1,3]", "sources=[dis,zero]",
    "searched=[noisy,clean]", "sigmas=[15]", "patches=[3]", "strides=[1]", "exhaustive=9",
]  # fmt: skip


def test_alignment_runs_and_says_both_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment", "alignment", *ALIGN, "--output", str(tmp_path)]
    assert stan.cli.main(words) == 0
    assert "without the averaging" in capsys.readouterr().out
    record = json.loads((tmp_path / "results.json").read_text())
    assert len(record["rows"]) == 3 * 2  # base, another source, other frames; two windows each
    assert all("recall" in row and "end_point_error" in row for row in record["rows"])
    report = (tmp_path / "report.md").read_text()
    for word in (
        "Gain over the flow alone",
        "End-point error",
        "gain_by_motion.png",
        "stan experiment alignment",
    ):
        assert word in report
    assert (tmp_path / "rows.csv").read_text().count("\n") == 7
    before = (tmp_path / ROWS).read_bytes()
    assert stan.cli.main([*words, "--report"]) == 0
    assert (tmp_path / ROWS).read_bytes() == before


def test_alignment_takes_sources_that_learn_and_weights_of_raft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = stan.models.build("unet_tiny", channels=[8], depths=[1], heads=[1], flow="learned")
    with torch.no_grad():
        network.source.steps[0].correct[-1].bias.fill_(1.0)  # one pixel of the coarsest level
    trained = stan.models.save(network, tmp_path / "trained.ckpt")
    weights = tmp_path / "raft.pth"
    torch.save(raft_small(weights=None).state_dict(), weights)
    given = [
        f"trained={trained}",
        f"source_settings.raft.weights={weights}",
        "source_settings.raft.updates=1",
    ]
    words = ["experiment", "alignment", *ALIGN, "sources=[zero,learned,raft]", "searched=[noisy]", *given]
    words += ["--output", str(tmp_path / "run")]
    assert stan.cli.main(words) == 0
    rows = json.loads((tmp_path / "run/results.json").read_text())["rows"]
    alone = {row["source"]: row["psnr_single"] for row in rows if row["window"] == 1}
    assert len(set(alone.values())) == 3  # so the one that learns does not say zero
    for left_out, message in (
        (given[0], "'learned' is trained, and says nothing by itself: give trained="),
        (given[1], "needs a setting weights"),
    ):
        capsys.readouterr()
        assert stan.cli.main([word for word in words if word != left_out]) == 2
        assert message in capsys.readouterr().err
    other = stan.models.save(stan.models.build("unet_tiny", flow="zero"), tmp_path / "other.ckpt")
    assert stan.cli.main([word if word != given[0] else f"trained={other}" for word in words]) == 2
    assert "the offset source of this network is 'zero', not 'learned'" in capsys.readouterr().err


def test_experiments_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert stan.cli.main(["experiment"]) == 0
    listed = capsys.readouterr().out
    assert {"alignment", "memory", "attention", "offsets", "noise", "resolution", "ablation"} <= {
        *available()
    }
    assert all(name in listed for name in available())
    assert stan.cli.main(["experiment", "alignment", "--settings"]) == 0
    assert "windows: [1, 3, 5, 9, 13, 21]  # ws" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["attention", "offsets", "ablation", "noise", "resolution"])
def test_every_network_of_the_comparisons_can_be_built(name: str, tmp_path: Path) -> None:
    """Settings of each variant, in the long and in the short form, by the network's own checks."""
    from stan.training.fit import build_network

    for quick in (False, True):
        experiment = make_plan(name, quick=quick, output=str(tmp_path)).experiment
        assert list(experiment.tasks())
        for variant in experiment.settings.variants:
            build_network(experiment.config(variant, 0))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["aligment"], "did you mean 'alignment'"),
        (["alignment", "windws=3"], "windws"),
        (["alignment", "windows=[2]"], "odd"),
        (["alignment", "root=/nowhere"], "/nowhere"),
        (["attention", "tests.dark={nois: poisson}"], "nois"),
        (["memory", "methods=[fastest]"], "fastest"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stan.cli.main(["experiment", *words, "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert part in line
    assert line.count("\n") == 1


def test_a_comparison_trains_and_tries_each_network_once(tmp_path: Path, davis_root: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = """\
kind: comparison
title: mine
config: train/demo.yaml
root: ROOT
steps: 2
seeds: [0, 1]
sigmas: [30]
test_frames: 3
test_crop: 32
finetune_steps: 2
words: [model.name=unet_tiny, model.flow=zero, "model.settings.channels=[4,4]", data.crop=16, data.frames=3,
  data.batch_size=1, data.workers=0, trainer.accelerator=cpu]
variants:
  shifted: []
  none: [model.settings.attention=none]
tests: {gaussian: {}, small: {downscale: 2, step: 2}, poisson: {noise: poisson}}
finetune: {poisson: [noise.kind=poisson]}
claims: [{better: shifted, than: none, says: attention pays}]
"""
    file.write_text(text.replace("ROOT", str(davis_root)))
    plan = make_plan(str(file), output=str(tmp_path / "out"))
    rows = run_tasks(plan.experiment, QUIET)
    assert len(rows) == 2 * 2 * (3 + 1)  # variants, seeds, tests and one test once more after fine-tuning
    assert {row["tuned"] for row in rows if row["test"] == "poisson"} == {False, True}
    assert all(5 < row["psnr"] < 60 for row in rows)
    report = plan.experiment.report(rows)
    assert "attention pays" in report.conclusions[0]
    assert "±" in report.tables[0].cells[1][2]
    again = make_plan(str(file), output=str(tmp_path / "out"))
    assert run_tasks(again.experiment, QUIET, compute=False) == rows


def test_the_cost_of_the_search_is_told_as_multiples(tmp_path: Path) -> None:
    words = ["height=16", "width=16", "frames=3", "windows=3", "patches=1", "features=4", "heads=1", "repeats=1",
             "methods=[reference,candidates]"]  # fmt: skip
    plan = make_plan("memory", words, output=str(tmp_path))
    rows = run_tasks(plan.experiment, QUIET)
    assert len(rows) == 4  # two methods, two passes
    assert all(row["problem"] is None and row["seconds"] > 0 for row in rows)
    report = plan.experiment.report(rows)
    assert report.tables[0].cells[0][0] == "window 3, patch 1, channels 4, heads 1"


def test_ratios_leave_out_what_did_not_run() -> None:
    axes = {"window": 3, "patch": 1, "channels": 4, "heads": 1}
    rows = [
        {**axes, "method": "native", "seconds": 1.0, "extra_bytes": 10},
        {**axes, "method": "database", "seconds": 4.0, "extra_bytes": None},
    ]
    assert ratios(rows, "database", "native", "time") == [4.0]
    assert ratios(rows, "database", "native", "memory") == []


def test_an_experiment_without_variants_is_told(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    file.write_text("kind: comparison\n")
    with pytest.raises(ConfigError, match="variants"):
        make_plan(str(file))


def test_what_is_decided_is_so_by_students_t() -> None:
    """Against scipy: the quantiles, and a test of the mean of differences within seeds."""
    for n, bound in enumerate(STUDENT):
        assert bound == pytest.approx(stats.t.ppf(0.975, n + 1), abs=0.006)
    for shift in (0.0, 0.05, 0.1, 0.2, -0.2):
        values = [shift + x for x in (0.03, -0.02, 0.05, -0.06)]
        rows = [
            {"variant": name, "seed": seed, "psnr": 30 + (value if name == "a" else 0)}
            for seed, value in enumerate(values)
            for name in ("a", "b")
        ]
        verdict = _difference(rows, "a", "b")[1]
        assert (verdict != "open") == (stats.ttest_1samp(values, 0).pvalue < 0.05)
        assert verdict in ("open", "more" if shift > 0 else "less")
