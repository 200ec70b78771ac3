"""What the rows of the alignment experiment say: both gains side by side, always."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stan.experiments.alignment.measure import BINS
from stan.experiments.cost import NOTE
from stan.experiments.frame import Report, Row, Table, group, mean
from stan.experiments.plot import Chart, Line

KINDS = {"averaged": "averaged", "single": "without"}
"""Kinds of figures, and what they are called in charts."""
PAPER = (
    "the paper's public code reports 36.17 dB for the flow alone and 39.33 dB for ws 11 (+3.16 dB), averaged"
)
_WORDS = {
    "source": "offset source",
    "searched": "frames that are searched",
    "sigma": "noise level",
    "stride": "stride of the queries",
    "patch": "patch of the comparison",
}


def findings(rows: Sequence[Row], lists: Mapping[str, Sequence[Any]], averaging: int) -> Report:
    """Tables, charts and conclusions.

    Args:
        rows: one for each sequence, setting and window.
        lists: axis -> its values, the base first.
        averaging: side of the patches of the averaged figures.
    """
    report = Report()
    rows, left_out = _complete(rows)
    base = _where(rows, {axis: values[0] for axis, values in lists.items()})
    windows = sorted({row["window"] for row in base})
    report.notes = [
        f'Each cell "a / b": a with the {averaging}x{averaging} overlap averaging of the warped patches, b without it. '
        "Gains are against the flow alone (ws 1) with the same averaging: the averaging smooths what is compared, and "
        "smooths the more the less the matches of neighbouring pixels agree, so its gain is not one of better matches.",
        NOTE,
    ]
    if left_out:
        report.notes.insert(0, f"Not finished, hence left out of all figures: {', '.join(left_out)}.")
    if not base:
        report.conclusions = ["Nothing has been measured yet."]
        return report
    report.conclusions = [*_main(base, windows, lists), *_compared(rows, lists), *_moving(base, windows)]
    report.tables = [
        _table("PSNR of the warped neighbour, dB", rows, lists, windows, _level),
        _table("Gain over the flow alone, dB", rows, lists, windows[1:], _gain_text),
        _motion_table(base, windows[1:]),
    ]
    report.charts = {
        "gain_by_window": _by_window(rows, lists, windows, "source"),
        "gain_by_motion": _by_motion(base, windows[1:]),
        "gain_by_sequence": _by_sequence(base, windows),
    }
    for axis, values in lists.items():
        if axis != "source" and len(values) > 1:
            report.charts[f"gain_by_{axis}"] = _by_window(rows, lists, windows, axis)
    if any("end_point_error" in row for row in base):
        report.conclusions += _true_motion(base, windows)
        report.tables.append(_truth_table(rows, lists, windows))
        report.charts["end_point_error"] = _truth_chart(rows, lists, windows)
    report.tables.append(_cost_table(base, windows[1:]))
    return report


def gain(rows: Sequence[Row], window: int, kind: str) -> float:
    """Mean over sequences of the PSNR of a window less that of the flow alone, dB."""
    of = {w: mean([r for r in rows if r["window"] == w], f"psnr_{kind}") for w in (window, 1)}
    return of[window] - of[1]


def motion_gain(rows: Sequence[Row], window: int, kind: str) -> list[float]:
    """The same in each class of motion, over all pixels of all sequences; NaN where there are none."""
    sums = {}
    for w in (window, 1):
        every = [row[f"squares_{kind}"] for row in rows if row["window"] == w]
        sums[w] = [sum(column) for column in zip(*every)]
    return [
        10 * math.log10(flow / found) if flow > 0 and found > 0 else math.nan
        for flow, found in zip(sums[1], sums[window])
    ]


def _complete(rows: Sequence[Row]) -> tuple[Sequence[Row], list[str]]:
    """The rows of the sequences of which there are most, so that all settings are compared on the same ones;
    and the names of the others."""
    counts = {name: len(some) for (name,), some in group(rows, "sequence").items()}
    left_out = [name for name, count in counts.items() if count < max(counts.values())]
    return [row for row in rows if row["sequence"] not in left_out], left_out


def _main(base: Sequence[Row], windows: Sequence[int], lists: Mapping[str, Sequence[Any]]) -> list[str]:
    if len(windows) < 2:
        return ["Only the flow alone was measured: name windows above 1."]
    gains = {kind: {w: gain(base, w, kind) for w in windows[1:]} for kind in KINDS}
    best = max(gains["averaged"], key=lambda w: gains["averaged"][w])
    averaged, single = gains["averaged"][best], gains["single"][best]
    top = max(gains["single"], key=lambda w: gains["single"][w])
    where = ", ".join(f"{axis} {values[0]}" for axis, values in lists.items())
    found = [
        f"Averaged, the search gains {averaged:+.2f} dB over the flow alone at ws {best}; without the averaging the "
        f"same matches gain {single:+.2f} dB ({where}; {len(group(base, 'sequence'))} sequences).",
        f"The best window without the averaging is ws {top}, {gains['single'][top]:+.2f} dB.",
    ]
    share = 100 * (1 - single / averaged) if averaged > 0 else 0.0
    if single <= 0 < averaged:
        found.append(
            "**This contradicts the paper's reading of the figure**: all of the gain comes from the averaging, and "
            f"the matches by themselves are worse than the flow ({PAPER})."
        )
    elif averaged > 0 and single < averaged / 2:
        found.append(
            f"**This weakens the paper's reading of the figure**: {share:.0f} % of the averaged gain comes with the "
            f"averaging, not with better matches ({PAPER})."
        )
    elif averaged > 0:
        found.append(
            "The direction of the paper's figure is confirmed, with and without the averaging, with which "
            f"{share:.0f} % of the averaged gain come ({PAPER})."
        )
    else:
        found.append(f"**This contradicts the paper**: the search loses to the flow alone ({PAPER}).")
    return found


def _compared(rows: Sequence[Row], lists: Mapping[str, Sequence[Any]]) -> list[str]:
    """One sentence for each axis that was varied."""
    said = []
    for axis, values in lists.items():
        cells = []
        for value in values if len(values) > 1 else ():
            some = _where(rows, {**{a: v[0] for a, v in lists.items()}, axis: value})
            windows = sorted({row["window"] for row in some} - {1})
            if windows:
                best = max(windows, key=lambda w: gain(some, w, "single"))
                both = " / ".join(f"{gain(some, best, kind):+.2f}" for kind in KINDS)
                cells.append(f"{value} {both} (ws {best})")
        if cells:
            said.append(
                f"By {_WORDS[axis]}, averaged / without, at the best window without: {', '.join(cells)}."
            )
    return said


def _moving(base: Sequence[Row], windows: Sequence[int]) -> list[str]:
    if len(windows) < 2:
        return []
    best = max(windows[1:], key=lambda w: gain(base, w, "single"))
    said = []
    for kind, words in zip(KINDS, ("With", "Without")):
        found = motion_gain(base, best, kind)
        negative = [_class(i) for i, g in enumerate(found) if g < 0]
        where = "positive in every class of motion"
        if negative:
            where = f"negative where the motion is {', '.join(negative)}"
        said.append(
            f"{words} the averaging the gain of ws {best} is {where} (pixels a frame, over all pixels)."
        )
    return said


def _true_motion(base: Sequence[Row], windows: Sequence[int]) -> list[str]:
    error = {w: mean([r for r in base if r["window"] == w], "end_point_error") for w in windows}
    best = min(error, key=lambda w: error[w])
    verdict = "the flow itself is nearest to the truth" if best == 1 else f"ws {best} is nearest to the truth"
    listed = ", ".join(f"ws {w} {e:.2f}" for w, e in error.items())
    return [f"End-point error against the true motion, pixels: {listed}: {verdict}."]


def _where(rows: Sequence[Row], values: Mapping[str, Any]) -> list[Row]:
    return [row for row in rows if all(row[axis] == value for axis, value in values.items())]


def _settings(rows: Sequence[Row], lists: Mapping[str, Sequence[Any]]) -> dict[str, list[Row]]:
    """The rows of each measured setting, named by what differs from the base."""
    named = {}
    for values, some in group(rows, *lists).items():
        changed = [f"{a} {v}" for (a, known), v in zip(lists.items(), values) if v != known[0]]
        named[", ".join(changed) or "base: " + ", ".join(f"{a} {v[0]}" for a, v in lists.items())] = some
    return named


def _table(
    heading: str,
    rows: Sequence[Row],
    lists: Mapping[str, Sequence[Any]],
    windows: Sequence[int],
    cell: Callable[[Sequence[Row], int], str],
) -> Table:
    cells = [
        [name, *(cell(some, window) for window in windows)] for name, some in _settings(rows, lists).items()
    ]
    return Table(heading, ["setting", *(_window(w) for w in windows)], cells)


def _level(rows: Sequence[Row], window: int) -> str:
    some = [row for row in rows if row["window"] == window]
    return " / ".join(f"{mean(some, f'psnr_{kind}'):.2f}" for kind in KINDS)


def _gain_text(rows: Sequence[Row], window: int) -> str:
    return " / ".join(f"{gain(rows, window, kind):+.2f}" for kind in KINDS)


def _motion_table(base: Sequence[Row], windows: Sequence[int]) -> Table:
    pixels = [sum(column) for column in zip(*(row["pixels"] for row in base if row["window"] == 1))]
    gains = {(w, kind): motion_gain(base, w, kind) for w in windows for kind in KINDS}
    cells = [
        [
            _class(i),
            f"{100 * count / sum(pixels):.1f} %",
            *(" / ".join(f"{gains[w, kind][i]:+.2f}" for kind in KINDS) for w in windows),
        ]
        for i, count in enumerate(pixels)
        if count
    ]
    return Table(
        "Gain by motion, over all pixels, dB", ["pixels a frame", "share", *map(_window, windows)], cells
    )


def _truth_table(rows: Sequence[Row], lists: Mapping[str, Sequence[Any]], windows: Sequence[int]) -> Table:
    def cell(some: Sequence[Row], window: int) -> str:
        at = [row for row in some if row["window"] == window]
        known = mean(at, "recall")
        share = "" if math.isnan(known) else f" / {100 * known:.1f} %"
        return f"{mean(at, 'end_point_error'):.2f}{share}"

    heading = (
        "End-point error against the true motion, pixels / share of the exhaustive search's matches found"
    )
    return _table(heading, rows, lists, windows, cell)


def _cost_table(base: Sequence[Row], windows: Sequence[int]) -> Table:
    cells = []
    for window in windows:
        some = [row for row in base if row["window"] == window]
        peak = mean(some, "peak_bytes_a_pixel")
        memory = "not known" if math.isnan(peak) else f"{peak:.0f}"
        cells.append([_window(window), f"{mean(some, 'seconds_a_megapixel'):.2f}", memory])
    return Table(
        "Cost of the search", ["window", "processor seconds a megapixel", "peak bytes a pixel"], cells
    )


def _by_window(
    rows: Sequence[Row], lists: Mapping[str, Sequence[Any]], windows: Sequence[int], axis: str
) -> Chart:
    base = {a: v[0] for a, v in lists.items()}
    lines = []
    for number, value in enumerate(lists[axis]):
        some = _where(rows, {**base, axis: value})
        for kind in KINDS:
            points = [(float(w), gain(some, w, kind)) for w in windows] if some else []
            lines.append(Line(f"{value}, {KINDS[kind]}", points, dashed=kind == "single", colour=number))
    title = f"Gain over the flow alone, by window and {_WORDS[axis]}"
    return Chart(title, "window ws, pixels", "dB", lines)


def _by_motion(base: Sequence[Row], windows: Sequence[int]) -> Chart:
    lines = [
        Line(
            f"ws {w}, {KINDS[kind]}",
            [(float(i), g) for i, g in enumerate(motion_gain(base, w, kind))],
            dashed=kind == "single",
            colour=number,
        )
        for number, w in enumerate(windows)
        for kind in KINDS
    ]
    labels = tuple(_class(i) for i in range(len(BINS) - 1))
    return Chart("Gain over the flow alone, by motion", "motion, pixels a frame", "dB", lines, labels=labels)


def _by_sequence(base: Sequence[Row], windows: Sequence[int]) -> Chart:
    best = max(windows[1:] or windows, key=lambda w: gain(base, w, "averaged"))
    lines = []
    for kind in KINDS:
        points = [(some[0]["motion"], gain(some, best, kind)) for some in group(base, "sequence").values()]
        lines.append(Line(KINDS[kind], points, joined=False))
    title = f"Gain of ws {best} over the flow alone, a point a sequence"
    return Chart(title, "mean motion, pixels a frame", "dB", lines, x_log=True)


def _truth_chart(rows: Sequence[Row], lists: Mapping[str, Sequence[Any]], windows: Sequence[int]) -> Chart:
    lines = []
    for number, (name, some) in enumerate(_settings(rows, lists).items()):
        error = [(float(w), mean([r for r in some if r["window"] == w], "end_point_error")) for w in windows]
        lines.append(Line(name if number else "base", error))
    return Chart("Distance from the true place", "window ws, pixels", "pixels", lines)


def _class(number: int) -> str:
    low, high = BINS[number], BINS[number + 1]
    return f"over {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _window(window: int) -> str:
    return "flow alone" if window == 1 else f"ws {window}"
