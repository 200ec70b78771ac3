"""The whole story on a small scale: data, a clean video, training, fine-tuning, evaluation; no download."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torchvision.io import write_png

from stan.config import builtin_configs, load
from stan.data.clips import Clip
from stan.data.noise import NumpyRandom
from stan.data.noise import build as build_noise
from stan.data.sources import open_clips
from stan.data.synthetic import write_synthetic
from stan.data.video import OutputSettings
from stan.evaluation import evaluate
from stan.evaluation.sheet import SheetRow, write_sheet
from stan.experiments.comparison import finished
from stan.files import write_text
from stan.inference import Options, denoise
from stan.inference.files import denoise_file
from stan.models import VideoDenoiser
from stan.models import load as load_model
from stan.models.shipped import best_for
from stan.training import finetune, train

SUMMARY = "summary.json"

NOISY = 30.0
"""Noise level of the clip that the shipped weights clean, 8-bit units."""


@dataclass(frozen=True)
class Demo:
    """What the demo left behind, and what it measured on held-out clips.

    Attributes:
        files: what each file is -> its path.
        table: rows of (network, sigma, PSNR of the noisy input, PSNR, SSIM), means over the held-out clips.
        seconds: how long each part took.
    """

    files: dict[str, Path]
    table: list[tuple[str, float, float, float, float]]
    seconds: dict[str, float]


def run_demo(output: Path, console: Console, steps: int | None = None) -> Demo:
    """Make data, denoise a video by the shipped weights, then train, fine-tune, evaluate, and draw a picture sheet.

    Again, and it goes on. There are `steps` training steps, a fifth as many for fine-tuning; None: as the
    configurations say.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def part(name: str, text: str) -> Iterator[None]:
        """Tell a part as it begins, and how long it took."""
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False, soft_wrap=True)
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start
        console.print(f"  {seconds[name]:.0f} s", highlight=False)

    data = output / "data"
    with part("data", f"synthetic clips from scikit-image's photographs -> {data}"):
        write_synthetic(data)

    clips = open_clips("davis", data, "val")
    shipped = best_for("cuda" if torch.cuda.is_available() else "cpu")
    with part("denoise", f"a noisy clip, by the shipped {shipped.name} -> {output / 'denoised.mp4'}"):
        video = _denoise_video(load_model(shipped.name), clips[0], NOISY, output)

    configs, common = builtin_configs(), [f"data.root={data}"]
    config = load(configs / "train/demo.yaml", [*common, f"output={output / 'train'}", *_length(steps)])
    with part("train", f"{config.model.name} at sigma {config.noise.sigma} -> {output / 'train'}"):
        trained = finished(train(config))

    words = [f"output={output / 'finetune'}", f"checkpoint={trained.last}"]
    tuning = load(configs / "finetune/demo.yaml", [*common, *words, *_length(steps and max(1, steps // 5))])
    with part("finetune", f"to sigma {tuning.noise.sigma} -> {output / 'finetune'}"):
        result, _ = finetune(tuning)
        tuned = finished(result)

    with part("evaluate", f"all three, on clips held out of training -> {output / 'evaluation'}"):
        methods = f"checkpoint=[{trained.last},{tuned.last},{shipped.name}]"
        words = [*common, f"output={output / 'evaluation'}", methods]
        results = evaluate(load(configs / "evaluate/demo.yaml", words))

    with part("pictures", f"a sheet of what was trained here -> {output}"):
        sigma = float(config.noise.sigma)
        _draw(load_model(trained.last), clips, sigma, output / "sheet.png")

    labels = ("trained", "fine-tuned", f"shipped {shipped.name}")
    names = {method["name"]: label for method, label in zip(results.methods, labels)}
    table = [
        (names[row["method"]], row["sigma"], row["psnr_noisy"], row["psnr"], row["ssim"])
        for row in results.means
    ]
    files = {
        "trained checkpoint": trained.last,
        "fine-tuned checkpoint": tuned.last,
        "evaluation report": output / "evaluation" / "report.html",
        "picture sheet": output / "sheet.png",
        "denoised video": video,
        "summary": output / SUMMARY,
    }
    demo = Demo(files, table, seconds)
    _write_summary(demo, sigma, output / SUMMARY)
    return demo


def _length(steps: int | None) -> list[str]:
    """The words that make a training that long."""
    return [f"trainer.max_steps={steps}", f"optimizer.warmup_steps={min(5, steps - 1)}"] if steps else []


def _noisy(clip: Clip, sigma: float) -> tuple[Tensor, Tensor]:
    """Clean and noisy frames `(T, 3, H, W)` of a clip, float."""
    clean = clip.read().float() / 255
    return clean, build_noise("gaussian")(clean, sigma, NumpyRandom(0, "demo", clip.name, sigma))


def _draw(network: VideoDenoiser, clips: list[Clip], sigma: float, path: Path) -> None:
    """The middle frame of each clip: noisy, denoised, clean, error."""
    rows = []
    for clip in clips:
        clean, noisy = _noisy(clip, sigma)
        output = denoise(network, noisy, sigma)
        middle = len(clean) // 2
        rows.append(SheetRow(f"{clip.name}, sigma {sigma:g}", noisy[middle], output[middle], clean[middle]))
    write_sheet(path, rows)


def _denoise_video(network: VideoDenoiser, clip: Clip, sigma: float, output: Path) -> Path:
    """Write a clip's noisy frames as 8-bit pictures, as a user has them, and denoise them to a video; the level of the
    noise is found."""
    _, noisy = _noisy(clip, sigma)
    folder = output / "noisy"
    folder.mkdir(exist_ok=True)
    for t, frame in enumerate(noisy):
        write_png((frame.clamp(0, 1) * 255).round().byte(), str(folder / f"{t:05d}.png"))
    path = output / "denoised.mp4"
    denoise_file(network, folder, path, Options(sigma="auto"), OutputSettings(overwrite=True))
    return path


def _write_summary(demo: Demo, sigma: float, path: Path) -> None:
    """The figures of the trained network at its own level, and all rows of the table."""
    keys = ("network", "sigma", "psnr_noisy", "psnr", "ssim")
    rows: list[dict[str, Any]] = [dict(zip(keys, row)) for row in demo.table]
    own = next(row for row in rows if row["network"] == "trained" and row["sigma"] == sigma)
    summary = {
        "sigma": sigma,
        "psnr": own["psnr"],
        "psnr_noisy": own["psnr_noisy"],
        "ssim": own["ssim"],
        "seconds": sum(demo.seconds.values()),
        "parts": demo.seconds,
        "table": rows,
        "files": {name: str(file) for name, file in demo.files.items()},
    }
    write_text(path, json.dumps(summary, indent=2) + "\n")
