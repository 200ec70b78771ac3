"""Pairs: a clean and a noisy recording of the same scene, frame by frame, as one clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stan.data.clips import Clip, FrameClip
from stan.errors import DataError, nearest

RECORDED = "recorded"
"""The kind of noise that pairs have, where kinds are named."""


class PairedClip(Clip):
    """A clean sequence and the noisy recording of the same scene. Read as a `Clip` it is the clean one.

    Args:
        clean: the clean sequence, whose name the pair has.
        noisy: the noisy one, of the same size and length.

    Raises:
        DataError: sequences that differ in frames, size or the names of their pictures; names the files.
    """

    def __init__(self, clean: Clip, noisy: Clip) -> None:
        self.clean, self.noisy = clean, noisy
        if len(clean) != len(noisy):
            raise DataError(
                f"{_place(noisy)} has {len(noisy)} frames, but the clean {_place(clean)} has {len(clean)}: "
                "each noisy frame needs its clean one"
            )
        if isinstance(clean, FrameClip) and isinstance(noisy, FrameClip):
            for one, other in zip(clean.files, noisy.files):
                if one.stem != other.stem:
                    raise DataError(
                        f"noisy frame {other} stands where the clean frame is {one}: the pictures of a pair "
                        "have the same names"
                    )
        if clean.size != noisy.size:
            (height, width), (rows, columns) = clean.size, noisy.size
            raise DataError(
                f"{_first(noisy)} is {columns}x{rows}, but the clean {_first(clean)} is {width}x{height}: "
                "the recordings of a pair have one size"
            )
        files = [*clean.files, *noisy.files]
        super().__init__(clean.name, len(clean), clean.size, clean.fps, clean.root, files)

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        return self.clean._read(start, stop, rows, columns)


def halves_of(clip: Clip) -> list[Clip]:
    """The clean and the noisy sequence of a pair, or the clip itself if it is none."""
    return [clip.clean, clip.noisy] if isinstance(clip, PairedClip) else [clip]


def each_half(clip: Clip, change: Callable[[Clip], Clip]) -> Clip:
    """`change` applied to both sequences of a pair, or to a clip that is none."""
    if isinstance(clip, PairedClip):
        return PairedClip(change(clip.clean), change(clip.noisy))
    return change(clip)


def pair_up(clean: Sequence[Clip], noisy: Sequence[Clip], places: tuple[Path, Path]) -> list[PairedClip]:
    """Pairs of the sequences that have the same name; two single sequences are a pair whatever their names.

    Args:
        clean: clean sequences.
        noisy: noisy ones, in any order. They get names of their own, for the cache that both may share.
        places: where the clean and the noisy ones lie, for messages.

    Raises:
        DataError: a sequence without its other half, or halves that do not fit (see `PairedClip`).
    """
    root, other = places
    names = {clip.name for clip in clean}
    if _is_one(clean, root) and _is_one(noisy, other):
        found = {clean[0].name: noisy[0]}
    else:
        found = {clip.name: clip for clip in noisy}
    for name in names:
        if name not in found:
            hint = f"; {nearest(name, found)}" if len(found) > 1 else f", but {', '.join(found)}"
            raise DataError(f"the noisy recordings in {other} have no {name!r} to go with {root}{hint}")
    for name, clip in found.items():
        if name not in names:
            raise DataError(
                f"{_place(clip)} has no clean sequence {name!r} in {root}: leave it out, or list the sequences to "
                "use in a split list"
            )
    pairs = []
    for clip in clean:
        half = found[clip.name]
        half.name = f"{clip.name} (noisy)"
        pairs.append(PairedClip(clip, half))
    return pairs


def _is_one(clips: Sequence[Clip], root: Path) -> bool:
    """Whether a place is itself one sequence: a video file, or a folder of frames."""
    return root.is_file() or (
        len(clips) == 1 and isinstance(clips[0], FrameClip) and clips[0].files[0].parent == root
    )


def _place(clip: Clip) -> str:
    """The folder or file of a sequence."""
    files = clip.files
    if not files:
        return f"sequence {clip.name!r}"
    return str(files[0].parent if isinstance(clip, FrameClip) else files[0])


def _first(clip: Clip) -> str:
    return str(clip.files[0]) if clip.files else f"sequence {clip.name!r}"
