"""What both reports say in words: headings, definitions, and every setting of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stan.evaluation import provenance
from stan.evaluation.results import Results, count

HEADS = {
    "psnr": "PSNR",
    "psnr_rounded": "PSNR, 8 bit",
    "psnr_noisy": "PSNR, noisy",
    "ssim": "SSIM",
    "strred": "ST-RRED",
    "strred_unit": "ST-RRED, peak 1",
    "flicker": "flicker",
    "seconds_per_frame": "s/frame",
    "memory_mib": "MiB",
}
"""Figures in the order of a full table, with their headings."""

DEFINITIONS = (
    "PSNR: dB, RGB, peak 1, output clamped to [0, 1] and not rounded; per frame, then mean over frames, then "
    "over sequences. «8 bit»: the output rounded to whole grey levels first. «Noisy»: of the noisy input as "
    "it is, not clamped, 20 log10(255 / sigma) for Gaussian noise. SSIM: scikit-image's defaults, per "
    "channel. ST-RRED: Soundararajan and Bovik 2013, luma with peak 255 (lower is better). Flicker: root "
    "mean square change of the error from frame to frame, in 8-bit units (lower is better). MiB: peak memory "
    "while denoising; on a GPU what was allocated on it, on a CPU the resident size of the process."
)


def lead(results: Results) -> str:
    """The evaluation in one phrase: data, frames, noise, seed."""
    data, noise = results.settings["data"], results.settings["noise"]
    place = data["kind"] + (f" {data['split']}" if data["split"] else "")
    return (
        f"{count(data['sequences'], 'sequence')} of {place}, {count(data['frames'], 'frame')}, "
        f"{noise['kind'].replace('_', ' ')} noise, seed {results.settings['seed']}"
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
