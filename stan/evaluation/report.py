"""The report of an evaluation as one self-contained HTML page: tables, charts, pictures, settings."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from stan.evaluation.charts import Series, legend, line_chart
from stan.evaluation.facts import DEFINITIONS, HEADS, facts, lead
from stan.evaluation.gallery import Gallery
from stan.evaluation.page import CSS, JS
from stan.evaluation.published import SIGMAS, comparable, value_at
from stan.evaluation.results import Results, best_of, count, show

Row = dict[str, Any]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_OF_SEQUENCE = ("psnr", "ssim", "strred", "flicker", "seconds_per_frame")


def html(results: Results) -> str:
    """The page. It asks for nothing from anywhere, and a policy in its head forbids it to."""
    gallery = Gallery(results)
    level = _level(results)
    title = f"{results.title} · {', '.join(method['name'] for method in results.methods)}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f'<style>{CSS}</style></head><body data-level="{level}"><main>',
            _header(results),
            "<h2>Means over sequences</h2>",
            f'<div class="card scroll">{_matrix(results)}</div>',
            '<div class="two" style="margin-top:16px">',
            _over_sigma(results, "psnr", "PSNR, dB"),
            _over_sigma(results, "ssim", "SSIM"),
            "</div>",
            "<details><summary>All figures</summary>",
            f'<div class="card scroll">{_all_figures(results)}</div></details>',
            "<h2>Sequences</h2>",
            _levels_bar(results, level),
            *(_by_sequence(results, sigma, level) for sigma in results.sigmas),
            '<div class="sequences">',
            *(_sequence(results, name, level) for name in results.names),
            "</div>",
            "<h2>Everything that can move these figures</h2>",
            f'<div class="card"><dl>{_settings(results)}</dl></div>',
            f"<footer><p>{escape(DEFINITIONS)}</p><p>{escape(gallery.remark)}</p></footer>",
            '<div class="tip"></div></main>',
            f'<script type="application/json" id="pictures">{gallery.json()}</script>',
            f"<script>{JS}</script></body></html>\n",
        ]
    )


def _level(results: Results) -> str:
    """The noise level that is shown first: the middle one, of which there are pictures."""
    return f"{results.sigmas[len(results.sigmas) // 2]:g}"


def _header(results: Results) -> str:
    changed = bool(results.settings["departures"])
    badge = "modified" if changed else "as the protocol says"
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return (
        f"<header><div><h1>{escape(results.settings['protocol'])}"
        f'<span class="badge{" changed" if changed else ""}">{badge}</span></h1>'
        f'<p class="lead">{escape(lead(results))}</p></div>'
        '<button class="theme" type="button">light / dark</button></header>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _matrix(results: Results) -> str:
    """The table as papers print it: a row a method, a column a noise level, PSNR over SSIM."""
    sigmas = results.sigmas
    rows = []
    for i, method in enumerate(results.methods):
        cells = "".join(
            f"<td>{_strong(results, row, 'psnr')}{_more(_strong(results, row, 'ssim'))}</td>"
            for row in (results.mean(method["name"], s) for s in sigmas)
        )
        swatch = f'<span class="swatch" style="background:var(--{_style(i)})"></span>'
        rows.append(f"<tr><td>{swatch}{escape(method['name'])}{_account(method)}</td>{cells}</tr>")
    cells = "".join(
        f"<td>{show('psnr', row['psnr_noisy'])}{_more(show('ssim', row['ssim_noisy']))}</td>"
        for row in (results.mean(None, s) for s in sigmas)
    )
    rows.append(f'<tr class="published"><td>noisy input</td>{cells}</tr>')
    for i, (published, values) in enumerate(comparable(results.settings)):
        known = (value_at(values, s) for s in sigmas)
        cells = "".join("<td></td>" if v is None else f"<td>{v:.2f}</td>" for v in known)
        size = f" · {published.parameters:g} M parameters" if published.parameters else ""
        rows.append(
            f'<tr class="published{" ruled" if i == 0 else ""}"><td>{escape(published.name)}'
            f'<span class="more">published{size}</span></td>{cells}</tr>'
        )
    return _table(["PSNR, dB, and SSIM", *(f"σ {s:g}" for s in sigmas)], rows)


def _more(text: str) -> str:
    return f'<span class="more">{text}</span>'


def _account(method: Row) -> str:
    if method["kind"] != "network":
        return '<span class="more">not learned</span>'
    words = [
        method["model"],
        f"{method['parameters'] / 1e6:.3g} M parameters",
        "blind" if method["blind"] else "knows sigma",
        method["sha256"][:10],
    ]
    return f'<span class="more">{escape(" · ".join(words))}</span>'


def _over_sigma(results: Results, name: str, label: str) -> str:
    """The chart of a figure over the noise level, with published curves where they may be compared."""
    series = [
        Series(m["name"], _style(i), [(s, results.mean(m["name"], s)[name]) for s in results.sigmas])
        for i, m in enumerate(results.methods)
    ]
    noisy = Series(
        "noisy input", "noisy", [(s, results.mean(None, s)[f"{name}_noisy"]) for s in results.sigmas]
    )
    published = [
        Series(f"{p.name} (published)", "published", [(s, v) for s, v in zip(SIGMAS, values)])
        for p, values in (comparable(results.settings) if name == "psnr" else [])
    ]
    chart = line_chart(
        [*published, noisy, *series], x_label="sigma", y_label=label, marks=True, title=f"{label} over sigma"
    )
    caption = f"{label}, mean over sequences, over the level of the noise."
    return (
        f'<figure class="card">{legend([*series, noisy, *published[:1]])}{chart}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _all_figures(results: Results) -> str:
    rows = []
    for before, row in zip([None, *results.means], results.means):
        cells = "".join(f"<td>{_strong(results, row, name)}</td>" for name in HEADS)
        ruled = ' class="ruled"' if before is not None and before["sigma"] != row["sigma"] else ""
        rows.append(f"<tr{ruled}><td>{escape(row['method'])}</td><td>{row['sigma']:g}</td>{cells}</tr>")
    return _table(["method", "σ", *HEADS.values()], rows)


def _levels_bar(results: Results, level: str) -> str:
    buttons = "".join(
        f'<button type="button" value="{s:g}" aria-pressed="{"true" if f"{s:g}" == level else "false"}">'
        f"{s:g}</button>"
        for s in results.sigmas
    )
    return f'<div class="bar"><span>sigma</span>{buttons}</div>'


def _by_sequence(results: Results, sigma: float, shown: str) -> str:
    """PSNR of every sequence at one noise level, each name leading to its pictures."""
    names = [method["name"] for method in results.methods]
    lines = []
    for sequence in results.names:
        level = [r for r in results.sequences if r["sequence"] == sequence and r["sigma"] == sigma]
        rows = {row["method"]: row for row in level}
        best = best_of(rows.values(), sigma)
        cells = "".join(
            f"<td>{_marked(rows[name], best, 'psnr', results)}"
            f"{_more(_marked(rows[name], best, 'ssim', results))}</td>"
            for name in names
        )
        noisy = show("psnr", level[0]["psnr_noisy"]) + _more(show("ssim", level[0]["ssim_noisy"]))
        link = f'<a href="#{_quoted(sequence)}">{escape(sequence)}</a>'
        frames = f"<td>{level[0]['frames']}</td>"
        lines.append(f'<tr><td>{link}</td>{frames}{cells}<td class="soft">{noisy}</td></tr>')
    table = _table(["PSNR, dB, and SSIM", "frames", *names, "noisy input"], lines)
    hidden = "" if f"{sigma:g}" == shown else " hidden"
    return f'<div class="card scroll by-sequence" data-sigma="{sigma:g}"{hidden}>{table}</div>'


def _sequence(results: Results, name: str, level: str) -> str:
    """One sequence: pictures to compare; beside them PSNR over frames, figures and slices through time."""
    rows = [row for row in results.sequences if row["sequence"] == name]
    labels = [method["name"] for method in results.methods if method["name"] != "noisy"]
    videos = [("noisy", "noisy"), *((f"m|{label}", label) for label in labels), ("clean", "clean")]
    errors = [(f"e|{label}", f"error of {label}" if len(labels) > 1 else "error") for label in labels]
    slices = "".join(
        f'<span>{escape(text)}</span><img data-of="{_quoted(of)}" alt="{_quoted(text)}, one row over time">'
        for of, text in videos
    )
    first = rows[0]
    parts = [
        f'<article class="card sequence" data-sequence="{_quoted(name)}" id="{_quoted(name)}">',
        f'<div class="top"><h3>{escape(name)}</h3><small>{count(first["frames"], "frame")}, '
        f"{first['width']}×{first['height']}</small></div><div>",
        '<p class="missing" hidden>Pictures of this noise level are left out, to keep the page small.</p>',
        '<div class="shown"><div class="viewer" tabindex="0" role="slider" aria-label="compare" ',
        'aria-valuemin="0" aria-valuemax="100" aria-valuenow="50"><img alt="right picture">',
        '<img class="over" alt="left picture"><div class="edge"></div><span class="name l"></span>',
        '<span class="name r"></span></div><div class="controls">',
        f"<label>left {_select([*videos, *errors], 'noisy')}</label>",
        f"<label>right {_select([*videos, *errors], videos[1][0])}</label>",
        '<button class="flip" type="button">flip</button></div></div></div><div>',
        *(_at_level(results, rows, sigma, level) for sigma in results.sigmas),
        f'<div class="shown"><div class="slices">{slices}</div>',
        '<p class="remark">One row of pixels, frame under frame: streaks are flicker.</p></div>',
        "</div></article>",
    ]
    return "".join(parts)


def _at_level(results: Results, rows: list[Row], sigma: float, shown: str) -> str:
    """PSNR over frames and the figures of one sequence at one noise level."""
    level = {row["method"]: row for row in rows if row["sigma"] == sigma}
    series = [
        Series(m["name"], _style(i), list(enumerate(level[m["name"]]["psnr_frames"])))
        for i, m in enumerate(results.methods)
    ]
    name = rows[0]["sequence"]
    chart = line_chart(
        series, x_label="frame", y_label="PSNR, dB", marks=False, title=f"PSNR of {name} over frames"
    )
    best = best_of(level.values(), sigma)
    lines = [
        f"<tr><td>{escape(row['method'])}</td>"
        + "".join(f"<td>{_marked(row, best, figure, results)}</td>" for figure in _OF_SEQUENCE)
        + "</tr>"
        for row in level.values()
    ]
    noisy = next(iter(level.values()))
    cells = "".join(f"<td>{show(figure, noisy[f'{figure}_noisy'])}</td>" for figure in _OF_SEQUENCE[:-1])
    lines.append(f'<tr class="published"><td>noisy input</td>{cells}<td></td></tr>')
    table = _table(["method", *(HEADS[figure] for figure in _OF_SEQUENCE)], lines)
    hidden = "" if f"{sigma:g}" == shown else " hidden"
    return (
        f'<div data-sigma="{sigma:g}"{hidden}>{legend(series)}{chart}<div class="scroll">{table}</div></div>'
    )


def _settings(results: Results) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(results))


def _strong(results: Results, row: Row, name: str) -> str:
    return _marked(row, best_of(results.means, row["sigma"]), name, results)


def _marked(row: Row, best: dict[str, float], name: str, results: Results) -> str:
    """A figure, bold where it is the best of several methods."""
    text = show(name, row[name])
    return f"<b>{text}</b>" if len(results.methods) > 1 and best.get(name) == row[name] else text


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _select(choices: Iterable[tuple[str, str]], chosen: str) -> str:
    options = "".join(
        f'<option value="{_quoted(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in choices
    )
    return f"<select>{options}</select>"


def _quoted(text: str) -> str:
    return escape(text, quote=True)


def _style(index: int) -> str:
    return f"s{index % 8}"
