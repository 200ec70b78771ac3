"""Denoising a video file or a folder of pictures into another; reading, computing and writing overlap."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan.data.frame import Frame
from stan.data.video import OutputSettings, PicturesClip, VideoClip, beside, open_output, open_source
from stan.data.video.unfinished import destination, free_name
from stan.errors import StanError
from stan.inference.denoise import prepare
from stan.inference.enlarge import enlarged_frames, enlarged_source, scale_of
from stan.inference.levels import NoiseLevels, found_if_not_given
from stan.inference.options import DEFAULTS, Options
from stan.inference.overlap import Reading, Writing, uninterrupted
from stan.inference.passes import denoiser

if TYPE_CHECKING:
    from stan.data.video import PictureWriter, VideoWriter
    from stan.models import VideoDenoiser

    Source = VideoClip | PicturesClip
    Place = str | os.PathLike[str]

AS_THE_SOURCE = OutputSettings()
_AHEAD_BYTES = 144 * 2**20  # decoded frames that may wait in a channel: those of a chunk at 720p
_LEAD = 8  # frames before those of a preview, for the noise level and the scene cut to be those of the whole


@dataclass(frozen=True)
class Result:
    """What became of a file or stream.

    ``output``: where the result is, None if nothing was written or for a stream. ``frames`` of ``total``
    (None: not known) were written. ``sigma``: lowest, mean and highest noise level used, in 8-bit units, None
    for a blind model. ``interrupted``: by Ctrl-C, so that ``output`` is a partial result.
    """

    output: Path | None
    frames: int
    total: int | None
    seconds: float
    sigma: tuple[float, float, float] | None
    interrupted: bool = False


def denoise_file(
    model: VideoDenoiser,
    input: Place | Source,
    output: Place,
    options: Options = DEFAULTS,
    settings: OutputSettings = AS_THE_SOURCE,
) -> Result:
    """Denoise ``input`` into ``output``; frame times, colour, turn, pixel shape, sound and depth are kept.

    A network for super-resolution gets the frames enlarged, and the output is as much larger.

    Ctrl-C (KeyboardInterrupt) ends the work early: what was done is closed properly and named
    ``NAME.partial.EXT``, or ``NAME.partial-2.EXT`` and so on if there is such a file. After any other exception
    nothing is left behind; only where the finished result cannot take its name it stays, and the error says where.

    Args:
        model: the network.
        input: a video file, a folder of pictures, a picture, a glob pattern, or a source that `open_source`
            gave.
        output: see `stan.data.video.open_output`.
        options: how to denoise.
        settings: how to store the result.

    Raises:
        VideoError: an input that cannot be read or an output that cannot be written.
        StanError: a noise level that does not go with the model.
    """
    began = time.monotonic()
    source, options, levels = _begin(model, input, options)
    scale = scale_of(model)
    target = enlarged_source(source, scale)
    writer = open_output(output, target, settings)
    final = destination(writer.path)
    for line in writer.notes:
        options.tell(line)
    network = denoiser(model, options, len(source), ahead=True)
    room = int(_AHEAD_BYTES / (12 * target.properties.height * target.properties.width))
    room = min(max(room, 2), 32)
    interrupted = False
    writing: Writing[Any] = Writing(writer.write, room)
    with _discarding(writer), writing:

        def read() -> Iterator[Frame]:
            for item in source.frames_and_packets(writer.copied):
                if isinstance(item, Frame):
                    yield item
                else:
                    writing.put(item)  # past the network, straight to the writer

        try:
            ready = enlarged_frames(prepare(read(), levels, options), scale)
            with Reading(ready, room) as reading:
                for frame in network(reading):
                    writing.put(_to_write(frame, source, settings))
        except KeyboardInterrupt:
            interrupted = True
    path: Path | None = writer.path
    if not interrupted:
        for line in source.damage_found(writer.frames):
            options.tell(line)
        uninterrupted(lambda: writer.finish(final))
    elif writer.frames:
        path = free_name(final, "partial")  # nothing is replaced by a part
        uninterrupted(lambda: writer.finish(path, complete=False))
    else:
        path = None
        writer.discard()
    return Result(path, writer.frames, len(source), time.monotonic() - began, levels.summary, interrupted)


def preview_file(
    model: VideoDenoiser,
    input: Place | Source,
    output: Place,
    count: int,
    options: Options = DEFAULTS,
    settings: OutputSettings = AS_THE_SOURCE,
) -> Result:
    """Denoise ``count`` frames spread over ``input``, each amid its neighbours, and write noisy and denoised
    side by side.

    The PNG pictures go into the folder ``NAME.preview`` beside ``output``, named by frame number. Arguments as
    for `denoise_file`; of ``settings`` only ``overwrite`` has an effect, which is told of the others.
    """
    began = time.monotonic()
    if count < 1:
        raise StanError(f"preview of {count} frames: ask for at least 1")
    source, options, levels = _begin(model, input, options)
    unused = [
        f.name.replace("_", " ")
        for f in fields(settings)
        if f.name not in ("overwrite", "compare")
        and getattr(settings, f.name) != getattr(AS_THE_SOURCE, f.name)
    ]
    if unused:
        options.tell(f"the preview is PNG pictures: it does not show {', '.join(unused)} of the result")
    settings = OutputSettings(overwrite=settings.overwrite, compare=True)
    folder = preview_folder(Path(output))
    scale = scale_of(model)
    writer = open_output(f"{folder}/", enlarged_source(source, scale), settings)
    count = min(count, len(source))
    reach = max(1, model.reach)
    with _discarding(writer):
        for k in range(count):
            number = (2 * k + 1) * len(source) // (2 * count)
            first, stop = max(0, number - reach), min(len(source), number + reach + 1)
            lead = max(0, first - _LEAD)
            ready = enlarged_frames(prepare(source.frames(lead, stop), levels, options), scale)
            window = list(ready)[first - lead :]
            network = denoiser(model, replace(options, progress=None), len(window))
            frame = list(network(window))[number - first]
            writer.write(_to_write(replace(frame, name=f"{number:05d}"), source, settings))
            if options.progress is not None:
                options.progress(k + 1, count)
        writer.finish()
    return Result(folder, count, count, time.monotonic() - began, levels.summary)


def _begin(
    model: VideoDenoiser, input: Place | Source, options: Options
) -> tuple[Source, Options, NoiseLevels]:
    """The source opened and the noise level settled, with what a person should know of them told."""
    source = input if isinstance(input, VideoClip | PicturesClip) else open_source(input)
    if said := source.properties.interlacing:
        options.tell(said)
    options = found_if_not_given(model, options)
    return source, options, NoiseLevels(model, options)


def _to_write(frame: Frame, source: Source, settings: OutputSettings) -> Frame:
    """What of a denoised frame goes to the writer."""
    return beside(frame, source.properties) if settings.compare else replace(frame, noisy=None)


@contextmanager
def _discarding(writer: VideoWriter | PictureWriter) -> Iterator[None]:
    """Whatever fails, nothing of the output stays behind."""
    try:
        yield
    except BaseException:
        writer.discard()
        raise


def preview_folder(output: Path) -> Path:
    """The folder of a preview: ``clip.preview`` for ``clip.mp4``."""
    output = output if output.name not in ("", "..") else output.resolve()
    return output.parent / f"{output.stem}.preview"
