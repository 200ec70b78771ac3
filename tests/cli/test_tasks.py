"""Tasks beside denoising by the real commands, at toy size: trained, resumed, evaluated, and used on files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import stan.models
from stan.cli import main
from stan.data import degradation, noise, open_clips
from stan.data.noise import NumpyRandom
from stan.data.video import open_source
from stan.evaluation import add_noise
from stan.models import Trained
from tests.data.video.clips import probe, smooth_frames, write_video

pytestmark = pytest.mark.timeout(200)

SMALL = (
    "data.crop=32", "data.frames=3", "data.batch_size=2", "data.workers=0", "validation.every=3",
    "validation.frames=3", "validation.crop=40", "trainer.accelerator=cpu", "trainer.log_every=1", "model.flow=zero",
    "model.settings.channels=[8,8]", "optimizer.warmup_steps=0", "optimizer.schedule=constant",
)  # fmt: skip
SETTINGS = {  # of the evaluation
    "deblur": {"blur": 1.5},
    "super_resolution": {"factor": 2},
    "compression": {"codec": "h264", "quality": 30, "crf": 32},
}
WORD = {"deblur": "blurred", "super_resolution": "bicubic", "compression": "compressed"}
TASKS = list(SETTINGS)


@pytest.fixture(scope="module")
def trained(
    run_stan: Callable, davis_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``trained("deblur")``: the folder of a run of the recipe of that name, made once."""
    folder, made = tmp_path_factory.mktemp("tasks"), set()

    def train(task: str) -> Path:
        if task not in made:
            made.add(task)
            run_stan(*words(task, davis_root, folder / task, 6))
        return folder / task

    return train


def words(task: str, root: Path, output: Path, steps: int) -> list[str]:
    common = [f"data.root={root}", f"output={output}", f"trainer.max_steps={steps}"]
    return ["train", f"train/{task}.yaml", *common, *SMALL]


def content(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs the command in this process, which saves its start: ``here("denoise", ..., code=0)``."""

    def run(*words: object, code: int = 0) -> SimpleNamespace:
        capfd.readouterr()
        got = main([str(word) for word in words])
        said = SimpleNamespace(**capfd.readouterr()._asdict())
        assert got == code, said
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    return run


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_says_what_it_was_trained_for(trained: Callable, task: str) -> None:
    record = content(trained(task) / "last.ckpt")["stan"]
    assert record["trained"]["task"] == record["config"]["task"] == task
    assert record["trained"]["task_settings"] == record["config"]["task_settings"]
    assert record["trained"]["scale"] == (2 if task == "super_resolution" else 1)
    assert record["trained"]["sigma"] == [0, 0]
    network = stan.models.load(trained(task) / "last.ckpt")
    assert network.trained == Trained.from_dict(record["trained"])
    assert network.trained.task_words.startswith(f"{task} (")
    if task == "super_resolution":
        assert (
            network.settings["stem"] == 2
        )  # computes at the resolution of the source, ends in a pixel shuffle


@pytest.mark.parametrize("task", TASKS)
def test_resumed_runs_end_as_straight_ones(
    run_stan: Callable, davis_root: Path, trained: Callable, tmp_path: Path, task: str
) -> None:
    run_stan(*words(task, davis_root, tmp_path / "parts", 3))
    done = run_stan(*words(task, davis_root, tmp_path / "parts", 6))
    assert "resumed at step 3" in done.stdout
    assert f"task {task} " in done.stdout
    straight, resumed = (content(folder / "last.ckpt") for folder in (trained(task), tmp_path / "parts"))
    assert straight["weights"].keys() == resumed["weights"].keys()
    for key, value in straight["weights"].items():
        assert torch.equal(value, resumed["weights"][key]), key


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_is_what_it_says(
    here: Callable, davis_root: Path, trained: Callable, tmp_path: Path, task: str
) -> None:
    """Input and output recomputed by hand; the tables name the input."""
    checkpoint = trained(task) / "last.ckpt"
    done = here(
        "evaluate", f"evaluate/{task}.yaml", f"data.root={davis_root}", f"output={tmp_path}", "trainer.accelerator=cpu",
        f"checkpoint=[{checkpoint},noisy]", "task_settings=" + json.dumps(SETTINGS[task]),
    )  # fmt: skip
    assert WORD[task] in done.stdout
    assert "trained for" not in done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert any(f"task {task}, not denoise" in note for note in results["notes"])
    assert results["settings"]["task"] == {"name": task, "settings": SETTINGS[task]}
    report = (tmp_path / "report.md").read_text()
    assert f"{WORD[task]} input" in report
    assert "| noisy input" not in report
    (clip,) = open_clips("davis", davis_root, "val")
    clean, made = clip.read(), degradation.build(task, **SETTINGS[task])
    degraded = made(clean[None], NumpyRandom(2309, clip.name, "task"))[0]
    noisy = add_noise(degraded, noise.build("gaussian"), 0, sequence=clip.name)
    seen = made.enlarged(noisy, clip.size)
    model = stan.models.load(checkpoint)
    for row in results["sequences"]:
        output = stan.denoise(model, seen, scenes=False) if row["method"] != "noisy" else seen
        pairs = zip(clean.numpy() / np.float32(255), output.clamp(0, 1).numpy())
        psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs])
        assert row["psnr"] == pytest.approx(psnr, abs=1e-4)


def test_another_task_than_the_checkpoints_is_noted(
    here: Callable, davis_root: Path, trained: Callable, tmp_path: Path
) -> None:
    words = [
        "evaluate", "evaluate/folder.yaml", "data.kind=davis", "evaluation.split=val", f"data.root={davis_root}",
        f"output={tmp_path}", "trainer.accelerator=cpu", "evaluation.sigmas=0", "evaluation.max_frames=2",
    ]  # fmt: skip
    blurred, larger = (trained(task) / "last.ckpt" for task in ("deblur", "super_resolution"))
    said = " ".join(here(*words, f"checkpoint={blurred}").stderr.split())
    assert "trained for task deblur (blur 0.8..2.4), evaluated on denoise; say task=deblur" in said
    more = ["task=super_resolution", "task_settings.factor=4"]
    said = " ".join(here(*words, f"checkpoint={larger}", *more).stderr.split())
    assert "trained for super_resolution (factor 2), evaluated on video enlarged 4 times" in said


def test_fine_tuning_keeps_up_what_was_undone_before(
    here: Callable, davis_root: Path, trained: Callable, tmp_path: Path
) -> None:
    before = trained("deblur") / "last.ckpt"
    done = here(
        "finetune", "finetune/davis.yaml", f"checkpoint={before}", f"data.root={davis_root}",
        f"output={tmp_path}", *SMALL[:8], "optimizer.warmup_steps=0", "trainer.max_steps=2", "noise.sigma=70",
        "task=compression", "finetune.replay=0.5",
    )  # fmt: skip
    assert "task compression" in done.stdout
    record = content(tmp_path / "last.ckpt")["stan"]["trained"]
    assert record["task"] == "compression"
    assert record["sigma"] == [content(before)["stan"]["trained"]["sigma"][0], 70]  # both are kept up


@pytest.mark.parametrize(
    ("task", "network"), [*((task, "stan_tiny") for task in TASKS), ("deblur", "unet_tiny")]
)
def test_networks_that_are_told_a_level_get_zero(
    here: Callable, davis_root: Path, tmp_path: Path, task: str, network: str
) -> None:
    words = ["data.crop=16", "data.batch_size=1", "validation.every=2", "trainer.max_steps=2", "logger=none"]
    line = [
        "train", "train/davis_tiny.yaml", f"data.root={davis_root}", f"output={tmp_path}", *SMALL[:9], *SMALL[11:],
        f"model.name={network}", "model.flow=zero", "noise.sigma=0", f"task={task}", *words,
    ]  # fmt: skip
    here(*line)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["ended"], summary["skipped_steps"]) == ("done", 0)


@pytest.fixture
def identity(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of a network that changes nothing, trained for a task."""

    def make(task: str, scale: int, blind: bool = True) -> Path:
        model = stan.models.build("unet_tiny", flow="zero", blind=blind)
        with torch.no_grad():
            model.leave.weight.zero_()
            model.leave.bias.zero_()
        model.trained = Trained("gaussian", (0.0, 0.0), 1, task, {}, scale)
        return stan.models.save(model, tmp_path / f"{task}.ckpt")

    return make


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """12 frames of 40x24 with sound."""
    return write_video(
        tmp_path / "clip.mp4", smooth_frames(12, 40, 24, "yuv420p"), audio=True, tags=(1, 1, 1, 1)
    )


def test_super_resolution_makes_a_video_larger(
    here: Callable, identity: Callable, clip: Path, tmp_path: Path
) -> None:
    checkpoint = identity("super_resolution", 3)
    output = tmp_path / "out.mkv"
    here("denoise", clip, output, "--checkpoint", checkpoint, "--lossless", "--device", "cpu")
    streams = probe(output)["streams"]
    assert [(s.get("width"), s.get("height")) for s in streams] == [(120, 72), (None, None)]
    sources = [open_source(place) for place in (clip, output)]
    small, large = (list(source.frames()) for source in sources)
    times = [
        [float((f.pts - fs[0].pts) * s.properties.time_base) for f in fs]
        for s, fs in zip(sources, (small, large))
    ]
    assert times[1] == pytest.approx(times[0], abs=0.001)
    made = degradation.build("super_resolution", factor=3)
    for before, after in zip(small, large):
        expected = made.enlarged(before.rgb[None], (72, 120))[0]
        assert (after.rgb - expected).abs().mean() < 0.01  # 8 bits, chroma at half the resolution

    here("denoise", clip, tmp_path / "o.mp4", "--checkpoint", checkpoint, "--preview", 2, "--device", "cpu")
    pictures = open_source(tmp_path / "o.preview")
    assert (len(pictures), pictures.size) == (2, (72, 240))  # enlarged by the cubic filter, and restored

    here("denoise", clip, tmp_path / "pictures/", "--checkpoint", checkpoint, "--device", "cpu")
    assert open_source(tmp_path / "pictures").size == (72, 120)


def test_a_stream_cannot_be_made_larger(here: Callable, identity: Callable) -> None:
    line = ["denoise", "-", "-", "--stream", "--checkpoint", identity("super_resolution", 2)]
    said = here(*line, code=2).stderr.strip()
    assert "2 times larger" in said.splitlines()[-1]


def test_without_a_level_the_trained_one_is_taken(
    here: Callable, identity: Callable, clip: Path, tmp_path: Path
) -> None:
    line = ["denoise", clip, tmp_path / "out.mp4", "--device", "cpu"]
    said = here(*line, "--checkpoint", identity("deblur", 1, blind=False)).stderr
    assert "no sigma given: 0, which the network was trained for (deblur)" in said
    assert "warning" not in said
    assert "estimated" not in said


def test_an_unknown_task_is_one_line(here: Callable) -> None:
    said = here("train", "train/deblur.yaml", "task=debler", code=2).stderr
    assert "did you mean 'deblur'" in said
    said = here("train", "train/deblur.yaml", "task_settings.blur=0..50", code=2).stderr
    assert "task_settings.blur='0..50' should be" in said
    assert len(said.strip().splitlines()) == 1
    said = here("config", "train/deblur.yaml", "task=super_resolution")
    assert "leaves the settings of 'deblur' behind: blur" in said.stderr
    assert "factor: 2" in said.stdout
