"""What is evaluated: networks from checkpoints, and baselines that were not learned, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from stan import inference, models
from stan.errors import CheckpointError, ConfigError
from stan.files import sha256_of
from stan.inference import Options, TilePlan
from stan.models import VideoDenoiser
from stan.models.shipped import find
from stan.ops.backend import in_use
from stan.registry import baselines as BASELINES

Progress = Callable[[float], None]
"""Told the part of a video that is done, in [0, 1]."""

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Method(ABC):
    """Something that turns a noisy video into a clean one. Baselines are registered in `stan.registry.baselines`.

    Attributes:
        name: label in tables, unique in an evaluation.
        kind: "network" or "baseline".
        word: what the user wrote: a path, or the name of a baseline.
        temporal: whether a frame's output may depend on other frames.
    """

    name: str
    kind: Literal["network", "baseline"] = "baseline"
    word: str
    temporal: bool = True

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain data: everything about the method that can move a figure."""

    def prepare(self, size: tuple[int, int], frames: int) -> dict[str, Any]:
        """Decide how clips of this size and length are cut; plain data that `__call__` takes as `plan`."""
        return {}

    def short_of_memory(self, size: tuple[int, int], frames: int, plan: dict[str, Any]) -> bool:
        """Whether a plan of `prepare` would be another one if there were more memory."""
        return False

    @abstractmethod
    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Denoise.

        Args:
            noisy: (T, 3, H, W) float32 on the CPU, not clamped; not to be changed.
            sigma: level of the noise, 8-bit units.
            plan: what `prepare` gave for this size.
            progress: to be called now and then.

        Returns:
            (T, 3, H, W) float32 on the CPU, clamped or not.
        """


@BASELINES.register("noisy")
class Noisy(Method):
    """The noisy video as it is: what every method has to beat."""

    temporal = False

    def describe(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {"name": self.name}

    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Give the input back."""
        progress(1)
        return noisy


@BASELINES.register("nlmeans")
class NLMeans(Method):
    """Non-local means over three frames (Buades, Coll & Morel 2005; OpenCV's fastNlMeansDenoisingColoredMulti).

    OpenCV takes 8-bit pictures only, so the noisy video is clamped and rounded first, and the result is whole
    grey levels. Filter strength h = 0.65 sigma for luma and chroma, 5x5 patches, 15x15 search: what did best
    among h of 0.4 to 1.2 sigma, patches of 3 to 7 and searches of 11 to 21 on three DAVIS train sequences at
    sigma 10, 30, 50. At the clip's ends the missing frame is replaced by its mirror image.
    """

    strength = 0.65
    patch = 5
    search = 15

    def describe(self) -> dict[str, Any]:
        """OpenCV's version and the settings."""
        return {
            "name": self.name,
            "opencv": cv2.__version__,
            "h": f"{self.strength} sigma",
            "patch": self.patch,
            "search": self.search,
            "frames": 3,
        }

    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Denoise frame by frame, each with its neighbours."""
        count = len(noisy)
        out = torch.empty_like(noisy)
        h = self.strength * sigma
        settings = (None, h, h, self.patch, self.search)
        for t in range(count):
            if count == 1:
                frame = cv2.fastNlMeansDenoisingColored(self._picture(noisy[0]), *settings)
            else:
                around = [abs(t - 1), t, t + 1 if t + 1 < count else t - 1]
                pictures = [self._picture(noisy[i]) for i in around]
                frame = cv2.fastNlMeansDenoisingColoredMulti(pictures, 1, 3, *settings)
            out[t] = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1).float() / 255
            progress((t + 1) / count)
        return out

    @staticmethod
    def _picture(frame: Tensor) -> np.ndarray:
        """(3, H, W) in [0, 1] -> (H, W, 3) uint8 BGR, as OpenCV has it."""
        levels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return np.ascontiguousarray(levels[..., ::-1])


@BASELINES.register("bm3d")
class BM3D(Method):
    """Colour BM3D of each frame by itself (Dabov et al. 2007; the authors' `bm3d` package)."""

    temporal = False

    def __init__(self) -> None:
        try:
            import bm3d
        except ImportError:
            raise ConfigError(
                "checkpoint=bm3d needs a package that is not installed: pip install bm3d "
                "(its licence allows research use only)"
            ) from None
        self.run = bm3d.bm3d_rgb

    def describe(self) -> dict[str, Any]:
        """The package's version."""
        return {"name": self.name, "bm3d": metadata.version("bm3d"), "profile": "np"}

    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Denoise frame by frame."""
        out = torch.empty_like(noisy)
        for t, frame in enumerate(noisy):
            if sigma > 0:
                clean = self.run(frame.permute(1, 2, 0).double().numpy(), sigma / 255)
                out[t] = torch.from_numpy(np.ascontiguousarray(clean)).permute(2, 0, 1)
            else:
                out[t] = frame
            progress((t + 1) / len(noisy))
        return out


@dataclass(eq=False)
class Network(Method):
    """A trained network from a checkpoint.

    Attributes:
        path: a `.ckpt` or `.safetensors` file.
        name: label in tables.
        device: where to run.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        tiles: how to cut the video; None chooses by `memory`.
        memory: memory for a tile, such as "4GiB"; None: from what is free.
        scenes: look for scene cuts, which no chunk of frames crosses.
        find_level: the network is not told the noise level: it is estimated, as `stan denoise` does.
        temporal_window: frames that it merges each side; None: as many as its checkpoint says.
    """

    path: Path
    name: str
    device: torch.device
    precision: str = "32-true"
    tiles: TilePlan | None = None
    memory: str | int | None = None
    scenes: bool = False
    find_level: bool = False
    temporal_window: int | None = None
    kind = "network"

    @property
    def word(self) -> str:  # type: ignore[override]
        """The path."""
        return str(self.path)

    @cached_property
    def model(self) -> VideoDenoiser:
        """The network, on its device; loaded when it is first needed."""
        more = {} if self.temporal_window is None else {"temporal_window": self.temporal_window}
        return models.load(self.path, self.device, **more)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint file."""
        return sha256_of(self.path)

    def describe(self) -> dict[str, Any]:
        """The checkpoint's hash and what the file says of its network; not where the file lies."""
        model = self.model
        return {
            "sha256": self.sha256,
            "model": model.name,
            "settings": model.settings,
            "parameters": sum(p.numel() for p in model.parameters()),
            "blind": model.blind,
            "trained": model.trained.to_dict() if model.trained else None,
            "precision": self.precision,
            "device": self.device.type,
            "operator": in_use(self.device),
            "scenes": self.scenes,
            **({"find_level": True} if self.find_level else {}),
            **({} if self.temporal_window is None else {"temporal_window": self.temporal_window}),
        }

    def prepare(self, size: tuple[int, int], frames: int) -> dict[str, Any]:
        """The tiles, as plain data: those that were asked for, or those that fit into memory."""
        if self.tiles is not None:
            return asdict(self.tiles)
        dtype = PRECISIONS[self.precision]
        return asdict(inference.plan_tiles(self.model, size, frames=frames, memory=self.memory, dtype=dtype))

    def short_of_memory(self, size: tuple[int, int], frames: int, plan: dict[str, Any]) -> bool:
        """Compares with the tiles that unlimited memory would allow, which are the same on every machine."""
        whole = plan["height"] is None and plan["width"] is None and plan["frames"] >= frames
        if whole or self.tiles is not None:
            return False
        dtype = PRECISIONS[self.precision]
        return plan != asdict(
            inference.plan_tiles(self.model, size, frames=frames, memory=1 << 60, dtype=dtype)
        )

    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Denoise with the plan's tiles."""
        options = Options(
            sigma=None if self.model.blind else "auto" if self.find_level else sigma,
            tiles=TilePlan(**plan),
            scenes=self.scenes,
            dtype=PRECISIONS[self.precision],
            progress=lambda done, total: progress(done / len(noisy)),
        )
        return inference.denoise(self.model, noisy, options=options)


class Alone(Method):
    """Another method that is given each frame of a video by itself, with the tiles that it has for the whole video:
    what it makes of it without the others."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.kind = method.kind
        self.name = f"{method.name}, frames alone"
        self.word = method.word

    def describe(self) -> dict[str, Any]:
        """The method's account, marked."""
        return {**self.method.describe(), "alone": True}

    def __call__(self, noisy: Tensor, sigma: float, plan: dict[str, Any], progress: Progress) -> Tensor:
        """Denoise clips of one frame."""
        frames = []
        for frame in noisy.split(1):
            frames.append(self.method(frame, sigma, plan, lambda part: None))
            progress(len(frames) / len(noisy))
        return torch.cat(frames)


def open_methods(words: Any, **network: Any) -> list[Method]:
    """The methods that `checkpoint` names, in its order.

    Args:
        words: a path, the name of a baseline, or a list of them. A file that is called like a baseline is
            meant when it is written as a path (``./noisy``).
        network: settings of `Network`.

    Raises:
        ConfigError: nothing is named, or something that is no text, or twice the same.
        CheckpointError: a file that does not exist.
    """
    listed = list(words) if isinstance(words, (list, tuple)) else [] if words is None else [words]
    if not listed:
        raise ConfigError(
            "nothing to evaluate: say checkpoint=FILE, a baseline "
            f"(checkpoint={'|'.join(BASELINES)}) or a list such as checkpoint=[a.ckpt,b.ckpt,nlmeans]"
        )
    for word in listed:
        if not isinstance(word, (str, Path)) or not str(word):
            raise ConfigError(
                f"checkpoint: {word!r} should be a file, a name of `stan models` or one of {', '.join(BASELINES)}"
            )
        if listed.count(word) > 1:
            raise ConfigError(f"checkpoint names {word} twice")
    files = {word: find(Path(word).expanduser()) for word in listed if word not in BASELINES}
    for path in files.values():
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    labels = dict(zip(files, label_paths(list(files.values()))))
    methods: list[Method] = []
    for word in listed:
        if word in BASELINES:
            methods.append(BASELINES.build(word))
        else:
            methods.append(Network(files[word], labels[word], **network))
    return methods


def label_paths(paths: Sequence[Path]) -> list[str]:
    """Short names that tell files apart: as many of their last parts as it takes, the ending only if it must."""
    bare = [path.resolve().with_suffix("") for path in paths]
    named = [path.resolve() if bare.count(stem) > 1 else stem for path, stem in zip(paths, bare)]

    def label(place: Path) -> str:
        tails = (place.parts[-depth:] for depth in range(1, len(place.parts)))
        alone = (t for t in tails if sum(other.parts[-len(t) :] == t for other in named) == 1)
        return next((name for name in map("/".join, alone) if name not in BASELINES), str(place))

    return [label(place) for place in named]
