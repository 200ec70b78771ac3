"""What an evaluation consists of, worked out from the configuration and checked before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stan.config import Config
from stan.data import Clip, open_clips
from stan.data import degradation as degradations
from stan.data import noise as noises
from stan.data.cache import Cache, cached
from stan.data.degradation import Degradation
from stan.data.noise import Noise
from stan.data.pairs import RECORDED, each_half
from stan.data.sources import takes_noisy
from stan.errors import ConfigError, DataError, nearest
from stan.evaluation import protocols, provenance
from stan.evaluation.devices import Ranks, pick_device, sharing
from stan.evaluation.methods import PRECISIONS, Alone, Method, Noisy, open_methods
from stan.evaluation.protocols import Protocol
from stan.files import sha256_of
from stan.inference import TilePlan, recorded
from stan.inference.memory import free_memory, parse_size
from stan.metrics import METRICS

SMALLEST = 8


@dataclass(frozen=True)
class Task:
    """One method, one sequence, one noise level."""

    method: Method
    clip: Clip
    sigma: float


@dataclass
class Plan:
    """Everything an evaluation needs.

    Attributes:
        config: the resolved configuration.
        protocol: the named protocol.
        split: split list used; None: all sequences.
        max_frames: cap on the frames of a sequence; None: none.
        seed: seed of the noise.
        clips: the sequences, in order.
        files: of each sequence, the files that it is decoded from.
        degradation: what is done to the clean video before the noise.
        noise: kind of noise.
        sigmas: noise levels, 8-bit units, in order.
        methods: what is compared, in order.
        device: where networks run.
        ranks: this process among others.
    """

    config: Config
    protocol: Protocol
    split: str | None
    max_frames: int | None
    seed: int
    clips: list[Clip]
    files: dict[str, Sequence[Path]]
    degradation: Degradation
    noise: Noise
    sigmas: list[float]
    methods: list[Method]
    device: torch.device
    ranks: Ranks
    _contents: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def recorded(self) -> bool:
        """Whether the noisy videos are recorded (pairs), and no noise is added."""
        return takes_noisy(self.config.data.kind)

    @property
    def noise_kind(self) -> str:
        """The kind of noise by name; "recorded" of pairs."""
        return RECORDED if self.recorded else self.noise.kind

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return Path(self.config.output).expanduser()

    @cached_property
    def departures(self) -> list[str]:
        """What is not as the protocol says."""
        return self.protocol.departures(
            data=self.config.data.kind,
            split=self.split,
            max_frames=self.max_frames,
            noise=self.noise_kind,
            border=self.config.evaluation.border,
            seed=self.seed,
            sequences=len(self.clips) if self.config.evaluation.sequences else None,
            downscale=self.config.data.downscale,
            task=self.degradation.task,
        )

    @cached_property
    def tasks(self) -> list[Task]:
        """All the work. The noisy input comes first at each level: all methods share its figures."""
        methods: list[Method] = [Noisy()]
        for method in self.methods:
            if not isinstance(method, Noisy):
                methods.append(method)
                if self.config.evaluation.temporal_gain and method.temporal:
                    methods.append(Alone(method))
        return [Task(m, clip, sigma) for clip in self.clips for sigma in self.sigmas for m in methods]

    def frames(self, clip: Clip) -> int:
        """How many frames of a sequence are used."""
        return len(clip) if self.max_frames is None else min(len(clip), self.max_frames)

    def key(self, task: Task, tiles: dict[str, Any]) -> dict[str, Any]:
        """Everything that can move the figures of a task, as plain data."""
        return {
            "format": 2,
            "seed": self.seed,
            "task": [self.degradation.task, self.degradation.settings],
            "noise": [RECORDED, {}] if self.recorded else [self.noise.kind, self.noise.settings],
            "sigma": float(task.sigma),
            "sequence": task.clip.name,
            "frames": self.frames(task.clip),
            "content": self.content(task.clip),
            "downscale": self.config.data.downscale,
            "border": self.config.evaluation.border,
            "method": task.method.describe(),
            "tiles": tiles,
            "source": provenance.code()["source"],
            "metrics": provenance.foreign({m.name: m.function for m in METRICS.values()}),
            "libraries": provenance.libraries(),
        }

    def content(self, clip: Clip) -> str:
        """A hash of all that the used frames are decoded from: whole files, as times of files can lie."""
        if clip.name not in self._contents:
            files, frames = self.files[clip.name], self.frames(clip)
            digest = hashlib.sha256(str(clip.size).encode())
            try:
                one_each = len(files) == len(clip) and not self.recorded
                for path in files[:frames] if one_each else files:
                    digest.update(sha256_of(path).encode())
            except OSError as error:
                raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
            if not files:
                digest.update(protocols.digest(clip.read(0, frames)).encode())
            self._contents[clip.name] = digest.hexdigest()
        return self._contents[clip.name]

    @cached_property
    def estimated_levels(self) -> str:
        """How strong the noise of pairs is, in words."""
        return recorded.estimated_levels(self.clips)

    def settings(self) -> dict[str, Any]:
        """What is printed with every result: everything that can move a figure, as plain data."""
        options = self.config.evaluation
        noise = self.noise_kind
        return {
            "protocol": self.protocol.name,
            "protocol_version": self.protocol.version,
            "departures": self.departures,
            "seed": self.seed,
            "data": {
                "kind": self.config.data.kind,
                "root": self.config.data.root,
                **({"noisy": self.config.data.noisy} if self.recorded else {}),
                "split": self.split,
                "sequences": len(self.clips),
                "frames": sum(map(self.frames, self.clips)),
                "downscale": self.config.data.downscale,
            },
            "max_frames": self.max_frames,
            "sigmas": self.sigmas,
            "task": {"name": self.degradation.task, "settings": self.degradation.settings},
            "input": f"{self.degradation.word} input",
            "noise": {
                "kind": noise,
                "settings": {} if self.recorded else self.noise.settings,
                "clipped": self.recorded or noise in ("gaussian_clipped", "gaussian_rounded"),
                "rounded": self.recorded or noise == "gaussian_rounded",
                "generator": "none" if self.recorded else "numpy PCG64, one draw per (seed, sequence, sigma)",
            },
            "output": {"clamped": True, "rounded": False},
            "border": options.border,
            "precision": self.config.trainer.precision,
            "tiles": options.tiles or "from memory",
            "memory": options.memory,
            "scenes": options.scenes,
            "find_level": options.find_level,
            "temporal_window": options.temporal_window,
            "device": provenance.device_name(self.device),
            "code": provenance.code(),
            "versions": provenance.versions(),
        }


def make_plan(config: Config) -> Plan:
    """Work out an evaluation and check all of it.

    Raises:
        ConfigError: a key whose value cannot be used.
        DataError: data that is missing, or frames too small to measure.
        CheckpointError: a checkpoint that is missing or damaged.
    """
    options = config.evaluation
    protocol = protocols.get(options.protocol)
    precision = config.trainer.precision
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ConfigError(f"trainer.precision={precision!r} cannot be evaluated with; valid: {known}")
    if not options.sigmas:
        raise ConfigError(
            "evaluation.sigmas is empty: give one or more noise levels, such as [10,20,30,40,50]"
        )
    ranks = Ranks.of_environment()
    device = pick_device(config, ranks)
    methods = open_methods(
        config.checkpoint,
        device=device,
        precision=precision,
        tiles=_tiles(options.tiles, options.memory),
        memory=_memory(options.memory, device, sharing(config, device, ranks)),
        scenes=options.scenes,
        find_level=options.find_level,
        temporal_window=options.temporal_window,
    )
    sigmas = [float(sigma) for sigma in dict.fromkeys(options.sigmas)]
    if takes_noisy(config.data.kind):  # one recording, of one level
        sigmas = [noises.parse_sigma(config.noise.sigma).low]
        if not any(isinstance(method, Noisy) for method in methods):
            methods = [Noisy(), *methods]
    split = options.split
    if split is None and config.data.kind == "davis":
        split = protocol.split
    split = None if split == "all" else split
    clips, files = _clips(config, split)
    plan = Plan(
        config=config,
        protocol=protocol,
        split=split,
        max_frames=options.max_frames if options.max_frames is not None else protocol.max_frames,
        seed=protocol.seed if options.seed is None else options.seed,
        clips=clips,
        files=files,
        degradation=degradations.build(config.task, **config.task_settings),
        noise=noises.build(config.noise.kind, **config.noise.settings),
        sigmas=sigmas,
        methods=methods,
        device=device,
        ranks=ranks,
    )
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={config.output} cannot be made: {error.strerror}") from None
    return plan


def _clips(config: Config, split: str | None) -> tuple[list[Clip], dict[str, Sequence[Path]]]:
    """The sequences, and the files that each is decoded from."""
    data, options = config.data, config.evaluation
    try:
        clips = open_clips(data.kind, data.root, split, data.noisy)
    except DataError as error:
        if split is not None and options.split is None and f"{split!r}" in str(error):
            raise DataError(
                f"{error}. Protocol {options.protocol} uses {split}; choose another by evaluation.split=..."
            ) from None
        raise
    if options.sequences:
        known = {clip.name: clip for clip in clips}
        for name in options.sequences:
            if name not in known:
                raise ConfigError(f"evaluation.sequences: no sequence {name!r}; {nearest(name, known)}")
        clips = [known[name] for name in dict.fromkeys(options.sequences)]
    files: dict[str, Sequence[Path]] = {clip.name: clip.files for clip in clips}
    if data.downscale > 1:
        clips = cached(clips, data.cache, downscale=data.downscale)
    else:  # what is decoded already is used, but evaluation writes nothing beside the data
        clips = [each_half(clip, lambda half: Cache(half, data.cache).find() or half) for clip in clips]
    for clip in clips:
        height, width = clip.size
        if min(height, width) - 2 * options.border < SMALLEST:
            raise DataError(
                f"sequence {clip.name} of {width}x{height} pixels (border {options.border}) is too small to "
                f"measure: {SMALLEST}x{SMALLEST} is needed"
            )
    return clips, files


def _tiles(settings: dict[str, Any], memory: str | None) -> TilePlan | None:
    """The tiles asked for; None when they follow from memory."""
    if not settings:
        return None
    if memory is not None:
        raise ConfigError(f"evaluation: give tiles or memory, not both: {settings}, {memory!r}")
    known = [key.name for key in fields(TilePlan)]
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"evaluation.tiles: unknown key {name!r}; {nearest(name, known)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (value is None and name in ("height", "width")):
            raise ConfigError(f"evaluation.tiles.{name}={value!r} should be a whole number")
    return TilePlan(**settings)


def _memory(memory: str | None, device: torch.device, processes: int) -> str | int | None:
    """The budget of this process: where several share one machine's memory, its part of what is free."""
    if memory is not None:
        parse_size(memory)
        return memory
    if device.type == "cpu" and processes > 1:
        return max(1, int(0.7 * free_memory(device) / processes))
    return None
