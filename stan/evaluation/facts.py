"""What the reports say in words: the evaluation in one phrase, and every setting of it."""

from __future__ import annotations

from typing import Any

from stan.data.pairs import RECORDED
from stan.evaluation.results import Results, count


def lead(results: Results) -> str:
    """The evaluation in one phrase: data, frames, noise, seed."""
    s = results.settings
    data, noise, cap = s["data"], s["noise"], s["max_frames"]
    place = data["kind"] + (f" {data['split']}" if data["split"] else "")
    frames = count(data["frames"], "frame") if cap is None else f"up to {count(cap, 'frame')} of each"
    total = "" if cap is None else f" ({data['frames']:,} in all)"
    task = s["task"]["name"]
    inner = ", ".join(f"{key} {value}" for key, value in s["task"]["settings"].items())
    undone = "" if task == "denoise" else f"task {task} ({inner}), " if inner else f"task {task}, "
    seed = "" if noise["kind"] == RECORDED else f", seed {s['seed']}"
    return (
        f"{count(data['sequences'], 'sequence')} of {place}, {frames}{total}, {undone}"
        f"{noise['kind'].replace('_', ' ')} noise{seed}"
    )


def facts(results: Results) -> list[tuple[str, str]]:
    """Everything that can move a figure, as name and text: the settings, the tiles, the methods, the noisy videos."""
    rows = results.sequences
    found: list[tuple[str, Any]] = [*results.settings.items()]
    found += sorted({(f"tiles of {r['width']}x{r['height']}", _text(r["tiles"])) for r in rows if r["tiles"]})
    found += [
        (method["name"], {k: v for k, v in method.items() if k != "name"}) for method in results.methods
    ]
    hashes = {f"{row['sequence']} {row['sigma']:g}": row["noisy_sha256"][:8] for row in rows}
    found.append((f"{results.input} (SHA-256)", hashes))
    return [
        (name.replace("_", " ") if name in results.settings else name, _text(value)) for name, value in found
    ]


def _text(value: Any, inside: bool = False) -> str:
    """Plain data in words; what is nested, in brackets."""
    if isinstance(value, dict):
        words = ", ".join(f"{key} {_text(item, True)}" for key, item in value.items())
        return f"{{{words}}}" if inside else words or "none"
    if isinstance(value, (list, tuple)):
        words = ", ".join(_text(item, True) for item in value)
        return f"[{words}]" if inside else words or "none"
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
