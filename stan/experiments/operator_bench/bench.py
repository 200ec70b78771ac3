"""One benchmark run: probe each method's memory, check that it finds our matches, then time all in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from stan.experiments.machine import describe_machine
from stan.experiments.operator_bench.cases import Case
from stan.experiments.operator_bench.competitors import Found
from stan.experiments.operator_bench.memory import Prober
from stan.experiments.operator_bench.methods import METHODS, PASSES, agreement, call
from stan.experiments.operator_bench.timing import Ceilings, alternate, measure_ceilings


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: "cpu" or "cuda".
        methods: names out of `METHODS`; the first that runs is what the others are compared with.
        seconds: time spent on each method, case and pass.
        limit: a call that takes longer than this many seconds is reported as such and not repeated.
        memory: bytes a method may take on the CPU; None is 60 % of what is free now.
    """

    device: str = "cpu"
    methods: tuple[str, ...] = tuple(METHODS)
    seconds: float = 3.0
    limit: float = 60.0
    memory: int | None = None


@dataclass
class Measurement:
    """One method on one case and pass. `problem` says why there is no time; the rest is None then."""

    method: str
    which: str
    milliseconds: float | None = None
    runs: int = 0
    extra_bytes: int | None = None
    ceiling_fraction: float | None = None
    slower: float | None = None
    score_error: float | None = None
    same_matches: float | None = None
    problem: str | None = None


@dataclass
class Row:
    """All measurements of one case."""

    case: Case
    measurements: list[Measurement] = field(default_factory=list)

    def of(self, method: str, which: str) -> Measurement | None:
        """The measurement of a method in a pass, if it was asked for."""
        return next((m for m in self.measurements if m.method == method and m.which == which), None)


@dataclass
class Report:
    """A whole run: where and when, the machine's ceilings, and a row a case."""

    machine: dict[str, Any]
    ceilings: Ceilings
    settings: Settings
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": 1,
            "machine": self.machine,
            "ceilings": asdict(self.ceilings),
            "settings": asdict(self.settings),
            "rows": [
                {
                    "case": asdict(row.case),
                    "queries": row.case.queries,
                    "score_volume_bytes": row.case.volume_bytes(),
                    "measurements": [asdict(m) for m in row.measurements],
                }
                for row in self.rows
            ],
        }


def run_bench(cases: list[Case], settings: Settings, on_row: Callable[[Row], None] | None = None) -> Report:
    """Measure every case; `on_row` is called as each is done."""
    report = Report(describe_machine(settings.device), measure_ceilings(settings.device), settings, [])
    prober = Prober(_memory(settings), settings.limit, torch.get_num_threads())
    try:
        for case in cases:
            row = _measure_case(case, settings, report.ceilings, prober)
            report.rows.append(row)
            if on_row is not None:
                on_row(row)
    finally:
        prober.close()
    return report


def _memory(settings: Settings) -> int:
    """Bytes a method may take on the CPU; a run on a GPU asks for none there."""
    if settings.memory is not None or settings.device != "cpu":
        return settings.memory or 0
    # Late: it brings all that denoising needs, and scripts/gpu_check.sh runs where little more than torch is.
    from stan.inference.memory import free_memory

    return int(0.6 * free_memory(torch.device("cpu")))


def _measure_case(case: Case, settings: Settings, ceilings: Ceilings, prober: Prober) -> Row:
    row = Row(case)
    for which in PASSES:
        able = {}
        for name in settings.methods:
            probe = prober.probe(name, case, which, settings.device)
            measured = Measurement(name, which, extra_bytes=probe.extra, problem=probe.problem)
            if (
                probe.problem is not None and probe.seconds is not None
            ):  # too slow to repeat: keep the one time
                measured.milliseconds, measured.runs = 1000 * probe.seconds, 1
            row.measurements.append(measured)
            if probe.problem is None:
                able[name] = measured
        for name, times in _times(case, which, able, settings):
            able[name].milliseconds, able[name].runs = 1000 * statistics.median(times), len(times)
    _compare(row, ceilings)
    return row


def _times(
    case: Case, which: str, able: dict[str, Measurement], settings: Settings
) -> Iterator[tuple[str, list[float]]]:
    """Check once that the methods agree (forward only), which also warms them up, then time them in turn."""
    runs = {name: call(name, case, settings.device) for name in able}
    ours: Found | None = None
    for name, run in runs.items():
        results = run(which)
        if which == "forward":
            found = Found(*results)
            if ours is None:
                ours = found
            able[name].score_error, able[name].same_matches = agreement(found, ours)
    del ours
    calls = {name: (lambda run=run: run(which)) for name, run in runs.items()}
    yield from alternate(calls, settings.device, settings.seconds).items()


def _compare(row: Row, ceilings: Ceilings) -> None:
    """Fill in what follows from the times: ratio to the first method, fraction of the machine's ceiling."""
    case = row.case
    for which in PASSES:
        flops, moved = case.forward_flops(), case.forward_bytes()
        if which != "forward":
            flops, moved = flops + case.backward_flops(), moved + case.backward_bytes()
        floor = 1000 * ceilings.floor(flops, moved)
        timed = [(m, m.milliseconds) for m in row.measurements if m.which == which and m.milliseconds]
        for measured, milliseconds in timed:
            measured.ceiling_fraction = floor / milliseconds
            measured.slower = milliseconds / timed[0][1]
