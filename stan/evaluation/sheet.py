"""The picture sheet: noisy, denoised, clean and error side by side, one row a sequence, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stan.evaluation.measure import levels
from stan.evaluation.protocols import to_float
from stan.files import replacing
from stan.metrics import psnr

Picture = NDArray[np.uint8]

ERROR_RANGE = 40.0
"""Error that is drawn brightest, 8-bit units."""
_GAP = 8
_HEAD = 26
_INK, _SOFT, _PAPER = (32, 30, 28), (120, 116, 110), (250, 249, 247)


@dataclass(frozen=True)
class SheetRow:
    """One row of the sheet.

    Attributes:
        label: what it shows, such as ``"dog, sigma 30"``.
        noisy: (3, H, W), float in about [0, 1] or uint8, as are the others.
        output: the denoised frame.
        clean: the true frame.
    """

    label: str
    noisy: Tensor
    output: Tensor
    clean: Tensor


def picture_sheet(rows: Sequence[SheetRow]) -> Picture:
    """Draw a sheet: for each row the noisy frame, the denoised one, the clean one and the error, with PSNR.

    The error is the root mean square over channels of denoised minus clean, drawn from black (none) over purple and
    orange to white (40 grey levels and more). There is at least one row; the sheet is (height, width, 3) uint8 RGB.
    """
    if not rows:
        raise ValueError("a picture sheet needs at least one row")
    strips = [_row(row) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_pad(strip, width) for strip in strips])


def write_sheet(path: str | Path, rows: Sequence[SheetRow]) -> Path:
    """Write a sheet as a PNG file; it gets its name only when it is complete."""
    path = Path(path)
    done, data = cv2.imencode(".png", picture_sheet(rows)[..., ::-1])
    if not done:
        raise ValueError(f"picture sheet {path} could not be coded")
    with replacing(path) as file:
        file.write(data.tobytes())
    return path


def error_picture(clean: Picture, output: Picture, brightest: float = ERROR_RANGE) -> Picture:
    """The error of a frame in false colours: (H, W, 3) uint8 RGB of two such pictures."""
    difference = output.astype(np.float32) - clean.astype(np.float32)
    size = np.sqrt((difference**2).mean(-1))
    scaled = (size / brightest).clip(0, 1) * 255
    coloured = cv2.applyColorMap(scaled.round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[..., ::-1])


def _row(row: SheetRow) -> Picture:
    clean, noisy, output = (_picture(frame) for frame in (row.clean, row.noisy, row.output))
    panels = [
        ("noisy", f"{_psnr(row.clean, row.noisy):.2f} dB", noisy),
        ("denoised", f"{_psnr(row.clean, row.output):.2f} dB", output),
        ("clean", "", clean),
        ("error", f"0 to {ERROR_RANGE:g} levels", error_picture(clean, output)),
    ]
    columns = []
    for name, figure, picture in panels:
        body = _pad(picture, max(150, picture.shape[1]))  # room for the words above a small picture
        head = _blank(_HEAD, body.shape[1])
        _write(head, name, 0, _INK)
        _write(head, figure, -1, _SOFT)
        columns += [np.concatenate([head, body]), _blank(_HEAD + len(body), _GAP)]
    strip = np.concatenate(columns[:-1], 1)
    title = _blank(_HEAD + 4, strip.shape[1])
    _write(title, row.label, 0, _INK, weight=2)
    framed = _blank(len(title) + len(strip) + 2 * _GAP, strip.shape[1] + 2 * _GAP)
    framed[_GAP:-_GAP, _GAP:-_GAP] = np.concatenate([title, strip])
    return framed


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _write(canvas: Picture, text: str, place: int, colour: tuple[int, int, int], weight: int = 1) -> None:
    """Write on a strip, from its left edge (0) or up to its right edge (-1)."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.48
    (width, _), _ = cv2.getTextSize(text, font, size, weight)
    left = 1 if place == 0 else canvas.shape[1] - width - 1
    cv2.putText(canvas, text, (left, _HEAD - 9), font, size, colour, weight, cv2.LINE_AA)


def _pad(picture: Picture, width: int) -> Picture:
    return np.concatenate([picture, _blank(len(picture), width - picture.shape[1])], 1)


def _picture(frame: Tensor) -> Picture:
    return np.ascontiguousarray(levels(frame.detach().cpu()).permute(1, 2, 0).numpy())


def _psnr(clean: Tensor, output: Tensor) -> float:
    first, second = (to_float(x) if x.dtype == torch.uint8 else x.float() for x in (clean, output))
    return float(psnr(first[None].cpu(), second[None].cpu()))
