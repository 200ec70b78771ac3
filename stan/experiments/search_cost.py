"""`stan experiment memory`: time and memory of the fused search against other ways of the same, setting by setting."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch

from stan.errors import ConfigError
from stan.experiments.frame import Experiment, Report, Row, Table, Task, group, one_varied
from stan.experiments.operator_bench.cases import Case
from stan.experiments.operator_bench.memory import Prober
from stan.experiments.operator_bench.methods import METHODS
from stan.experiments.plot import Chart, Line
from stan.inference.memory import free_memory
from stan.registry import experiments
from stan.settings import ODD, Count, above, at_least, between

PAPER = {"memory": 10.0, "time": 3.0}
"""How many times less the search takes than the patch database, as the paper claims."""
AXES = {"window": "windows", "patch": "patches", "channels": "features", "heads": "heads"}
"""Field of a case -> the setting that lists its values."""


@dataclass(frozen=True)
class Settings:
    """What is measured. Of the four lists one is varied at a time, the others stay at their first value.

    Attributes:
        height: of the frames.
        width: of the frames.
        frames: T.
        matches: K.
        temporal_window: wt.
        windows: ws.
        patches: ps.
        features: channels a head.
        heads: HD.
        methods: ways to search, the fused one first; all others are measured as multiples of it.
        repeats: calls of each; the fastest counts.
        limit: give a call up after so many seconds.
        share: of the free memory that a call may take.
        device: cpu or cuda.
    """

    height: Count = 160
    width: Count = 160
    frames: Annotated[int, at_least(3)] = 5
    matches: Count = 3
    temporal_window: Count = 1
    windows: list[Annotated[int, ODD]] = field(default_factory=lambda: [9, 3, 5, 13])
    patches: list[Annotated[int, ODD]] = field(default_factory=lambda: [1, 3])
    features: list[Count] = field(default_factory=lambda: [32, 64, 128, 256])
    heads: list[Count] = field(default_factory=lambda: [1, 2, 4])
    methods: list[str] = field(default_factory=lambda: ["native", "candidates", "unfold", "database"])
    repeats: Count = 3
    limit: Annotated[float, above(0)] = 60.0
    share: Annotated[float, between(0.01, 1)] = 0.5
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the methods' names."""
        for method in self.methods:
            if method not in METHODS:
                raise ConfigError(f"methods={method} is not known; choose from {', '.join(METHODS)}")


@experiments.register("search_cost", declares=Settings)
class SearchCost(Experiment):
    """Peak memory and time of one search, forward and backward, by several methods."""

    settings: Settings
    keyed = (*AXES.values(), "methods")

    def tasks(self) -> Iterator[Task]:
        """Each case by each method."""
        for case in self.cases():
            for method in self.settings.methods:
                key = {axis: getattr(case, axis) for axis in AXES} | {"method": method}
                yield Task(key, functools.partial(self._rows, case, method))

    def cases(self) -> list[Case]:
        """The first of each list, then one list after the other."""
        s = self.settings
        base = Case(
            "base",
            height=s.height,
            width=s.width,
            frames=s.frames,
            topk=s.matches,
            temporal_window=s.temporal_window,
            metric="dot",
            flow="smooth",
        )
        lists = {axis: getattr(s, name) for axis, name in AXES.items()}
        return [replace(base, **values) for values in one_varied(lists)]

    def _rows(self, case: Case, method: str) -> list[Row]:
        s = self.settings
        rows = []
        for which in ("forward", "forward+backward"):
            probes = [self._prober.probe(method, case, which, s.device) for _ in range(s.repeats)]
            row = {
                "pass": which,
                "seconds": min((p.seconds for p in probes if p.seconds is not None), default=None),
                "extra_bytes": min((p.extra for p in probes if p.extra is not None), default=None),
                "problem": next((p.problem for p in probes if p.problem is not None), None),
            }
            rows.append(row)
        return rows

    @functools.cached_property
    def _prober(self) -> Prober:
        """One measuring process for all tasks; it ends with this one."""
        s = self.settings
        return Prober(int(s.share * free_memory(torch.device("cpu"))), s.limit, torch.get_num_threads())

    def report(self, rows: list[Row]) -> Report:
        """Multiples of the first method, setting by setting."""
        s = self.settings
        first, *others = s.methods
        report = Report()
        report.notes = [
            "Memory is what a call takes beyond its inputs and results, at its peak, in a process of its own; time is "
            f"that of the fastest of {s.repeats} calls by the wall clock, which other work on the machine lengthens: "
            "times are only good on an idle machine. Metric dot, flow that varies over some 16 pixels."
        ]
        for which in ("forward", "forward+backward"):
            some = [row for row in rows if row["pass"] == which]
            cells = [_cells(case, first, s.methods) for case in group(some, *AXES).values()]
            names = [f"{name}: MiB, ms" if name == first else f"{name}: memory, time" for name in s.methods]
            report.tables.append(
                Table(f"{which}; others as multiples of {first}", ["setting", *names], cells)
            )
            for what in PAPER:
                for other in others:
                    if found := ratios(some, other, first, what):
                        report.conclusions.append(_said(which, what, other, first, found))
        forward = [row for row in rows if row["pass"] == "forward"]
        base = {axis: getattr(s, name)[0] for axis, name in AXES.items()}
        for axis, name in AXES.items():
            places = [{**base, axis: value} for value in sorted(getattr(s, name))]
            at = [(p[axis], [r for r in forward if {a: r[a] for a in AXES} == p]) for p in places]
            for what in PAPER:
                lines = []
                for other in others:
                    factors = [(float(x), ratios(some, other, first, what)) for x, some in at]
                    lines.append(Line(other, [(x, found[0]) for x, found in factors if found]))
                level = (f"paper: {PAPER[what]:g}x", PAPER[what])
                label = "channels a head" if axis == "channels" else axis
                title = f"{what.capitalize()} of other searches as a multiple of ours, by {label}"
                report.charts[f"{what}_by_{axis}"] = Chart(title, label, "times", lines, (level,), y_log=True)
        return report


def ratios(rows: Sequence[Row], method: str, first: str, what: str) -> list[float]:
    """What a method takes as a multiple of the first one, for each setting in which both ran."""
    column = "extra_bytes" if what == "memory" else "seconds"
    found = []
    for some in group(rows, *AXES).values():
        of = {row["method"]: row[column] for row in some}
        if of.get(method) and of.get(first):
            found.append(of[method] / of[first])
    return found


def _said(which: str, what: str, other: str, first: str, found: list[float]) -> str:
    claim = PAPER[what]
    text = f"{which}, {what}: {other} takes {min(found):.1f} to {max(found):.1f} times as much as {first}"
    if other != "database":
        return text + "."
    if min(found) >= claim:
        return f"{text}: at least the paper's {claim:g} times in every setting."
    if max(found) >= claim:
        return f"{text}: the paper's {claim:g} times is reached in some settings, not in all."
    return f"{text}. **This contradicts the paper's {claim:g} times** for these settings on this machine."


def _cells(case: Sequence[Row], first: str, methods: Sequence[str]) -> list[str]:
    of = {row["method"]: row for row in case}
    ours = of.get(first)
    cells = [", ".join(f"{axis} {case[0][axis]}" for axis in AXES)]
    for method in methods:
        row = of.get(method)
        if row is None or row["seconds"] is None or row["extra_bytes"] is None:
            cells.append((row or {}).get("problem") or "not measured")
        elif method == first:
            cells.append(f"{row['extra_bytes'] / 2**20:.1f}, {1000 * row['seconds']:.0f}")
        elif ours is None or not ours["extra_bytes"] or not ours["seconds"]:
            cells.append("not comparable")
        else:
            memory = row["extra_bytes"] / ours["extra_bytes"]
            cells.append(f"{memory:.1f}x, {row['seconds'] / ours['seconds']:.1f}x")
    return cells
