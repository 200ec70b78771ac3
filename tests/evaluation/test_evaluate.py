"""``evaluate`` as a whole: the tables, and what moves a figure."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import stan
from stan import config as configs
from stan import models
from stan.data import noise as noises
from stan.data import open_clips
from stan.errors import ConfigError
from stan.evaluation import add_noise, evaluate, flicker, strred
from stan.evaluation.facts import lead
from stan.evaluation.methods import NLMeans
from stan.evaluation.notes import notes_of
from stan.evaluation.plan import make_plan
from stan.inference import TilePlan
from stan.metrics import METRICS, Metric
from stan.models import load
from stan.models.stan import Stan
from tests.evaluation.conftest import Make
from tests.evaluation.runs import count_computed, quiet


def test_figures_are_those_of_the_protocol(
    make_config: Make, davis_root: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Everything recomputed by hand: noise, network, scikit-image, means."""
    config = make_config(f"checkpoint={checkpoints['known']}", "evaluation.sigmas=[20,35]")
    results = evaluate(config, console=quiet())

    model = load(checkpoints["known"])
    expected: dict[float, list[tuple[float, float]]] = {20: [], 35: []}
    for clip in open_clips("davis", davis_root, "trainval"):
        for sigma in expected:
            frames = clip.read(0, min(len(clip), 10))
            clean = frames.numpy().astype(np.float32) / np.float32(255)
            noisy = add_noise(frames, noises.build("gaussian"), sigma, sequence=clip.name)
            output = stan.denoise(model, noisy, sigma, scenes=False)
            pairs = [(x, y) for x, y in zip(clean, output.clamp(0, 1).numpy())]
            psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs])
            ssim = np.mean([structural_similarity(x, y, data_range=1, channel_axis=0) for x, y in pairs])
            raw = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(clean, noisy.numpy())])
            (row,) = [r for r in results.sequences if (r["sequence"], r["sigma"]) == (clip.name, sigma)]
            assert row["psnr"] == pytest.approx(psnr, abs=1e-4)
            assert row["ssim"] == pytest.approx(ssim, abs=1e-6)
            assert row["psnr_noisy"] == pytest.approx(raw, abs=1e-4)
            assert row["strred"] == pytest.approx(strred(torch.from_numpy(clean), output), rel=1e-6)
            assert row["flicker"] == pytest.approx(
                float(flicker(torch.from_numpy(clean), output).mean()), rel=1e-6
            )
            assert len(row["psnr_frames"]) == row["frames"] == len(frames)
            expected[sigma].append((psnr, ssim))
    for row in results.means:
        psnr, ssim = np.mean(expected[row["sigma"]], axis=0)
        assert row["psnr"] == pytest.approx(psnr, abs=1e-4)
        assert row["ssim"] == pytest.approx(ssim, abs=1e-6)
        assert row["psnr_noisy"] == pytest.approx(20 * math.log10(255 / row["sigma"]), abs=0.05)
        assert row["sequences"] == 4
        assert row["frames"] == 6 + 7 + 9 + 6


def test_found_levels(davis_root: Path, checkpoints: dict[str, Path], make_config: Make) -> None:
    """`evaluation.find_level` gives what `stan.denoise` makes of the same noise without being told its level."""
    results = evaluate(
        make_config(
            f"checkpoint={checkpoints['known']}", "evaluation.sigmas=[20]", "evaluation.find_level=true"
        ),
        console=quiet(),
    )
    model = load(checkpoints["known"])
    for clip in open_clips("davis", davis_root, "trainval"):
        frames = clip.read(0, min(len(clip), 10))
        noisy = add_noise(frames, noises.build("gaussian"), 20, sequence=clip.name)
        output = stan.denoise(model, noisy, "auto", scenes=False).clamp(0, 1).numpy()
        clean = frames.numpy().astype(np.float32) / np.float32(255)
        psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(clean, output)])
        (row,) = [r for r in results.sequences if r["sequence"] == clip.name]
        assert row["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert results.methods[0]["find_level"] is True


def test_another_temporal_window(davis_root: Path, make_config: Make, tmp_path: Path) -> None:
    """`evaluation.temporal_window` gives what a network of that window makes of the same weights."""
    model = models.build(
        "stan_tiny", channels=[4, 4], depths=[1, 1], features=2, flow="zero", temporal_window=1
    )
    with torch.no_grad():  # fresh weights change little: what is merged is seen
        model.clean.leave.weight.zero_()
        model.clean.leave.bias.zero_()
    checkpoint = models.save(model, tmp_path / "narrow.ckpt")
    words = [f"checkpoint={checkpoint}", "evaluation.sigmas=[40]", "evaluation.sequences=[c]"]
    narrow = evaluate(make_config(*words), console=quiet())
    wide = evaluate(
        make_config(*words, "evaluation.temporal_window=2", f"output={tmp_path}/wide"), console=quiet()
    )
    wider = models.build("stan_tiny", **{**model.settings, "temporal_window": 2}).eval()
    wider.load_state_dict(model.state_dict())
    (clip,) = [clip for clip in open_clips("davis", davis_root, "trainval") if clip.name == "c"]
    frames = clip.read(0, len(clip))
    noisy = add_noise(frames, noises.build("gaussian"), 40, sequence="c")
    output = stan.denoise(wider, noisy, 40, scenes=False).clamp(0, 1).numpy()
    clean = frames.numpy().astype(np.float32) / np.float32(255)
    psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(clean, output)])
    assert wide.sequences[0]["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert abs(narrow.sequences[0]["psnr"] - psnr) > 0.01
    assert wide.methods[0]["settings"]["temporal_window"] == 2
    assert "temporal window 2" in (tmp_path / "wide/report.html").read_text()


def test_files_hold_the_figures_and_all_that_moves_them(
    make_config: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    words = [checkpoints["known"], checkpoints["blind"], "nlmeans", "noisy"]
    config = make_config(
        f"checkpoint=[{','.join(map(str, words))}]", "evaluation.sigmas=[30,50]", "evaluation.sequences=[d]"
    )
    results = evaluate(config, console=quiet())
    out = tmp_path / "out"
    content = json.loads((out / "results.json").read_text())

    assert content["protocol"] == "quick"
    assert content["modified"] is True
    assert content["seed"] == 2309
    assert content["checkpoint"] == [str(word) for word in words]
    assert [(m["sigma"], m["method"]) for m in content["means"]] == [
        (s, m) for s in (30, 50) for m in ("known", "blind", "nlmeans", "noisy")
    ]
    for row in content["means"]:
        assert {"sigma", "psnr", "ssim", "psnr_noisy"} <= row.keys()
    for row in content["sequences"]:
        assert {"sequence", "frames", "sigma", "psnr", "ssim", "psnr_noisy"} <= row.keys()
    assert {
        "protocol", "departures", "seed", "data", "max_frames", "noise", "output", "border", "precision",
        "tiles", "scenes", "device", "code", "versions",
    } <= content["settings"].keys()  # fmt: skip
    assert content["settings"]["noise"]["clipped"] is False
    assert content["settings"]["versions"]["torch"] == torch.__version__
    known = content["methods"][0]
    import hashlib

    assert known["sha256"] == hashlib.sha256(checkpoints["known"].read_bytes()).hexdigest()
    assert (known["blind"], content["methods"][1]["blind"]) == (False, True)
    assert all(row["tiles"]["frames"] >= 1 for row in content["sequences"] if row["method"] == "known")

    table = list(csv.DictReader((out / "results.csv").open()))
    assert len(table) == len(results.sequences) == 8
    assert {row["protocol"] for row in table} == {"quick (modified)"}
    assert {row["checkpoint_sha256"] for row in table if row["method"] == "known"} == {known["sha256"]}
    for line, row in zip(table, content["sequences"]):
        assert (line["method"], line["sequence"], float(line["sigma"])) == (
            row["method"], row["sequence"], row["sigma"],
        )  # fmt: skip
        assert float(line["psnr"]) == pytest.approx(row["psnr"], rel=1e-5)
        assert line["code"].startswith(stan.__version__)

    text = (out / "report.md").read_text()
    assert "| nlmeans |" in text
    assert known["sha256"] in text
    notes = " ".join(content["notes"])
    assert "1 sequence picked by hand" in notes
    assert "known: trained for sigma 0 to 40, evaluated at 50 too" in notes
    assert "trained on" not in notes  # d is not in the training split
    assert configs.load(out / "evaluate.yaml") == config


def test_noisy_input_is_shared_and_measured_unclamped(make_config: Make) -> None:
    """The baseline `noisy` is measured like any output (clamped); `psnr_noisy` is the input as it is."""
    results = evaluate(make_config("checkpoint=[noisy,nlmeans]", "evaluation.sigmas=[50]"), console=quiet())
    noisy, nlmeans = results.means
    assert noisy["psnr_noisy"] == nlmeans["psnr_noisy"] == pytest.approx(20 * math.log10(5.1), abs=0.05)
    assert noisy["psnr"] > noisy["psnr_noisy"] + 0.1
    assert noisy["ssim"] == noisy["ssim_noisy"]


def test_training_sequences_and_missing_records_are_pointed_out(
    make_config: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    plan = make_plan(make_config(f"checkpoint=[{checkpoints['known']},{checkpoints['blind']}]"))
    notes = "\n".join(notes_of(plan))
    assert "known: trained on 3 of these 4 sequences (a, b, c)" in notes
    assert "blind: the checkpoint does not say what it was trained for" in notes
    content = torch.load(checkpoints["known"], weights_only=True)
    parts = [{"split": "val"}, {"split": "gone.txt", "still": True}]
    content["stan"]["config"]["data"]["parts"] = parts
    torch.save(content, tmp_path / "mixed.ckpt")
    notes = "\n".join(notes_of(make_plan(make_config(f"checkpoint={tmp_path / 'mixed.ckpt'}"))))
    assert "mixed: trained on 1 of these 4 sequences (d)" in notes
    plan = make_plan(make_config(f"checkpoint={checkpoints['known']}", "noise.kind=poisson"))
    assert "trained for gaussian noise, evaluated on poisson" in "\n".join(notes_of(plan))


def test_tiles_move_the_output_but_not_the_noise(
    make_config: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for name, tiles in {"whole": "{}", "cut": "{frames: 3, frame_overlap: 1, width: 40, overlap: 8}"}.items():
        config = make_config(
            f"checkpoint={checkpoints['known']}", f"output={tmp_path / name}", f"evaluation.tiles={tiles}",
            "evaluation.sequences=[b]",
        )  # fmt: skip
        (row,) = evaluate(config, console=quiet()).sequences
        found.append(row)
    whole, cut = found
    assert whole["noisy_sha256"] == cut["noisy_sha256"]
    assert cut["tiles"]["width"] == 40
    assert whole["psnr"] != cut["psnr"]


def test_temporal_gain_is_that_of_the_network_over_itself_on_single_frames(
    make_config: Make, checkpoints: dict[str, Path], davis_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By hand: the network called with (1, T, 3, H, W) and with (1, 1, 3, H, W), scikit-image's PSNR."""
    shapes = record_shapes(monkeypatch)
    words = [f"checkpoint=[{checkpoints['known']},nlmeans,noisy]", "evaluation.sequences=[a,b]"]
    computed = count_computed(monkeypatch)
    without = evaluate(make_config(*words), console=quiet())
    assert "temporal_gain" not in (tmp_path / "out/results.csv").read_text()
    first = len(computed)
    results = evaluate(make_config(*words, "evaluation.temporal_gain=true"), console=quiet())
    assert {name for name, _, _ in computed[first:]} == {"known, frames alone", "nlmeans, frames alone"}
    lengths = [len(clip) for clip in open_clips("davis", davis_root, "trainval")[:2]]
    assert shapes == [*lengths, *[1] * sum(lengths)]

    model = load(checkpoints["known"])
    table = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    gains = []
    for clip in open_clips("davis", davis_root, "trainval")[:2]:
        frames = clip.read()
        noisy = add_noise(frames, noises.build("gaussian"), 30, sequence=clip.name)
        with torch.no_grad():
            together = model(noisy[None], 30)[0]
            alone = torch.cat([model(frame[None, None], 30)[0] for frame in noisy])
        outputs = [together, alone]
        outputs += [
            torch.cat([NLMeans()(part, 30, {}, lambda done: None) for part in noisy.split(count)])
            for count in (len(noisy), 1)
        ]
        psnrs = [
            np.mean(
                [
                    peak_signal_noise_ratio(x.numpy(), y.double().clamp(0, 1).numpy(), data_range=1)
                    for x, y in zip((frames / 255).double(), output)
                ]
            )
            for output in outputs
        ]
        gains.append(psnrs[0] - psnrs[1])
        rows_of = {row["method"]: row for row in table if row["sequence"] == clip.name}
        assert float(rows_of["known"]["temporal_gain"]) == pytest.approx(gains[-1], rel=1e-3)
        assert float(rows_of["nlmeans"]["temporal_gain"]) == pytest.approx(psnrs[2] - psnrs[3], rel=1e-3)
        assert rows_of["noisy"]["temporal_gain"] == ""
    assert all(gains)
    assert results.mean("known", 30)["temporal_gain"] == pytest.approx(np.mean(gains), rel=1e-3)
    assert "temporal_gain" not in results.mean("noisy", 30)
    shown = METRICS["temporal_gain"].show(results.mean("nlmeans", 30)["temporal_gain"])
    for name in ("report.md", "report.html"):
        assert "temporal gain" in (tmp_path / "out" / name).read_text()
        assert shown in (tmp_path / "out" / name).read_text()
    assert [row["psnr"] for row in results.means] == [row["psnr"] for row in without.means]


def record_shapes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of frames of every clip that a network is called with."""
    lengths: list[int] = []
    forward = Stan.forward

    def recording(self: Any, noisy: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        lengths.append(noisy.shape[1])
        return forward(self, noisy, *others, **named)

    monkeypatch.setattr(Stan, "forward", recording)
    return lengths


def test_tiles_that_memory_decided_are_pointed_out(
    make_config: Make, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlimited memory allows one tile; the machine's offers less, and the figure follows from it."""
    whole, less = TilePlan(frames=4, frame_overlap=1), TilePlan(4, 1, None, 40, 8)
    said = []
    for offered in (whole, less):
        monkeypatch.setattr(
            "stan.inference.plan_tiles",
            lambda *_, memory=None, offered=offered, **others: whole if memory == 1 << 60 else offered,
        )
        words = [f"checkpoint={checkpoints['known']}", "evaluation.sequences=[b]"]
        results = evaluate(make_config(*words, f"output={tmp_path / str(offered.width)}"), console=quiet())
        said.append(" ".join(results.notes))
    assert "memory" not in said[0]
    assert "known: its tiles follow from the memory that was free" in said[1]
    fixed = make_config(
        f"checkpoint={checkpoints['known']}",
        "evaluation.sequences=[b]",
        "evaluation.tiles={width: 40, overlap: 8}",
    )
    assert "memory" not in " ".join(evaluate(fixed, console=quiet()).notes)


def test_one_level_need_not_be_a_list(make_config: Make) -> None:
    assert make_config("evaluation.sigmas=30").evaluation.sigmas == [30]
    assert make_config("evaluation.sequences=a").evaluation.sequences == ["a"]
    with pytest.raises(ConfigError, match=r"evaluation\.sigmas='abc' should be a list of numbers"):
        make_config("evaluation.sigmas=abc")


def test_heading_counts_the_frames_that_are_used(make_config: Make) -> None:
    results = evaluate(make_config("checkpoint=noisy", "evaluation.max_frames=5"), console=quiet())
    assert lead(results).startswith("4 sequences of davis trainval, up to 5 frames of each (20 in all)")


def test_a_metric_from_outside_is_measured_and_reported(
    make_config: Make, davis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record, nothing else: files, tables and reports have it, and pieces made without it are not used."""
    config = make_config("checkpoint=nlmeans", "evaluation.sequences=[a]")
    computed = count_computed(monkeypatch)
    evaluate(config, console=quiet())
    worst = Metric(
        "worst", "largest error", "the largest error", ".3f", better="lower", function=worst_error, per="clip",
        reduce=lambda values: float(values.max()), shown="always",
    )  # fmt: skip
    monkeypatch.setattr(METRICS, "_components", dict(METRICS._components))  # the entry goes again
    METRICS.add(worst.name, worst, worst.definition)
    evaluate(config, console=quiet())
    assert len(computed) == 4

    frames = open_clips("davis", davis_root, "train")[0].read()
    noisy = add_noise(frames, noises.build("gaussian"), 30, sequence="a")
    truth = float((NLMeans()(noisy, 30, {}, lambda part: None) - frames / 255).abs().max())
    (line,) = csv.DictReader((tmp_path / "out/results.csv").open())
    assert float(line["worst"]) == pytest.approx(truth, rel=1e-4)
    for name in ("report.md", "report.html"):
        assert "largest error" in (tmp_path / "out" / name).read_text()
        assert f"{truth:.3f}" in (tmp_path / "out" / name).read_text()


def worst_error(clean: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    assert len(clean) == 6  # the whole clip at once
    return (output - clean).abs().amax((1, 2, 3))


def test_values_that_are_not_finite_are_said(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NLMeans, "__call__", lambda self, noisy, *others: noisy * math.nan)
    results = evaluate(make_config("checkpoint=nlmeans", "evaluation.sequences=[a]"), console=quiet())
    assert "not finite on a at sigma 30" in " ".join(results.notes)
    assert math.isnan(results.means[0]["psnr"])
    content = json.loads((Path(results.parts.folder).parent / "results.json").read_text())
    assert content["means"][0]["psnr"] is None


def test_real_davis_frames(shared_data: Path, make_config: Make) -> None:
    """The issue's data: the quick protocol on its val split, with what a noisy input must measure."""
    config = make_config(
        "checkpoint=[noisy]", f"data.root={shared_data / 'DAVIS'}", "evaluation.split=null",
        "evaluation.max_frames=2",
    )  # fmt: skip
    results = evaluate(config, console=quiet())
    assert [row["sequence"] for row in results.sequences] == ["dog", "drift-chicane", "judo"]
    assert results.means[0]["psnr_noisy"] == pytest.approx(20 * math.log10(255 / 30), abs=0.01)
    assert sys.getsizeof(results.settings["departures"])
    assert results.settings["departures"] == ["at most 2 frames, not at most 10 frames"]
