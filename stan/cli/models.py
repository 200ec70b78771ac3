"""``stan models``: the trained weights that come with the package, and what they are worth."""

from __future__ import annotations

import argparse
import json

HELP = "list the trained weights that come with the package: size, training, PSNR, speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="all that is known of them, as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from rich.console import Console
    from rich.table import Table

    from stan.models.shipped import shipped

    found = shipped()
    if args.json:
        known = {weights.name: {**weights.facts, "path": str(weights.path)} for weights in found}
        print(json.dumps(known, indent=2))
        return 0
    console = Console()
    if not found:
        console.print("no trained weights come with this installation")
        return 0
    measured = [weights.facts["psnr"] for weights in found]
    levels = [level for level in ("10", "30", "50") if all(level in psnr for psnr in measured)]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in ("name", "parameters", "file", "sigma", *(f"dB@{level}" for level in levels), "speed"):
        table.add_column(heading, justify="left" if heading in ("name", "speed") else "right")
    for weights in found:
        facts = weights.facts
        low, high = facts["trained"]["sigma"]
        speed = facts["speed"][0] if facts["speed"] else None
        table.add_row(
            weights.name,
            f"{facts['parameters']:,}",
            f"{weights.megabytes:.1f}MB",
            f"{low:g}..{high:g}",
            *(f"{facts['psnr'][level]:.2f}" for level in levels),
            f"{speed['frames_per_second']:.2g} at {speed['size']}" if speed else "",
        )
    console.print(table)
    for weights in found:
        text = f"\n{weights.name}: {weights.facts['summary']}\n  {weights.path}"
        console.print(text, highlight=False, soft_wrap=True)
    protocols = "; ".join(sorted({weights.facts["protocol"] for weights in found}))
    devices = "; ".join(sorted({row["device"] for weights in found for row in weights.facts["speed"][:1]}))
    told = f"\nPSNR by noise level: {protocols}. Speed: frames a second on {devices}."
    console.print(told, highlight=False, soft_wrap=True)
    console.print(f"Use one by its name: stan denoise IN OUT --checkpoint {found[0].name}", highlight=False)
    return 0
