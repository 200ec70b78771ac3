"""What the reports say in words: the evaluation in one phrase, and every setting of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stan.evaluation import provenance
from stan.evaluation.results import Results, count


def lead(results: Results) -> str:
    """The evaluation in one phrase: data, frames, noise, seed."""
    s = results.settings
    data, noise, cap = s["data"], s["noise"], s["max_frames"]
    place = data["kind"] + (f" {data['split']}" if data["split"] else "")
    frames = count(data["frames"], "frame") if cap is None else f"up to {count(cap, 'frame')} of each"
    total = "" if cap is None else f" ({data['frames']:,} in all)"
    return (
        f"{count(data['sequences'], 'sequence')} of {place}, {frames}{total}, "
        f"{noise['kind'].replace('_', ' ')} noise, seed {s['seed']}"
    )


def facts(results: Results) -> list[tuple[str, str]]:
    """Everything that can move a figure, as name and text."""
    s = results.settings
    data, noise = s["data"], s["noise"]
    tiles = sorted({_tiles(row["tiles"], row) for row in results.sequences if row["tiles"]})
    found = [
        ("protocol", f"{s['protocol']}, version {s['protocol_version']}" + _joined(s["departures"])),
        ("data", f"{data['kind']}, {data['split'] or 'all sequences'}, from {data['root']}"),
        ("frames", "all" if s["max_frames"] is None else f"at most {s['max_frames']} of each sequence"),
        ("shrunk by", str(data["downscale"])),
        ("noise", noise["kind"] + _joined([f"{k} {v:g}" for k, v in noise["settings"].items()])),
        ("noise clipped, rounded", f"{_yes(noise['clipped'])}, {_yes(noise['rounded'])}"),
        ("noise seed", f"{s['seed']}; {noise['generator']}"),
        ("output", "clamped to [0, 1], not rounded"),
        ("border left out", f"{s['border']} pixels"),
        ("precision", s["precision"]),
        ("tiles", "; ".join(tiles) or "whole video at once"),
        ("scene cuts looked for", _yes(s["scenes"])),
        ("device", s["device"]),
        ("program", f"stan {provenance.describe(s['code'])}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in s["versions"].items())),
    ]
    for method in results.methods:
        known = {
            k: v for k, v in method.items() if k not in ("name", "kind", "checkpoint") and v not in (None, {})
        }
        text = ", ".join(f"{key} {_short(value)}" for key, value in known.items())
        word = "" if method["checkpoint"] == method["name"] else f"{method['checkpoint']}: "
        found.append((method["name"], word + (text or "nothing to set")))
    inputs = {(row["sequence"], row["sigma"]): row for row in results.sequences}.values()
    hashes = ", ".join(f"{row['sequence']} {row['sigma']:g}: {row['noisy_sha256'][:8]}" for row in inputs)
    return [*found, ("noisy input (SHA-256)", hashes)]


def _tiles(tiles: dict[str, Any], row: dict[str, Any]) -> str:
    size = f"{tiles.get('width') or row['width']}x{tiles.get('height') or row['height']}"
    return (
        f"{row['width']}x{row['height']}: chunks of {tiles['frames']} frames "
        f"({tiles['frame_overlap']} shared), tiles of {size} ({tiles['overlap']} shared)"
    )


def _joined(words: Sequence[str]) -> str:
    return f" ({'; '.join(words)})" if words else ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + "}"
    return str(value)
