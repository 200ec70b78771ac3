"""Denoising a video file or a folder of pictures into another; reading, computing and writing overlap."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stan.data.video import (
    Frame,
    OutputSettings,
    PicturesClip,
    Properties,
    VideoClip,
    open_output,
    open_source,
)
from stan.errors import StanError
from stan.inference.denoise import Progress, denoise_chunks
from stan.inference.frame_noise import NoiseLevel
from stan.inference.overlap import Reading, Writing, uninterrupted
from stan.inference.tiling import TilePlan

if TYPE_CHECKING:
    from stan.data.video import CopiedPacket, PictureWriter, VideoWriter
    from stan.models import VideoDenoiser

Tell = Callable[[str], None]
_AHEAD_BYTES = 96 * 2**20  # decoded frames that may wait in a channel


@dataclass(frozen=True)
class FileResult:
    """What became of a file.

    ``output``: where the result is, None if nothing was written. ``frames`` of ``total`` were written.
    ``sigma``: lowest, mean and highest noise level used, in 8-bit units, None for a blind model.
    ``interrupted``: by Ctrl-C, so that ``output`` is a partial result.
    """

    output: Path | None
    frames: int
    total: int
    seconds: float
    sigma: tuple[float, float, float] | None
    interrupted: bool = False


def denoise_file(
    model: VideoDenoiser,
    input: str | os.PathLike[str] | VideoClip | PicturesClip,
    output: str | os.PathLike[str],
    sigma: float | Literal["auto"] | None = None,
    *,
    strength: float = 1.0,
    settings: OutputSettings | None = None,
    compare: bool = False,
    overwrite: bool = False,
    salvage: bool = False,
    fps: float = 25,
    tiles: TilePlan | None = None,
    memory: str | int | None = None,
    scenes: bool = True,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> FileResult:
    """Denoise ``input`` into ``output``; frame times, colour, turn, pixel shape, sound and depth are kept.

    Ctrl-C (KeyboardInterrupt) ends the work early: what was done is closed properly and named
    ``NAME.partial.EXT``. After any other exception nothing is left behind.

    Args:
        model: the network.
        input: a video file, a folder of pictures, a picture, a glob pattern, or an opened source.
        output: see `stan.data.video.open_output`.
        sigma: noise level in 8-bit units, or "auto" to estimate it frame by frame; None is "auto" unless the
            model is blind.
        strength: factor on sigma.
        settings: codec, quality and the like.
        compare: write noisy and denoised side by side.
        overwrite: replace what is at ``output``.
        salvage: take what can be decoded of a damaged video.
        fps: frames a second of pictures.
        tiles, memory, scenes, dtype, device: see `stan.inference.denoise_chunks`.
        progress: called with (frames done, frames in all).
        tell: called with each line worth telling: what cannot be kept, the noise level found.

    Raises:
        VideoError: an input that cannot be read or an output that cannot be written.
        StanError: a noise level that does not go with the model.
    """
    began = time.monotonic()
    tell = tell or (lambda line: None)
    source = _opened(input, fps, salvage)
    level = NoiseLevel(model, sigma, strength)
    properties = doubled(source.properties) if compare else source.properties
    for line in (*source_notes(source), *level.notes):
        tell(line)
    writer = open_output(output, source, properties, settings or OutputSettings(), overwrite=overwrite)
    for line in writer.notes:
        tell(line)

    def denoised(frames: Iterator[Frame]) -> Iterator[Frame]:
        waiting: deque[Frame] = deque()

        def pixels() -> Iterator[Tensor]:
            for frame in frames:
                waiting.append(frame if compare else replace(frame, rgb=_NOTHING))
                yield frame.rgb

        clean = denoise_chunks(
            model,
            pixels(),
            level.per_frame(),
            tiles=tiles,
            memory=memory,
            scenes=scenes,
            dtype=dtype,
            device=device,
            progress=progress,
            total=len(source),
        )
        for rgb in clean:
            frame = waiting.popleft()
            yield beside(frame, rgb, properties) if compare else replace(frame, rgb=rgb)

    interrupted = _run(source, writer, level, denoised)
    for line in () if interrupted else damage_notes(source, writer.frames):
        tell(line)
    path: Path | None = writer.path
    if interrupted and writer.frames == 0:
        path = None
        writer.discard()
    elif interrupted:
        path = partial_name(writer.path)
        uninterrupted(lambda: writer.finish(path, complete=False))
    else:
        uninterrupted(writer.finish)
    return FileResult(path, writer.frames, len(source), time.monotonic() - began, level.summary, interrupted)


def preview_file(
    model: VideoDenoiser,
    input: str | os.PathLike[str] | VideoClip | PicturesClip,
    output: str | os.PathLike[str],
    count: int,
    sigma: float | Literal["auto"] | None = None,
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    salvage: bool = False,
    tiles: TilePlan | None = None,
    memory: str | int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> FileResult:
    """Denoise ``count`` frames spread over ``input``, each amid its neighbours, and write noisy and denoised
    side by side.

    The pictures go into the folder ``NAME.preview`` beside ``output``, named by frame number. Arguments as
    for `denoise_file`.
    """
    began = time.monotonic()
    tell = tell or (lambda line: None)
    if count < 1:
        raise StanError(f"preview of {count} frames: ask for at least 1")
    source = _opened(input, 25, salvage)
    level = NoiseLevel(model, sigma, strength)
    properties = doubled(source.properties)
    for line in (*source_notes(source), *level.notes):
        tell(line)
    folder = preview_folder(Path(output))
    writer = open_output(f"{folder}/", source, properties, OutputSettings(), overwrite=overwrite)
    count = min(count, len(source))
    reach = max(1, model.temporal_reach)
    try:
        for k in range(count):
            number = (2 * k + 1) * len(source) // (2 * count)
            start, stop = max(0, number - reach), min(len(source), number + reach + 1)
            frames = list(source.frames(start, stop))
            for frame in frames:
                level.measure(frame)
            clean = denoise_chunks(
                model,
                [frame.rgb for frame in frames],
                level.per_frame(),
                tiles=tiles,
                memory=memory,
                dtype=dtype,
                device=device,
                total=len(frames),
            )
            rgb = list(clean)[number - start]
            noisy = replace(frames[number - start], name=f"{number:05d}")
            writer.write(beside(noisy, rgb, properties))
            if progress is not None:
                progress(k + 1, count)
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return FileResult(folder, count, count, time.monotonic() - began, level.summary)


_NOTHING = torch.empty(0)


def _opened(
    input: str | os.PathLike[str] | VideoClip | PicturesClip, fps: float, salvage: bool
) -> VideoClip | PicturesClip:
    if isinstance(input, VideoClip | PicturesClip):
        return input
    return open_source(input, fps=fps, salvage=salvage)


def _run(
    source: VideoClip | PicturesClip,
    writer: VideoWriter | PictureWriter,
    level: NoiseLevel,
    denoised: Callable[[Iterator[Frame]], Iterator[Frame]],
) -> bool:
    """Move all frames to the writer, which is left open, or discarded on failure; True if Ctrl-C ended it."""
    room = int(_AHEAD_BYTES / (12 * source.properties.height * source.properties.width))
    room = min(max(room, 2), 32)

    def consume(item: Any) -> None:
        if isinstance(item, Frame):
            writer.write(item)
        else:
            writer.write_packet(item)  # type: ignore[union-attr]

    writing: Writing[Any] = Writing(consume, room)

    def read() -> Iterator[Frame]:
        for item in _items(source, writer.copied):
            if isinstance(item, Frame):
                level.measure(item)
                yield item
            else:
                writing.put(item)  # past the network, straight to the writer

    try:
        try:
            with Reading(read(), room) as reading:
                for frame in denoised(iter(reading)):
                    writing.put(frame)
        except KeyboardInterrupt:
            writing.close()
            return True
        writing.close()
        return False
    except BaseException:
        writing.abort()
        writer.discard()
        raise


def _items(source: VideoClip | PicturesClip, copied: tuple[int, ...]) -> Iterator[Frame | CopiedPacket]:
    if isinstance(source, VideoClip):
        return source.frames_and_packets(copied)
    return source.frames()


def doubled(properties: Properties) -> Properties:
    """Properties of two pictures side by side, as a player shows them."""
    if properties.orientation[0]:
        return replace(properties, height=2 * properties.height)
    return replace(properties, width=2 * properties.width)


def beside(frame: Frame, rgb: Tensor, properties: Properties) -> Frame:
    """``frame`` with its own pixels on the left and ``rgb`` on the right, as a player shows them."""
    transposed, mirrored, _ = properties.orientation
    axis = -2 if transposed else -1

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat((right, left) if mirrored else (left, right), axis)

    alpha = None if frame.alpha is None else pair(frame.alpha, frame.alpha)
    return replace(frame, rgb=pair(frame.rgb, rgb), alpha=alpha)


def partial_name(path: Path) -> Path:
    """The name of an unfinished result: ``clip.partial.mp4``, a folder ``clip.partial``."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def preview_folder(output: Path) -> Path:
    """The folder of a preview: ``clip.preview`` for ``clip.mp4``."""
    return output.with_name(f"{output.stem}.preview")


def source_notes(source: VideoClip | PicturesClip) -> list[str]:
    """What a person should know of a source before it is denoised."""
    notes: list[str] = []
    if source.properties.interlaced:
        notes.append(
            "the video is interlaced and is denoised as whole frames: deinterlace it first (ffmpeg -vf bwdif)"
        )
    return notes


def damage_notes(source: VideoClip | PicturesClip, frames: int) -> list[str]:
    """What was found wrong while a source was read, of which ``frames`` came out."""
    if not isinstance(source, VideoClip):
        return []
    notes = [f"{source.path}: {line}" for line in source.damage]
    if frames != len(source):
        notes.append(f"{source.path}: {frames} of {len(source)} frames could be decoded")
    return notes
