"""What an evaluation consists of, worked out from the configuration and checked before anything is
computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stan.data import noise as noises
from stan.data import open_clips
from stan.data.cache import Cache, cached
from stan.errors import ConfigError, DataError, nearest
from stan.evaluation import protocols, provenance
from stan.evaluation.methods import PRECISIONS, Method, Noisy, open_methods
from stan.evaluation.parts import fingerprint
from stan.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from stan.config import Config
    from stan.data import Clip
    from stan.data.noise import Noise

SMALLEST = 8


@dataclass(frozen=True)
class Task:
    """One method, one sequence, one noise level."""

    method: Method
    clip: Clip
    sigma: float


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: number of this process.
        world: how many there are.
        local_rank: number of this process on its machine.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun, Lightning and SLURM scripts set them in the environment."""
        world = _number("WORLD_SIZE", 1)
        rank = _number("RANK", 0)
        return cls(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))


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
    noise: Noise
    sigmas: list[float]
    methods: list[Method]
    device: torch.device
    ranks: Ranks

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
            noise=self.noise.kind,
            border=self.config.evaluation.border,
            seed=self.seed,
            sequences=len(self.clips) if self.config.evaluation.sequences else None,
            downscale=self.config.data.downscale,
        )

    @cached_property
    def tasks(self) -> list[Task]:
        """All the work. The noisy input comes first at each level: all methods share its figures."""
        methods: list[Method] = [Noisy(), *(m for m in self.methods if not isinstance(m, Noisy))]
        return [Task(m, clip, sigma) for clip in self.clips for sigma in self.sigmas for m in methods]

    def frames(self, clip: Clip) -> int:
        """How many frames of a sequence are used."""
        return len(clip) if self.max_frames is None else min(len(clip), self.max_frames)

    def key(self, task: Task, tiles: dict[str, Any]) -> dict[str, Any]:
        """Everything that can move the figures of a task, as plain data."""
        return {
            "format": 1,
            "seed": self.seed,
            "noise": [self.noise.kind, self.noise.settings],
            "sigma": float(task.sigma),
            "sequence": task.clip.name,
            "frames": self.frames(task.clip),
            "content": self.content(task.clip),
            "border": self.config.evaluation.border,
            "method": self.description(task.method),
            "tiles": tiles,
            "source": provenance.code()["source"],
            "torch": torch.__version__,
        }

    def content(self, clip: Clip) -> str:
        """A hash of a sequence's size, its first and its last used frame: tells data sets of one name
        apart.
        """
        if clip.name not in self._contents:
            last = self.frames(clip) - 1
            ends = torch.cat([clip.read(0, 1), clip.read(last, last + 1)])
            self._contents[clip.name] = fingerprint({"size": clip.size, "ends": protocols.digest(ends)})
        return self._contents[clip.name]

    def description(self, method: Method) -> dict[str, Any]:
        """A method's own account of itself."""
        if method.name not in self._descriptions:
            self._descriptions[method.name] = method.describe()
        return self._descriptions[method.name]

    @cached_property
    def _contents(self) -> dict[str, str]:
        return {}

    @cached_property
    def _descriptions(self) -> dict[str, dict[str, Any]]:
        return {}

    def settings(self) -> dict[str, Any]:
        """What is printed with every result: everything that can move a figure, as plain data."""
        options = self.config.evaluation
        noise = self.noise.kind
        clipped = noise in ("gaussian_clipped", "gaussian_rounded")
        return {
            "protocol": self.protocol.name,
            "protocol_version": self.protocol.version,
            "departures": self.departures,
            "seed": self.seed,
            "data": {
                "kind": self.config.data.kind,
                "root": self.config.data.root,
                "split": self.split,
                "sequences": len(self.clips),
                "frames": sum(map(self.frames, self.clips)),
                "downscale": self.config.data.downscale,
            },
            "max_frames": self.max_frames,
            "sigmas": self.sigmas,
            "noise": {
                "kind": noise,
                "settings": self.noise.settings,
                "clipped": clipped,
                "rounded": noise == "gaussian_rounded",
                "generator": "numpy PCG64, one draw per (seed, sequence, sigma)",
            },
            "output": {"clamped": True, "rounded": False},
            "border": options.border,
            "precision": self.config.trainer.precision,
            "tiles": options.tiles or "from memory",
            "memory": options.memory,
            "scenes": options.scenes,
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
    ranks = Ranks.of_environment()
    device = pick_device(config, ranks)
    methods = open_methods(
        config.checkpoint,
        device=device,
        precision=_precision(config.trainer.precision),
        tiles=_tiles(options.tiles, options.memory),
        memory=_memory(options.memory, device, ranks),
        scenes=options.scenes,
    )
    split = options.split
    if split is None and config.data.kind == "davis":
        split = protocol.split
    split = None if split == "all" else split
    plan = Plan(
        config=config,
        protocol=protocol,
        split=split,
        max_frames=options.max_frames if options.max_frames is not None else protocol.max_frames,
        seed=protocol.seed if options.seed is None else options.seed,
        clips=_clips(config, split),
        noise=noises.build(config.noise.kind, **config.noise.settings),
        sigmas=_sigmas(options.sigmas),
        methods=methods,
        device=device,
        ranks=ranks,
    )
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={config.output} cannot be made: {error.strerror}") from None
    return plan


def pick_device(config: Config, ranks: Ranks) -> torch.device:
    """The device of this process, from ``trainer.accelerator``, ``trainer.devices`` and the local rank.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    wanted = config.trainer.accelerator
    if wanted == "auto":
        wanted = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted == "gpu":
        wanted = "mps" if torch.backends.mps.is_available() and not torch.cuda.is_available() else "cuda"
    if wanted in ("cpu", "mps"):
        if wanted == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("trainer.accelerator=mps: this machine has no such device; say cpu")
        return torch.device(wanted)
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"trainer.accelerator={config.trainer.accelerator}: no CUDA device is found; say cpu instead"
        )
    listed = config.trainer.devices
    index = (
        listed[ranks.local_rank % len(listed)] if isinstance(listed, list) and listed else ranks.local_rank
    )
    if not 0 <= index < count and isinstance(listed, list):
        raise ConfigError(f"trainer.devices={listed}: this machine has CUDA devices 0 to {count - 1}")
    return torch.device("cuda", index % count)


def read_frames(plan: Plan, clip: Clip) -> Tensor:
    """The frames of a sequence that are used, (T, 3, H, W) uint8."""
    return clip.read(0, plan.frames(clip))


def _clips(config: Config, split: str | None) -> list[Clip]:
    data, options = config.data, config.evaluation
    try:
        clips = open_clips(data.kind, data.root, split)
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
    if data.downscale > 1:
        clips = cached(clips, data.cache, downscale=data.downscale)
    else:  # what is decoded already is used, but evaluation writes nothing beside the data
        clips = [Cache.of(clip, data.cache).find(clip) or clip for clip in clips]
    for clip in clips:
        height, width = clip.size
        if min(height, width) - 2 * options.border < SMALLEST:
            raise DataError(
                f"sequence {clip.name} of {width}x{height} pixels (border {options.border}) is too small to "
                f"measure: {SMALLEST}x{SMALLEST} is needed"
            )
    return clips


def _sigmas(values: list[float]) -> list[float]:
    if not values:
        raise ConfigError(
            "evaluation.sigmas is empty: give one or more noise levels, such as [10,20,30,40,50]"
        )
    return [float(value) for value in dict.fromkeys(values)]


def _precision(name: str) -> str:
    if name not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={name!r} cannot be evaluated with; valid: {', '.join(PRECISIONS)}"
        )
    return name


def _tiles(settings: dict[str, Any], memory: str | None) -> Any:
    """The tiles asked for; None when they follow from memory."""
    if not settings:
        return None
    from dataclasses import fields

    from stan.inference import TilePlan

    if memory is not None:
        raise ConfigError(f"evaluation: give tiles or memory, not both: {settings}, {memory!r}")
    known = [field.name for field in fields(TilePlan)]
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"evaluation.tiles: unknown key {name!r}; {nearest(name, known)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (value is None and name in ("height", "width")):
            raise ConfigError(f"evaluation.tiles.{name}={value!r} should be a whole number")
    return TilePlan(**settings)


def _memory(memory: str | None, device: torch.device, ranks: Ranks) -> str | int | None:
    """The budget of this process: where several share one machine's memory, its part of what is free."""
    from stan.inference.memory import free_memory, parse_size

    if memory is not None:
        parse_size(memory)
        return memory
    if device.type == "cpu" and ranks.local_world > 1:
        return max(1, int(0.7 * free_memory(device) / ranks.local_world))
    return None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"environment variable {name}={text!r} should be a whole number") from None
