"""Draw docs/images/operator.png: one query of the Shifted Non-Local Search, on frames whose true motion is known.

python scripts/operator_picture.py [FILE]

Everything in the picture is computed: the clip is one of `stan.data.synthetic` (photographs that scikit-image ships,
under a moving camera), its noise has sigma 10, the flow is what `dis` estimates on the noisy frames, and window,
scores, matches and weights are what `stan.ops` returns for them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import stan.flow
from stan import ops
from stan.data.noise import NumpyRandom
from stan.data.noise import build as build_noise
from stan.data.synthetic import synthetic_clips

TARGET = Path(__file__).resolve().parents[1] / "docs/images/operator.png"
SIGMA, WINDOW, PATCH, K = 10, 9, 7, 6
SEED, SPEED = 6, 1.7  # of the clip
FRAME, FIRST = 4, 3  # the query's frame; the first of three that are shown
ZOOM, SIDE = 24, 23  # size of a pixel in the enlarged views, and how many are shown (odd)

PAPER, INK, FAINT = (255, 255, 255), (28, 32, 44), (110, 117, 133)
QUERY, FLOW, SEARCH, TRUTH = (255, 214, 10), (239, 71, 111), (17, 138, 178), (6, 190, 130)
WIDTH = SIDE * ZOOM  # of a column
GAP, MARGIN = 48, 40


class Found(NamedTuple):
    """One query and all that the search made of it; positions are (x, y) in pixels."""

    noisy: torch.Tensor  # (3, 3, H, W), frames t-1, t, t+1
    query: tuple[int, int]
    anchors: list[np.ndarray]  # where the flow points, in each of the three frames
    truths: list[np.ndarray]
    corners: list[np.ndarray]  # first candidate of each window
    scores: list[np.ndarray]  # (WINDOW, WINDOW) each
    matches: list[tuple[int, np.ndarray, float]]  # frame 0, 1, 2 of the picture, position, weight; best first


def search() -> Found:
    """Find a query whose flow is wrong by some pixels, and search for it."""
    clip = next(iter(synthetic_clips("val", 1, frames=8, size=(200, 300), seed=SEED, speed=SPEED)))
    clean = clip.frames.float() / 255
    noisy = build_noise("gaussian")(clean, SIGMA, NumpyRandom(0, "picture"))
    forward, backward = stan.flow.build("dis", threads=1)(noisy[None])
    shown = slice(FIRST, FIRST + 3)
    video = noisy[None, shown]
    flow = ops.search_flow(forward[:, shown], backward[:, shown], temporal_window=1)
    settings = {"window": WINDOW, "temporal_window": 1, "patch": PATCH}
    every = ops.shifted_nls(video, video, flow, topk=1, select="each", **settings)

    # frame t searches t, t+1, t-1: slot 1 is the frame after, slot 2 the one before
    true = [clip.forward[FRAME], clip.backward[FRAME]]
    error = torch.stack([(flow[0, 1, s] - true[s]).norm(dim=0) for s in (0, 1)])
    left = torch.stack(
        [(every.offsets[0, 0, 1, :, :, s + 1].movedim(-1, 0) - true[s]).norm(dim=0) for s in (0, 1)]
    )
    grey = clean[FRAME].mean(0).numpy()
    texture = torch.from_numpy(cv2.cornerMinEigenVal(grey, 7))  # a corner can be told from what is around it
    far = torch.stack([t.norm(dim=0) for t in true])
    good = (error > 1.5).all(0) & (error < 3.6).all(0) & (left < 0.71).all(0) & (far > 3).all(0)
    found = ops.shifted_nls(video, video, flow, topk=K, **settings)
    for neighbour in (0, 2):  # both neighbours are among the K best
        good &= (found.frames[0, 0, 1] == neighbour).sum(-1) >= 2
    good &= ~clip.occluded_forward[FRAME] & ~clip.occluded_backward[FRAME]
    edge = SIDE // 2 + 8
    good[:edge] = good[-edge:] = False
    good[:, :edge] = good[:, -edge:] = False
    if not good.any():
        raise SystemExit("no query of this clip shows what the picture is for: choose another seed")
    best = (texture / (1 + left.sum(0))).masked_fill(~good, -torch.inf).argmax()
    y, x = divmod(int(best), good.shape[1])

    weights = ops.weights(found.scores, scale=1.5 / (3 * PATCH**2 * 2 * (SIGMA / 255) ** 2))
    whole = ops.shifted_nls(video, video, flow, topk=WINDOW**2, select="each", **settings)
    here = (0, 0, 1, y, x)
    own = np.array([x, y], float)
    anchors = [own + flow[0, 1, 1, :, y, x].numpy(), own, own + flow[0, 1, 0, :, y, x].numpy()]
    truths = [own + true[1][:, y, x].numpy(), own, own + true[0][:, y, x].numpy()]
    scores, corners = [], []
    for frame in range(3):
        of_frame = whole.frames[here] == frame
        places = whole.offsets[here][of_frame].numpy() + own
        corner = places.min(0)
        grid = np.empty((WINDOW, WINDOW))
        column, row = (places - corner).round().astype(int).T
        grid[row, column] = whole.scores[here][of_frame].numpy()
        scores.append(grid)
        corners.append(corner)
    matches = [
        (int(f), o.numpy() + own, float(w))
        for f, o, w in zip(found.frames[here], found.offsets[here], weights[here])
    ]
    print(
        f"query ({x}, {y}); the flow is wrong by {error[1, y, x]:.1f} and {error[0, y, x]:.1f} pixels, ",
        end="",
    )
    print(f"the best match of each frame by {left[1, y, x]:.1f} and {left[0, y, x]:.1f}")
    return Found(video[0], (x, y), anchors, truths, corners, scores, matches)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same on every machine."""
    return ImageFont.load_default(size)


def rgb(frame: torch.Tensor) -> np.ndarray:
    """`(3, H, W)` in about [0, 1] as uint8 `(H, W, 3)`."""
    return (frame.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()


class Sheet:
    """The picture: three columns, one a frame; frames, pixels, scores below one another."""

    def __init__(self, found: Found) -> None:
        self.found = found
        h, w = found.noisy.shape[2:]
        self.scale = WIDTH / w
        self.rows = [118]  # tops of frames, pixels and scores
        self.rows.append(self.rows[0] + round(h * self.scale) + 74)
        self.rows.append(self.rows[1] + WIDTH + 74)
        height = self.rows[2] + 18 * 2 * WINDOW + 150
        self.image = Image.new("RGB", (2 * MARGIN + 3 * WIDTH + 2 * GAP, height), PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def left(self, frame: int) -> int:
        """The left edge of a column."""
        return MARGIN + frame * (WIDTH + GAP)

    def text(
        self, x: float, y: float, text: str, size: int = 26, fill: tuple = INK, anchor: str = "la"
    ) -> None:
        """Write a line."""
        self.draw.text((x, y), text, font=font(size), fill=fill, anchor=anchor)

    def paste(self, picture: np.ndarray, x: int, y: int, width: int, height: int, smooth: bool) -> None:
        """Put pixels there, enlarged."""
        way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.image.paste(Image.fromarray(picture).resize((width, height), way), (x, y))

    def ring(self, x: float, y: float, radius: float, fill: tuple, width: int = 5) -> None:
        """A circle with a dark rim, seen on every ground."""
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), outline=INK, width=width + 4)
        self.draw.ellipse(box, outline=fill, width=width)

    def cross(self, x: float, y: float, radius: float, fill: tuple) -> None:
        """A +, with a dark rim."""
        for colour, width in ((INK, 9), (fill, 5)):
            self.draw.line((x - radius, y, x + radius, y), fill=colour, width=width)
            self.draw.line((x, y - radius, x, y + radius), fill=colour, width=width)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], fill: tuple) -> None:
        """A line with a head."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(np.linalg.norm(b - a), 1e-6)
        across = np.array([-along[1], along[0]])
        for colour, extra in ((INK, 4), (fill, 0)):
            self.draw.line((*a, *(b - along * 12)), fill=colour, width=5 + extra)
            head = [
                b + along * extra,
                b - along * 20 + across * (10 + extra),
                b - along * 20 - across * (10 + extra),
            ]
            self.draw.polygon([tuple(p) for p in head], fill=colour)

    def frames(self) -> None:
        """First row: the three frames."""
        top = self.rows[0]
        names = ("frame t-1", "frame t", "frame t+1")
        x, y = self.found.query
        half = SIDE / 2
        for n in range(3):
            left = self.left(n)
            frame = rgb(self.found.noisy[n])
            self.paste(frame, left, top, WIDTH, round(frame.shape[0] * self.scale), smooth=True)
            self.text(left, top - 38, names[n], 28)
            cx, cy = np.array(self.found.anchors[n]).round() + 0.5
            box = [left + (cx - half) * self.scale, top + (cy - half) * self.scale,
                   left + (cx + half) * self.scale, top + (cy + half) * self.scale]  # fmt: skip
            self.draw.rectangle(box, outline=(*INK, 255), width=7)
            self.draw.rectangle(
                [box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2], outline=(*PAPER, 255), width=3
            )
            if n == 1:
                self.ring(left + (x + 0.5) * self.scale, top + (y + 0.5) * self.scale, 8, QUERY)
            for end, side in (
                (box[0], left),
                (box[2], left + WIDTH),
            ):  # the enlarged view below belongs to the box
                self.draw.line((end, box[3], side, self.rows[1]), fill=(*FAINT, 120), width=2)

    def pixels(self) -> None:
        """Second row: what is around where the flow points, pixel by pixel."""
        top = self.rows[1]
        for n in range(3):
            left = self.left(n)
            corner = np.array(self.found.anchors[n]).round().astype(int) - SIDE // 2
            part = rgb(self.found.noisy[n])[corner[1] : corner[1] + SIDE, corner[0] : corner[0] + SIDE]
            self.paste(part, left, top, WIDTH, WIDTH, smooth=False)

            def place(p: np.ndarray, left: int = left, corner: np.ndarray = corner) -> tuple[float, float]:
                x, y = (np.array(p) - corner + 0.5) * ZOOM
                return left + x, top + y

            first, last = place(self.found.corners[n] - 0.5), place(self.found.corners[n] + WINDOW - 0.5)
            self.draw.rectangle((first[0] - 4, first[1] - 4, last[0] + 4, last[1] + 4), outline=INK, width=11)
            self.draw.rectangle((*first, *last), outline=SEARCH, width=5)
            if n == 1:
                half = PATCH / 2
                a, b = place(np.array(self.found.query) - half), place(np.array(self.found.query) + half)
                self.draw.rectangle((*a, *b), outline=QUERY, width=5)
            else:
                own = place(np.array(self.found.query))
                self.draw.ellipse((own[0] - 12, own[1] - 12, own[0] + 12, own[1] + 12), outline=INK, width=8)
                self.draw.ellipse(
                    (own[0] - 10, own[1] - 10, own[0] + 10, own[1] + 10), outline=QUERY, width=4
                )
                self.arrow(own, place(self.found.anchors[n]), FLOW)
                self.cross(*place(self.found.truths[n]), 26, TRUTH)
            for rank, (frame, position, _) in reversed(list(enumerate(self.found.matches, 1))):
                if frame == n:
                    self.badge(*place(position), rank)
            self.draw.rectangle((left, top, left + WIDTH - 1, top + WIDTH - 1), outline=INK, width=2)

    def badge(self, x: float, y: float, rank: int) -> None:
        """A match with its place among the K best."""
        self.draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=(*SEARCH, 235), outline=PAPER, width=2)
        self.text(x, y, str(rank), 20, PAPER, "mm")

    def scores(self) -> None:
        """Third row: the score of every candidate, and the weights of the matches."""
        top, cell = self.rows[2], 36
        low = min(grid.min() for grid in self.found.scores)
        high = max(np.sort(grid.ravel())[-2] for grid in self.found.scores)
        for n, grid in enumerate(self.found.scores):
            left = self.left(n)
            shade = (np.clip((grid - low) / (high - low), 0, 1) ** 2 * 255).round().astype(np.uint8)
            coloured = cv2.applyColorMap(shade, cv2.COLORMAP_VIRIDIS)[..., ::-1]
            self.paste(np.ascontiguousarray(coloured), left, top, cell * WINDOW, cell * WINDOW, smooth=False)
            self.draw.rectangle(
                (left, top, left + cell * WINDOW, top + cell * WINDOW), outline=SEARCH, width=5
            )
            column = left + cell * WINDOW + 26
            mine = [(r, p, w) for r, (f, p, w) in enumerate(self.found.matches, 1) if f == n]
            for rank, position, _ in mine:
                x, y = (position - self.found.corners[n] + 0.5) * cell
                self.badge(left + x, top + y, rank)
            self.text(column, top, "weight", 22, FAINT)
            for line, (rank, _, weight) in enumerate(mine):
                y = top + 56 + line * 40
                self.badge(column + 13, y, rank)
                self.text(column + 40, y, f"{weight:.2f}", 24, INK, "lm")

    def legend(self) -> None:
        """What the signs mean, above and below."""
        title = "One query of the Shifted Non-Local Search:"
        numbers = f"{WINDOW} x {WINDOW} candidates in each of 3 frames, K = {K} matches"
        self.text(MARGIN, 28, f"{title} {numbers}", 30)
        for row, words in (
            (1, "the same, enlarged around where the flow points"),
            (
                2,
                "score of every candidate: the brighter, the more alike the patches; the K best of all frames are kept",
            ),
        ):
            y = self.rows[row] - 44
            end = MARGIN + self.draw.textlength(words, font=font(26))
            self.draw.rectangle((MARGIN, y, end + 12, y + 32), fill=PAPER)
            self.text(MARGIN, y, words, 26, FAINT)
        y = self.image.height - 56
        x = MARGIN + 14
        signs = (
            (lambda at: self.ring(at, y, 10, QUERY, 4), "the query's position"),
            (lambda at: self.arrow((at - 20, y), (at + 16, y), FLOW), "estimated flow"),
(lambda at: self.draw.rectangle((at - 15, y - 15, at + 15, y + 15), outline=SEARCH, width=5),
             "searched window"),
            (lambda at: self.badge(at, y, 1), "match, best first"),
            (lambda at: self.cross(at, y, 12, TRUTH), "where it really is"),
        )  # fmt: skip
        self.draw.rectangle((MARGIN, y - 44, self.image.width - MARGIN, y - 42), fill=(*FAINT, 90))
        for sign, words in signs:
            sign(x + 8)
            self.text(x + 38, y, words, 25, INK, "lm")
            x += 38 + round(self.draw.textlength(words, font=font(25))) + 56


def main() -> None:
    """Draw it."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    torch.set_num_threads(1)
    sheet = Sheet(search())
    sheet.frames()
    sheet.pixels()
    sheet.scores()
    sheet.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    small = sheet.image.resize(
        (sheet.image.width * 4 // 5, sheet.image.height * 4 // 5), Image.Resampling.LANCZOS
    )
    small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG).save(
        target, optimize=True
    )
    print(f"{target}: {small.width}x{small.height}, {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
