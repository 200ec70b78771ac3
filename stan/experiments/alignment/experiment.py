"""`stan experiment alignment`: what is varied, and one task for each sequence and setting."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

import stan.flow
import stan.models
from stan.data.noise import build as build_noise
from stan.errors import ConfigError, nearest
from stan.evaluation.protocols import add_noise
from stan.experiments.alignment.findings import findings
from stan.experiments.alignment.measure import Search, measure
from stan.experiments.alignment.sequences import Sequence, load, names
from stan.experiments.frame import Experiment, Report, Row, Task, one_varied
from stan.flow import OffsetSource
from stan.models.shipped import find
from stan.registry import experiments, sources
from stan.settings import ODD, Count, Natural, at_least, between

Where = Literal["noisy", "cleaned", "tested", "clean"]

AXES = {
    "source": "sources",
    "searched": "searched",
    "sigma": "sigmas",
    "stride": "strides",
    "patch": "patches",
}
"""Column of a row -> the setting that lists its values."""


@dataclass(frozen=True)
class Settings:
    """What is aligned how. Of the lists, one is varied at a time, the others stay at their first value.

    Attributes:
        root: folder of a data set in DAVIS layout; synthetic: rendered clips whose true motion is known. Where a
            folder has true flow (Flow/480p, as of `stan prepare synthetic`), that is used too.
        split: list of sequences; null: all of a folder.
        sequences: so many sequences at most; 0: all (synthetic: four a speed).
        frames: first frames of each sequence.
        crop: side of the central square that is used, pixels; 0: the whole frame.
        size: height and width of synthetic clips.
        speeds: of synthetic clips: all motion is multiplied by it.
        windows: ws, sides of the search windows; 1, the flow alone, is always measured.
        sources: offset sources that centre the windows.
        source_settings: settings of sources that need some, by name, such as {raft: {weights: FILE}}.
        trained: checkpoint of a network whose offset source was trained with it, for sources that learn.
        searched: frames in which flow is estimated and matches are searched. noisy; cleaned one by one; tested:
            cleaned, and a match is taken only where it is significantly better; clean: the bound.
        sigmas: noise levels, 8-bit units.
        strides: pixels between queries.
        patches: ps, sides of the compared patches.
        everything: measure all combinations of the lists.
        averaging: side of the overlapping warped patches in the averaged figures; the paper's is 3.
        cleaner: network that cleans frames one by one, a shipped one by name or a checkpoint.
        exhaustive: window of the exhaustive search that the recall refers to; 0: none. Only of clips whose true
            motion is known.
        seed: of synthetic clips and noise.
    """

    root: str = "data/DAVIS"
    split: str | None = "train"
    sequences: Natural = 0
    frames: Annotated[int, at_least(3)] = 5
    crop: Natural = 0
    size: tuple[Count, Count] = (160, 240)
    speeds: list[Annotated[float, at_least(0)]] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    windows: list[Annotated[int, ODD]] = field(default_factory=lambda: [1, 3, 5, 9, 13, 21])
    sources: list[Annotated[str, sources]] = field(default_factory=lambda: ["dis"])
    source_settings: dict[str, Any] = field(default_factory=dict)
    trained: str | None = None
    searched: list[Where] = field(default_factory=lambda: ["noisy"])
    sigmas: list[Annotated[float, between(0, 255)]] = field(default_factory=lambda: [15.0])
    strides: list[Count] = field(default_factory=lambda: [1])
    patches: list[Annotated[int, ODD]] = field(default_factory=lambda: [3])
    everything: bool = False
    averaging: Annotated[int, ODD] = 3
    cleaner: str = "stan_tiny"
    exhaustive: Natural = 41
    seed: Natural = 0

    def __post_init__(self) -> None:
        """Check the settings of the sources."""
        for name in self.source_settings:
            if name not in self.sources:
                raise ConfigError(
                    f"source_settings.{name} is of no source here; {nearest(name, self.sources)}"
                )
        for name in self.sources:
            sources.complete(name, self.source_settings.get(name) or {}, prefix=f"source_settings.{name}.")
            if needs_training(name) and self.trained is None:
                raise ConfigError(
                    f"sources: {name!r} is trained, and says nothing by itself: give trained=CHECKPOINT, a network "
                    f"trained with model.flow={name}"
                )


def needs_training(name: str) -> bool:
    """Whether the offset source `name` says nothing before it is trained."""
    return bool(getattr(sources[name], "needs_training", False))


@experiments.register("alignment", declares=Settings)
class Alignment(Experiment):
    """Warp the clean neighbour by matches found in noise, and see how near it comes to the clean frame."""

    settings: Settings
    keyed = (*AXES.values(), "everything", "sequences", "speeds")

    def __init__(self, folder: Path, settings: Settings) -> None:
        windows = sorted({1, *settings.windows})
        super().__init__(folder, replace(settings, windows=windows))

    def tasks(self) -> Iterator[Task]:
        """Sequence after sequence, so that each is decoded once and cleaned once a level."""
        s = self.settings
        for name in s.sources:
            self._source(name)
        for name in names(s.root, s.split, s.sequences, s.speeds):
            for values in self._combinations():
                yield Task({"sequence": name, **values}, functools.partial(self._rows, name, **values))

    def report(self, rows: list[Row]) -> Report:
        """See `findings`."""
        return findings(rows, self._lists(), self.settings.averaging)

    def _lists(self) -> dict[str, list[Any]]:
        return {axis: list(getattr(self.settings, name)) for axis, name in AXES.items()}

    def _combinations(self) -> list[Row]:
        """The values of the axes that are measured."""
        lists = self._lists()
        if self.settings.everything:
            return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]
        return one_varied(lists)

    def _rows(
        self, name: str, *, source: str, searched: Where, sigma: float, stride: int, patch: int
    ) -> list[Row]:
        s = self.settings
        sequence = self._sequence(name)
        seen = self._frames(name, searched, sigma)[None]
        variance = (sigma / 255) ** 2
        with torch.no_grad():
            flow = self._source(source)(seen)
        return measure(
            sequence.clean[None],
            seen,
            flow,
            sequence.motion(),
            [Search(window, patch, stride, searched == "tested", variance) for window in s.windows],
            averaging=s.averaging,
            truth=sequence.truth,
            exhaustive=s.exhaustive if sequence.truth else 0,
        )

    @functools.lru_cache(maxsize=8)  # noqa: B019 (an experiment lives as long as the run)
    def _source(self, name: str) -> OffsetSource:
        """A source by its name; one that is trained as it was."""
        s = self.settings
        if not needs_training(name):
            return stan.flow.build(name, **(s.source_settings.get(name) or {}))
        source = stan.models.load(find(s.trained or "")).source
        if source.name != name:
            raise ConfigError(
                f"trained={s.trained}: the offset source of this network is {source.name!r}, not {name!r}"
            )
        return source

    @functools.lru_cache(maxsize=1)  # noqa: B019 (an experiment lives as long as the run)
    def _sequence(self, name: str) -> Sequence:
        s = self.settings
        return load(s.root, s.split, name, frames=s.frames, crop=s.crop, size=s.size, seed=s.seed)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _frames(self, name: str, searched: Where, sigma: float) -> Tensor:
        """The frames `(T, 3, H, W)` in which flow is estimated and matches are searched."""
        sequence = self._sequence(name)
        if searched == "clean":
            return sequence.clean
        noisy = add_noise(
            sequence.frames, build_noise("gaussian"), sigma, sequence=name, seed=self.settings.seed
        )
        if searched == "noisy":
            return noisy
        if searched == "tested":
            return self._frames(name, "cleaned", sigma)
        network = stan.models.load(find(self.settings.cleaner))
        with torch.no_grad():
            alone = [network(frame[None, None], None if network.blind else sigma)[0, 0] for frame in noisy]
        return torch.stack(alone)
