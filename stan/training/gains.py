"""What fine-tuning gains and loses: the levels at which both networks are measured, and their figures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from stan.config import Config
from stan.data.sources import takes_noisy
from stan.device import choose
from stan.errors import StanError
from stan.files import sha256_of, write_text
from stan.models import VideoDenoiser
from stan.models.shipped import find
from stan.training.checkpoints import LAST
from stan.training.conditions import Condition, conditions_of, own
from stan.training.validation import open_validation_clips, score

BEFORE = "before.json"


@dataclass(frozen=True)
class Level:
    """A noise level at which both networks are measured, with the noise that it was or is to be trained with.

    Attributes:
        origin: "old": of the checkpoint's trainings; "new": of this one; "both".
    """

    sigma: float
    origin: str
    condition: Condition

    @property
    def key(self) -> dict[str, Any]:
        """What is measured, as plain data."""
        return {"sigma": self.sigma, **self.condition.what}


def gain_levels(checkpoint: str, config: Config) -> list[Level]:
    """The levels to report, low to high: the ends and the middle of what was trained and of what is to be.

    Old levels come with the noise and the task that they were trained with: measured with others, what a network
    forgets would look like a gain. Where those cannot be made again they are left out, which is said.
    """
    new = own(config)
    if takes_noisy(config.data.kind):
        return [Level(new.sigmas.low, "new", new)]  # what is recorded has no other level
    try:
        old = conditions_of(checkpoint)
    except StanError as error:
        print(f"old levels are not measured: {error}")
        old = []
    found: list[Level] = []
    for origin, condition in [("new", new), *(("old", condition) for condition in old)]:
        for sigma in _ends_and_middle(condition.sigmas.low, condition.sigmas.high):
            level = Level(sigma, origin, condition)
            same = next((i for i, other in enumerate(found) if other.key == level.key), None)
            if same is None:
                found.append(level)
            elif found[same].origin != origin:
                found[same] = dataclasses.replace(found[same], origin="both")
    return sorted(found, key=lambda level: level.sigma)


def measured_before(
    network: VideoDenoiser, checkpoint: str, config: Config, levels: list[Level]
) -> list[tuple[float, float]]:
    """`validate` of the checkpoint's network, once for a folder: a resumed run reads what was measured at first, if it
    was of the same network, clips and levels."""
    path = Path(config.output) / BEFORE
    keys = [level.key for level in levels]
    wanted = {"of": _origin(checkpoint, config), "levels": keys}
    wanted = json.loads(json.dumps(wanted))  # as it is read back
    if config.resume != "never" and (path.parent / LAST).exists() and path.exists():
        try:
            known = json.loads(path.read_text())
            figures = known.pop("psnr")
            if known == wanted:
                return [(math.inf if noisy is None else noisy, psnr) for noisy, psnr in figures]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # of another version, or damaged: measured again
    measured = validate(network, config, levels)
    figures = [[None if noisy == math.inf else noisy, psnr] for noisy, psnr in measured]
    write_text(path, json.dumps(wanted | {"psnr": figures}, indent=1) + "\n")
    return measured


def validate(network: VideoDenoiser, config: Config, levels: list[Level]) -> list[tuple[float, float]]:
    """Mean PSNR over the validation clips at each level: (noisy, denoised) in dB."""
    device = choose(config.trainer.accelerator)
    clips = open_validation_clips(config)
    network = network.to(device).eval()
    jobs = [(place, index) for place in range(len(levels)) for index in range(len(clips))]
    sums = [[0.0, 0.0] for _ in levels]
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    for place, index in track(jobs, "validate", console=console, transient=True, disable=hidden):
        level, known = levels[place], levels[place].condition
        result = score(
            network, clips[index], level.sigma, known.noise, known.degradation, config.seed, device
        )
        sums[place][0] += result.psnr_noisy
        sums[place][1] += result.psnr
    network.cpu()
    return [(noisy / len(clips), denoised / len(clips)) for noisy, denoised in sums]


def _origin(checkpoint: str, config: Config) -> dict[str, Any]:
    """All that figures depend on beside their levels."""
    data, options = config.data, config.validation
    return {
        "sha256": sha256_of(find(checkpoint)),
        "grow": config.finetune.grow,
        "seed": config.seed,
        "validation": [options.frames, options.crop, options.sequences],
        "data": [data.kind, data.root, data.noisy, data.validation_split, data.downscale],
        "validation_root": [data.validation_root, data.validation_noisy],
    }


def _ends_and_middle(low: float, high: float) -> set[float]:
    return {low} if low == high else {low, (low + high) / 2, high}
