"""``stan demo``: the whole story on a small scale."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "data, training, fine-tuning, evaluation and a denoised video on a small scale, without a download"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--output", default="runs/demo", metavar="DIR", help="folder for all of it (runs/demo)")
    add("--steps", type=int, metavar="N", help="training steps; fewer is quicker and worse")


def run(args: argparse.Namespace) -> int:
    """Run the demo; print the table and the paths."""
    from rich.console import Console
    from rich.table import Table

    from stan.experiments.demo import run_demo

    console = Console()
    demo = run_demo(Path(args.output), console, args.steps)
    headings = ("network", "sigma", "noisy dB", "PSNR dB", "gain dB", "SSIM")
    table = Table(*headings, title="Clips held out of training")
    for network, sigma, noisy, psnr, ssim in demo.table:
        decibels = (f"{noisy:.2f}", f"{psnr:.2f}", f"{psnr - noisy:+.2f}")
        table.add_row(network, f"{sigma:g}", *decibels, f"{ssim:.4f}")
    console.print(table)
    for name, path in demo.files.items():
        console.print(f"{name:22s} {path}", highlight=False, soft_wrap=True)
    return 0
