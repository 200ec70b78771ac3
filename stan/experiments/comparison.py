"""Train equally, then evaluate: the experiments that differ only in their configuration (attention, offsets, ...)."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.config import Config, load
from stan.data import degradation, open_clips
from stan.data.noise import build as build_noise
from stan.data.synthetic import write_synthetic
from stan.errors import ConfigError, nearest
from stan.experiments.frame import Experiment, Report, Row, Table, Task, group, mean
from stan.experiments.plot import Chart, Line
from stan.models import VideoDenoiser
from stan.registry import experiments, noises
from stan.settings import Count, Natural, at_least, between, complete
from stan.training import Fit, finetune, train
from stan.training.validation import ValidationClip, central_square, score


@dataclass(frozen=True)
class Test:
    """What a trained network is tried on.

    Attributes:
        noise: kind of noise.
        noise_settings: its settings.
        downscale: frames are shrunk by this whole factor.
        step: every so many-th frame: a lower frame rate.
    """

    __test__ = False  # for pytest

    noise: Annotated[str, noises] = "gaussian"
    noise_settings: dict[str, Any] = field(default_factory=dict)
    downscale: Count = 1
    step: Count = 1


@dataclass(frozen=True)
class Settings:
    """What is trained and tried.

    Attributes:
        config: training configuration.
        words: settings laid over it, for all alike.
        variants: name -> settings laid over those; the first is what the others are compared with.
        claims: what the paper says, as {better: variant, than: variant, says: text}.
        root: data set in DAVIS layout; synthetic: rendered clips.
        steps: training steps of each network.
        seeds: each variant is trained once from each.
        tests: name -> what it is tried on (noise, noise_settings, downscale, step).
        finetune: test -> settings of a fine-tuning, after which that test is repeated.
        finetune_steps: steps of it.
        sigmas: noise levels, 8-bit units.
        test_frames: first frames of each sequence of the validation list; 0: all.
        test_crop: side of the central square; 0: the whole frame.
        test_sequences: sequences; 0: all.
    """

    config: str = "train/demo.yaml"
    words: list[str] = field(default_factory=list)
    variants: dict[str, Any] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    root: str = "data/DAVIS"
    steps: Annotated[int, at_least(2)] = 20000
    seeds: list[Natural] = field(default_factory=lambda: [0, 1, 2])
    tests: dict[str, Any] = field(default_factory=lambda: {"gaussian": {}})
    finetune: dict[str, Any] = field(default_factory=dict)
    finetune_steps: Annotated[int, at_least(2)] = 2000
    sigmas: list[Annotated[float, between(0, 255)]] = field(default_factory=lambda: [10.0, 30.0, 50.0])
    test_frames: Natural = 10
    test_crop: Natural = 0
    test_sequences: Natural = 0

    def __post_init__(self) -> None:
        """Check what refers to names."""
        if not self.variants:
            raise ConfigError(
                "variants: name at least one, such as variants.shifted=[model.settings.attention=shifted]"
            )
        for name in self.finetune:
            if name not in self.tests:
                raise ConfigError(f"finetune.{name} names no test; {nearest(name, self.tests)}")
        for claim in self.claims:
            for side in ("better", "than"):
                if claim.get(side) not in self.variants:
                    raise ConfigError(
                        f"claims: {side}={claim.get(side)!r} is no variant; known: {', '.join(self.variants)}"
                    )

    def test(self, name: str) -> Test:
        """A test, whole and checked."""
        return Test(**complete(Test, self.tests[name] or {}, f"test {name!r}", prefix=f"tests.{name}."))


@experiments.register("comparison", declares=Settings)
class Comparison(Experiment):
    """Networks that differ in one thing, trained alike from several seeds, on the same tests."""

    settings: Settings
    keyed = ("seeds", "variants", "claims")

    def tasks(self) -> Iterator[Task]:
        """One network each. All configurations are checked first."""
        s = self.settings
        for name in s.tests:
            s.test(name)
        for seed in s.seeds:
            for variant, words in s.variants.items():
                self.config(variant, seed)
                key = {"variant": variant, "words": list(words or ()), "seed": seed}
                yield Task(key, functools.partial(self._rows, variant, seed))

    def config(self, variant: str, seed: int, tuned: str | None = None) -> Config:
        """The configuration of a training, or of the fine-tuning to test `tuned`."""
        s = self.settings
        own = list(s.variants[variant] or ())
        steps, more = (s.finetune_steps, list(s.finetune[tuned] or ())) if tuned else (s.steps, [])
        words = [
            f"data.root={self.data_root}",
            "validation.every=0",
            "logger=none",
            f"trainer.checkpoint_every={max(1, steps // 4)}",
            f"optimizer.warmup_steps={min(20, steps // 10)}",
            *s.words,
            *own,
            *more,
            f"seed={seed}",
            f"trainer.max_steps={steps}",
        ]
        made = hashlib.sha256(json.dumps([s.config, words, s.steps]).encode()).hexdigest()[:8]
        folder = self.folder / "networks" / f"{variant}-{seed}{'-' + tuned if tuned else ''}-{made}"
        return load(s.config, [*words, f"output={folder}"])

    @property
    def data_root(self) -> Path:
        """Where the clips are."""
        return self.folder / "data" if self.settings.root == "synthetic" else Path(self.settings.root)

    def _rows(self, variant: str, seed: int) -> list[Row]:
        s = self.settings
        if s.root == "synthetic":
            write_synthetic(self.data_root, progress=False)
        fit = finished(train(self.config(variant, seed)))
        rows = [row for name in s.tests for row in self._tried(fit.network, name)]
        for row in rows:
            row["tuned"] = False
        for name in s.finetune:
            config = self.config(variant, seed, name)
            config.checkpoint = str(fit.last)
            tuned, _ = finetune(config)
            rows += [{**row, "tuned": True} for row in self._tried(finished(tuned).network, name)]
        count = sum(p.numel() for p in fit.network.parameters())
        return [{"parameters": count, **row} for row in rows]

    def _tried(self, network: VideoDenoiser, name: str) -> list[Row]:
        s = self.settings
        test = s.test(name)
        noise, nothing = build_noise(test.noise, **test.noise_settings), degradation.build("denoise")
        rows = []
        for clip in open_clips("davis", self.data_root, "val")[: s.test_sequences or None]:
            last = min(len(clip), (s.test_frames or len(clip)) * test.step)
            clean = _shrunk(clip.read(0, last)[:: test.step], test.downscale, s.test_crop)
            for sigma in s.sigmas:
                piece = ValidationClip(clip.name, clean)
                found = score(network, piece, sigma, noise, nothing, 0, torch.device("cpu"))
                figures = {"psnr": found.psnr, "ssim": found.ssim, "psnr_noisy": found.psnr_noisy}
                rows.append({"test": name, "sequence": clip.name, "sigma": sigma, **figures})
        return rows

    def report(self, rows: list[Row]) -> Report:
        """Mean and spread over the seeds, and differences within each seed."""
        s = self.settings
        report = Report()
        seeds = ", ".join(map(str, s.seeds))
        report.notes = [
            f"Every network: {s.steps} steps of the same data in the same order. Figures are means over sequences; "
            f"± is the standard deviation over the seeds ({seeds}). Differences are taken within a seed. A few hundred "
            "steps say little about long trainings: a short run tests the machinery, not the claim."
        ]
        before = [row for row in rows if not row["tuned"]]
        for (test,), some in group(before, "test").items():
            report.tables.append(self._table(f"PSNR, dB: {test}", some))
            report.charts[f"psnr_{test}"] = self._chart(test, some)
        tuned = [row for row in rows if row["tuned"]]
        for (test,), some in group(tuned, "test").items():
            report.tables.append(self._table(f"PSNR, dB: {test}, after fine-tuning to it", some))
        main = [row for row in before if row["test"] == next(iter(s.tests))]
        report.conclusions = [self._claimed(claim, main) for claim in s.claims]
        first, *others = s.variants
        report.conclusions += [
            f"{name} against {first}: {_difference(main, name, first)[0]}." for name in others
        ]
        report.conclusions += self._changed(before, tuned)
        return report

    def _changed(self, before: Sequence[Row], tuned: Sequence[Row]) -> list[str]:
        """What other tests than the first, and fine-tuning, do to each variant."""
        said = []
        tests = list(self.settings.tests)
        for variant in self.settings.variants if len(tests) > 1 else ():
            own = [row for row in before if row["variant"] == variant]
            parts = []
            for name in tests:
                at = [row for row in own if row["test"] == name]
                level, gain = mean(at, "psnr"), mean(at, "psnr") - mean(at, "psnr_noisy")
                text = f"{name} {level:.2f} dB ({gain:+.2f} over its noisy input"
                after = [row for row in tuned if row["variant"] == variant and row["test"] == name]
                text += f", {mean(after, 'psnr') - mean(at, 'psnr'):+.2f} by fine-tuning)" if after else ")"
                parts.append(text)
            said.append(f"{variant}: {', '.join(parts)}.")
        return said

    def _claimed(self, claim: dict[str, Any], rows: Sequence[Row]) -> str:
        text, verdict = _difference(rows, claim["better"], claim["than"])
        words = {
            "more": "this agrees with the paper",
            "less": "**this contradicts the paper**",
            "open": "that decides nothing for or against the paper",
        }[verdict]
        pair = f"{claim['better']} against {claim['than']}"
        return f"The paper: {claim.get('says', 'better')}. Here {pair}: {text}; {words}."

    def _table(self, heading: str, rows: Sequence[Row]) -> Table:
        sigmas = list(dict.fromkeys(row["sigma"] for row in rows))
        cells = []
        for (variant,), some in group(rows, "variant").items():
            figures = [_spread([r for r in some if r["sigma"] == sigma]) for sigma in sigmas]
            cells.append([variant, f"{some[0]['parameters']:,}", *(f"{m:.2f} ± {d:.2f}" for m, d in figures)])
        noisy = [f"{mean([r for r in rows if r['sigma'] == sigma], 'psnr_noisy'):.2f}" for sigma in sigmas]
        return Table(
            heading,
            ["variant", "parameters", *(f"sigma {x:g}" for x in sigmas)],
            [["noisy input", "", *noisy], *cells],
        )

    def _chart(self, test: str, rows: Sequence[Row]) -> Chart:
        variants = list(dict.fromkeys(row["variant"] for row in rows))
        lines = []
        for sigma in dict.fromkeys(row["sigma"] for row in rows):
            at = [_spread([r for r in rows if r["sigma"] == sigma and r["variant"] == v]) for v in variants]
            points = [(float(i), m) for i, (m, _) in enumerate(at)]
            lines.append(Line(f"sigma {sigma:g}", points, [d for _, d in at], joined=False))
        title = f"Equal training, {self.settings.steps} steps: {test}"
        return Chart(title, "bars: standard deviation over seeds", "PSNR, dB", lines, labels=tuple(variants))


STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % quantiles of Student's t with 1, 2, ... degrees of freedom; the last one serves for more."""


def _by_seed(rows: Sequence[Row]) -> dict[int, float]:
    return {seed: mean(some, "psnr") for (seed,), some in group(rows, "seed").items()}


def _spread(rows: Sequence[Row]) -> tuple[float, float]:
    """Mean over the seeds, and their standard deviation (0 of one)."""
    values = list(_by_seed(rows).values()) or [float("nan")]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _difference(rows: Sequence[Row], name: str, other: str) -> tuple[str, str]:
    """One variant against another, seed by seed: in words, and more, less or open.

    More or less is said where 95 % of what so few seeds give by chance is exceeded: Student's t times the standard
    error.
    """
    one, two = (_by_seed([r for r in rows if r["variant"] == v]) for v in (name, other))
    values = [one[seed] - two[seed] for seed in one if seed in two]
    if not values:
        return "not measured yet", "open"
    average = statistics.fmean(values)
    if len(values) == 1:
        return f"{average:+.2f} dB from one seed, so no spread is known", "open"
    error = statistics.stdev(values) / len(values) ** 0.5
    text = f"{average:+.3f} ± {error:.3f} dB (standard error over {len(values)} seeds)"
    bound = STUDENT[min(len(values) - 2, len(STUDENT) - 1)] * error
    return text, "open" if abs(average) <= bound else "more" if average > 0 else "less"


def _shrunk(frames: Tensor, factor: int, crop: int) -> Tensor:
    """Frames shrunk by area, then their central square of `crop` pixels; uint8."""
    if factor > 1:
        frames = F.avg_pool2d(frames.float(), factor).round().byte()
    return central_square(frames, crop)


def finished(fit: Fit) -> Fit:
    """A training that was not interrupted, or KeyboardInterrupt."""
    if fit.interrupted:
        raise KeyboardInterrupt
    return fit
