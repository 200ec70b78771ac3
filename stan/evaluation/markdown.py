"""The report of an evaluation in Markdown, for a repository or a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from stan.evaluation.facts import DEFINITIONS, HEADS, facts, lead
from stan.evaluation.published import comparable, value_at
from stan.evaluation.results import Results, show


def markdown(results: Results) -> str:
    """Tables of means, of all figures and of sequences, and every setting."""
    lines = [f"# {results.title}", "", lead(results), ""]
    for note in results.notes:
        lines += [f"> {note}", ""]
    lines += ["## Means over sequences: PSNR (dB) / SSIM", "", *_means(results), ""]
    lines += ["## All figures", "", *_all_figures(results), ""]
    lines += ["## Sequences: PSNR (dB)", "", *_sequences(results), ""]
    lines += ["## Everything that can move these figures", ""]
    lines += [f"- {name}: {value}" for name, value in facts(results)]
    return "\n".join([*lines, "", DEFINITIONS, ""])


def _means(results: Results) -> list[str]:
    sigmas = results.sigmas
    rows = [
        [method["name"], *(_pair(results.mean(method["name"], s)) for s in sigmas)]
        for method in results.methods
    ]
    rows.append(["noisy input", *(show("psnr", results.mean(None, s)["psnr_noisy"]) for s in sigmas)])
    for published, values in comparable(results.settings):
        cells = [value_at(values, s) for s in sigmas]
        rows.append([f"{published.name} (published)", *("" if c is None else f"{c:.2f}" for c in cells)])
    return _table(["method", *(f"sigma {s:g}" for s in sigmas)], rows)


def _all_figures(results: Results) -> list[str]:
    rows = [
        [f"{row['sigma']:g}", row["method"], *(show(name, row[name]) for name in HEADS)]
        for row in results.means
    ]
    return _table(["sigma", "method", *HEADS.values()], rows)


def _sequences(results: Results) -> list[str]:
    places = {(row["sequence"], row["sigma"], row["method"]): row for row in results.sequences}
    columns = [(s, method["name"]) for s in results.sigmas for method in results.methods]
    several = len(results.methods) > 1
    heads = [f"sigma {s:g} {name}" if several else f"sigma {s:g}" for s, name in columns]
    rows = []
    for name in results.names:
        found = [places[(name, sigma, method)] for sigma, method in columns]
        rows.append([name, str(found[0]["frames"]), *(show("psnr", row["psnr"]) for row in found)])
    return _table(["sequence", "frames", *heads], rows)


def _pair(row: dict[str, Any]) -> str:
    ssim = "" if math.isnan(row["ssim"]) else f" / {show('ssim', row['ssim'])}"
    return show("psnr", row["psnr"]) + ssim


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
