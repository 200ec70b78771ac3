"""``evaluate``: all methods on all sequences at all noise levels, in pieces that survive a kill and can be shared."""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from stan.config import Config, to_yaml
from stan.data import Clip
from stan.data.pairs import PairedClip
from stan.evaluation import measure, protocols, provenance
from stan.evaluation.launch import Helpers
from stan.evaluation.methods import Alone, Method, Noisy
from stan.evaluation.notes import notes_of
from stan.evaluation.parts import Parts
from stan.evaluation.plan import Plan, Task, make_plan
from stan.evaluation.progress import Board
from stan.evaluation.report import write_results
from stan.evaluation.results import Results
from stan.metrics import METRICS


def evaluate(config: Config, *, console: Console | None = None) -> Results:
    """Evaluate what ``config.checkpoint`` names, and write the results to ``config.output``.

    Finished pieces in ``OUTPUT/parts`` that were made with the same checkpoint, settings and program are kept, so the
    same call goes on where a killed one stopped. With several devices, or started several times by torchrun or by hand
    with one output folder, the processes share the pieces; each returns the whole result, and the first writes it.

    Args:
        config: the configuration; `checkpoint`, `output`, `data`, `task`, `noise.kind`, `evaluation` and `trainer`
            are used.
        console: where progress and notes go; None: standard error.

    Raises:
        StanError: input that cannot be used.
    """
    console = console or Console(stderr=True)
    plan = make_plan(config)
    first = plan.ranks.rank == 0
    if first:
        for note in notes_of(plan):
            console.print(f"[yellow]note[/yellow] {note}", highlight=False)
    parts = Parts(plan.output / "parts")
    with _settled(plan), Helpers(config, plan.device) as helpers, Board(plan, console, shown=first) as board:
        work = _Work(plan, parts, board)
        work.run()
        board.finish(helpers.failures())
    results = work.collect()
    if first:
        write_results(results, plan.output, {"evaluate.yaml": to_yaml(config)})
        _sweep(parts.folder)
    return results


class _Work:
    """The pieces of one evaluation, as this process sees them."""

    def __init__(self, plan: Plan, parts: Parts, board: Board) -> None:
        self.plan = plan
        self.parts = parts
        self.board = board
        self._clean: tuple[str, Tensor] | None = None
        self._noisy: tuple[tuple[str, float], Tensor] | None = None
        self._tiles: dict[tuple[str, tuple[int, int], int], dict[str, Any]] = {}
        self._warm: set[tuple[str, tuple[int, int]]] = set()

    def run(self) -> None:
        """Do what is not done yet, until everything is there."""
        tasks = self.plan.tasks
        start = len(tasks) * self.plan.ranks.rank // max(self.plan.ranks.world, 1)
        waiting = [task for task in (*tasks[start:], *tasks[:start]) if not self._done(task, earlier=True)]
        for task in waiting[:]:
            if self._attempt(task, wait=False):
                waiting.remove(task)
        for task in waiting:  # in other hands: they finish it, or die and leave it to us
            self._attempt(task, wait=True)

    def collect(self) -> Results:
        """The results, from the finished pieces."""
        records: dict[tuple[str, str, float], dict[str, Any]] = {}
        pieces: dict[tuple[str, str, float], Path] = {}
        for task in self.plan.tasks:
            path = self.path(task)
            record = self.parts.read(path)
            if record is None:
                raise RuntimeError(f"{path} was removed while the evaluation was running")
            at = (task.method.name, task.clip.name, task.sigma)
            records[at], pieces[at] = record, path
        of_noisy = [metric.name for metric in METRICS.values() if metric.of == "noisy"]
        of_noisy += ["psnr_noisy_frames", "clean_sha256", "noisy_sha256"]
        rows, shown = [], {}
        for sigma, method, clip in itertools.product(self.plan.sigmas, self.plan.methods, self.plan.clips):
            at = (method.name, clip.name, sigma)
            noisy = records[Noisy.name, clip.name, sigma]
            row = {**records[at], **{name: noisy[name] for name in of_noisy}}
            alone = records.get((Alone(method).name, clip.name, sigma))
            if alone is not None:
                row["temporal_gain"] = row["psnr"] - alone["psnr"]
            rows.append(row)
            shown[at] = pieces[at]
        methods = [
            {"name": m.name, "kind": m.kind, "checkpoint": m.word} | {**m.describe(), "name": m.name}
            for m in self.plan.methods
        ]
        notes = [*notes_of(self.plan), *_messages(rows)]
        return Results(self.plan.settings(), methods, rows, notes, shown, self.parts)

    def path(self, task: Task) -> Path:
        """Where a task's record is, or will be."""
        key = self.plan.key(task, self.tiles(task.method, task.clip)["tiles"])
        return self.parts.path(task.method.name, task.clip.name, task.sigma, key)

    def tiles(self, method: Method, clip: Clip) -> dict[str, Any]:
        """How a method cuts clips of this size, decided once, by the first process that needs it: `tiles`, as
        `Method.prepare` gives them, and whether they are `short` of memory."""
        if isinstance(method, Alone):
            return self.tiles(method.method, clip)
        size, frames = clip.size, self.plan.frames(clip)
        at = (method.name, size, frames)
        if method.kind != "network":
            self._tiles[at] = {"tiles": method.prepare(size, frames), "short": False}
        elif at not in self._tiles:

            def decide() -> dict[str, Any]:
                tiles = method.prepare(size, frames)
                return {"tiles": tiles, "short": method.short_of_memory(size, frames, tiles)}

            options, source = self.plan.config.evaluation, provenance.code()["source"]
            key = {"method": method.describe(), "size": size, "frames": frames, "source": source}
            key |= {"tiles": options.tiles, "memory": options.memory}
            self._tiles[at] = self.parts.once(f"tiles-{method.name}-{size[1]}x{size[0]}", key, decide)
        return self._tiles[at]

    def _done(self, task: Task, *, earlier: bool = False) -> bool:
        if self.parts.read(self.path(task)) is None:
            return False
        self.board.found(task, earlier=earlier)
        return True

    def _attempt(self, task: Task, *, wait: bool) -> bool:
        """Do a task unless another process has it; True once it is done, by whomever."""
        path = self.path(task)
        with self.parts.claim(path, wait=wait) as got:
            if not got:
                return False
            if not self._done(task):
                self.board.working(task)
                record, pictures = self._compute(task)
                self.parts.write(path, record, pictures)
                self.board.finished(task, record)
        return True

    def _compute(self, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
        """One method on one sequence at one noise level: the record of its figures, and pictures."""
        plan, method, clip, sigma = self.plan, task.method, task.clip, task.sigma
        clean, noisy = self._video(clip, sigma)
        cut = self.tiles(method, clip)
        tiles = cut["tiles"]
        self._warm_up(method, noisy, sigma, tiles)
        with _heard() as messages, measure.costs(plan.device) as cost:
            output = method(noisy, sigma, tiles, self.board.denoising)
        if not all(bool(torch.isfinite(frame).all()) for frame in output):
            messages.append(
                f"{method.name} gave values that are not finite on {clip.name} at sigma {sigma:g}"
            )
        if cut["short"]:
            messages.append(
                "its tiles follow from the memory that was free, and with more of it figures may differ by about "
                "0.01 dB; evaluation.tiles fixes them"
            )
        of = ("output", "noisy") if isinstance(method, Noisy) else ("output",)
        metrics = [metric for metric in METRICS.values() if metric.of in of]
        found = measure.figures(clean, output, metrics, plan.config.evaluation.border)
        record: dict[str, Any] = {
            "method": method.name,
            "sequence": clip.name,
            "sigma": sigma,
            "frames": len(clean),
            "height": clean.shape[-2],
            "width": clean.shape[-1],
            **found,
            "seconds_per_frame": cost.seconds / len(clean),
            "memory_mib": cost.memory / 2**20,
            "tiles": tiles,
            "device": provenance.device_name(plan.device),
            "messages": messages,
        }
        if isinstance(method, Noisy):
            record["psnr_noisy_frames"] = found["psnr_frames"]
            record["clean_sha256"] = protocols.digest(clean)
            record["noisy_sha256"] = protocols.digest(noisy)
        return record, measure.pictures(clean, noisy, output)

    def _video(self, clip: Clip, sigma: float) -> tuple[Tensor, Tensor]:
        """The clean and the noisy frames; the last ones are kept for the next method."""
        if self._clean is None or self._clean[0] != clip.name:
            self._noisy = self._clean = None
            self._clean = (clip.name, clip.read(0, self.plan.frames(clip)))
        clean = self._clean[1]
        if self._noisy is None or self._noisy[0] != (clip.name, sigma):
            self._noisy = None
            plan = self.plan
            if isinstance(clip, PairedClip):
                noisy = protocols.to_float(clip.noisy.read(0, len(clean)))
            else:
                noisy = protocols.worsen(
                    clean, plan.degradation, plan.noise, sigma, sequence=clip.name, seed=plan.seed
                )
            self._noisy = ((clip.name, sigma), noisy)
        return clean, self._noisy[1]

    def _warm_up(self, method: Method, noisy: Tensor, sigma: float, tiles: dict[str, Any]) -> None:
        """Run a GPU's kernels once before they are timed."""
        at = (method.name, (noisy.shape[-2], noisy.shape[-1]))
        if self.plan.device.type != "cpu" and method.kind == "network" and at not in self._warm:
            method(noisy[: max(4, tiles.get("frames", 4))], sigma, tiles, lambda part: None)
            self._warm.add(at)


@contextmanager
def _settled(plan: Plan) -> Iterator[None]:
    """Full float32 in convolutions while the block runs, so that a GPU's figures are those of the CPU."""
    before = torch.backends.cudnn.allow_tf32
    if plan.config.trainer.precision == "32-true" and plan.device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collects warnings of inference (smaller tiles), to be kept beside the figure, not printed into the bar."""
    lines: list[str] = []
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("stan.inference")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # levels outside the training range are in the notes already
            yield lines
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


def _messages(rows: list[dict[str, Any]]) -> list[str]:
    """What was said while computing, each once, with the sequences it was said of."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for line in row["messages"]:
            said.setdefault(f"{row['method']}: {line}", []).append(row["sequence"])
    return [f"{line} ({', '.join(dict.fromkeys(names))})" for line, names in said.items()]


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: half-written files too old to be in use, and locks of finished pieces."""
    for path in [*folder.rglob(".*.part"), *folder.rglob("*.lock")]:
        finished = path.suffix == ".lock" and path.with_suffix(".json").is_file()
        with suppress(OSError):
            if finished or (path.suffix == ".part" and time.time() - path.stat().st_mtime > 3600):
                path.unlink()
