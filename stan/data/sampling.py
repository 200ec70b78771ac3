"""Training samples: random space-time crops, each a pure function of (seed, n), and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from stan.data.camera import pan
from stan.data.clips import Clip
from stan.data.noise.random import NumpyRandom
from stan.data.pairs import PairedClip
from stan.errors import ConfigError, DataError
from stan.reflection import reflect


class TrainingClips(Dataset[torch.Tensor]):
    """Random space-time crops of clips: item n depends on the seed, the clips and n, and on nothing else.

    A sequence is drawn with a probability in proportion to its frames, then the first frame evenly over all
    that leave room for the sample, then the corner of the crop evenly over all places inside the frame, then
    flips, a turn and the direction of time. A sequence with fewer frames than asked is walked back and forth
    (0 1 2 1 0 1 ...), from a random frame on.

    Args:
        clips: the sequences; they may differ in size and length.
        frames: frames a sample, T.
        crop: side of the square crop in pixels.
        seed: samples of two seeds are independent of each other.
        flip: mirror left-right with chance 1/2 and, on its own, upside down with chance 1/2.
        turn: turn by 0, 90, 180 or 270 degrees with equal chance.
        reverse: let time run backwards with chance 1/2.

    Raises:
        ConfigError: frames or crop below 1.
        DataError: no clips, or clips smaller than the crop; names them.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        frames: int,
        crop: int,
        seed: int,
        flip: bool = True,
        turn: bool = True,
        reverse: bool = True,
    ) -> None:
        for name, value in (("frames", frames), ("crop", crop)):
            if value < 1:
                raise ConfigError(f"data.{name}={value} must be at least 1")
        if not clips:
            raise DataError("there are no clips to train on")
        small = [clip for clip in clips if min(clip.size) < crop]
        if small:
            listed = ", ".join(f"{clip.name} ({clip.size[1]}x{clip.size[0]})" for clip in small[:5])
            more = f" and {len(small) - 5} more" if len(small) > 5 else ""
            raise DataError(
                f"data.crop={crop} is larger than the frames of {listed}{more}: "
                f"set data.crop to at most {min(min(clip.size) for clip in small)} or leave them out"
            )
        self.clips = list(clips)
        self.frames, self.crop, self.seed = frames, crop, seed
        self.flip, self.turn, self.reverse = flip, turn, reverse
        self._ends = np.cumsum([len(clip) for clip in clips])

    def __getitem__(self, n: int) -> torch.Tensor:
        """Make sample n (any integer from 0 up): `(T, 3, crop, crop)` uint8."""
        if n < 0:
            raise IndexError(f"training sample {n}: samples count from 0")
        random = NumpyRandom(self.seed, "training sample", n).generator
        draw = random.integers
        # All numbers are drawn, in this order, whatever the options: switching one off leaves the rest as is.
        clip = self.clips[int(np.searchsorted(self._ends, draw(self._ends[-1]), side="right"))]
        # A clip that is too short may begin at any point of its walk.
        spare = len(clip) - self.frames
        start = int(draw(spare + 1 if spare >= 0 else max(1, 2 * (len(clip) - 1))))
        top, left = (int(draw(side - self.crop + 1)) for side in clip.size)
        mirror, upturn, backward = (bool(draw(2)) for _ in range(3))
        turns = int(draw(4))

        sample = self._cut(clip, start, top, left, random)
        if self.reverse and backward:
            sample = sample.flip(0)
        if self.flip and mirror:
            sample = sample.flip(-1)
        if self.flip and upturn:
            sample = sample.flip(-2)
        if self.turn and turns:
            sample = sample.rot90(turns, (-2, -1))
        return sample.contiguous()

    def _cut(self, clip: Clip, start: int, top: int, left: int, random: np.random.Generator) -> torch.Tensor:
        """Cut `frames` frames from `start` on, walking back and forth where the clip is too short."""
        if len(clip) >= self.frames:
            return clip.crop(start, start + self.frames, top, left, self.crop, self.crop)
        index = reflect(range(start, start + self.frames), len(clip))
        return clip.crop(0, len(clip), top, left, self.crop, self.crop)[index]


class PannedStills(TrainingClips):
    """As `TrainingClips`, but each sample is one frame of its clip under a slow camera (see `camera.pan`).

    Footage that moves much, as DAVIS does, does not teach a network that averaging over time pays; this does,
    with motion in fractions of a pixel as a hand or a tripod gives it.
    """

    def _cut(self, clip: Clip, start: int, top: int, left: int, random: np.random.Generator) -> torch.Tensor:
        frame = clip.read(start % len(clip), start % len(clip) + 1)[0].permute(1, 2, 0).numpy()  # (H, W, 3)
        video = pan(frame, self.frames, self.crop, top, left, random)  # (T, crop, crop, 3)
        return torch.from_numpy(video).permute(0, 3, 1, 2)


class TrainingPairs(TrainingClips):
    """As `TrainingClips`, of pairs: the same box, flips, turn and direction of both.

    Item n is `(T, 6, crop, crop)` uint8: the clean frames' channels, then the noisy ones'. The clean ones are what
    `TrainingClips` gives of the clean sequences alone.
    """

    def _cut(self, clip: Clip, start: int, top: int, left: int, random: np.random.Generator) -> torch.Tensor:
        if not isinstance(clip, PairedClip):
            raise DataError(f"sequence {clip.name!r} is no pair of a clean and a noisy recording")
        halves = [
            super(TrainingPairs, self)._cut(half, start, top, left, random)
            for half in (clip.clean, clip.noisy)
        ]
        return torch.cat(halves, dim=1)


class MixedClips(Dataset[torch.Tensor]):
    """Samples from several sets: item n comes from one of them, drawn by its share from (seed, n) alone.

    Args:
        parts: the sets, each with its share; shares are relative and need not sum to one.
        seed: of the choice between the parts.

    Raises:
        ConfigError: no parts, or a share that is not a number above 0.
    """

    def __init__(self, parts: Sequence[tuple[TrainingClips, float]], seed: int) -> None:
        if not parts or not all(0 < share < float("inf") for _, share in parts):
            shares = ", ".join(f"{share:g}" for _, share in parts)
            raise ConfigError(f"data.parts: shares {shares or '(none)'} must be numbers above 0")
        self.parts = [part for part, _ in parts]
        self.seed = seed
        self._ends = np.cumsum([share for _, share in parts])

    def __getitem__(self, n: int) -> torch.Tensor:
        """Make sample n: `(T, 3, crop, crop)` uint8."""
        at = NumpyRandom(self.seed, "training part", n).generator.random() * self._ends[-1]
        return self.parts[min(int(np.searchsorted(self._ends, at, side="right")), len(self.parts) - 1)][n]


class StepSampler(Sampler[list[int]]):
    """Batches of sample numbers for one process: a `batch_sampler` for a `DataLoader` over `TrainingClips`.

    At each step, process `rank` gets n = (step * world_size + rank) * batch_size + i for i in
    [0, batch_size): together the processes use every n once, and a run that begins at `start_step` sees just
    what an uninterrupted one would.

    Args:
        batch_size: samples a process and step.
        rank, world_size: this process and how many there are.
        start_step: first step.
        steps: steps up to which the numbers run: steps `start_step` to `steps` (exclusive) are given.

    Raises:
        ConfigError: values that make no sense.
    """

    def __init__(
        self, batch_size: int, *, steps: int, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size} must be at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes")
        if not 0 <= start_step <= steps:
            raise ConfigError(f"start at step {start_step} is not within the {steps} steps of the run")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_step, self.steps = start_step, steps

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
