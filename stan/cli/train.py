"""``stan train``: train a network from scratch, or go on with an interrupted training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from stan.cli.common import add_config_arguments, load_config

if TYPE_CHECKING:
    from stan.training import Fit

HELP = "train a network from scratch; the same command again goes on where it stopped"


add_arguments = add_config_arguments


def run(args: argparse.Namespace) -> int:
    """Train."""
    config = load_config(args)
    from stan.training import train

    return report(train(config))


def report(result: Fit) -> int:
    """Say what a training left behind; 130 when it was interrupted."""
    if result.interrupted:
        print(f"interrupted at step {result.steps}: the same command goes on from {result.last}")
        return 130
    if result.ended_early:
        print(f"ended early at step {result.steps}: validations no longer got better")
    best = f", best validation PSNR {result.best_psnr:.2f} dB in {result.best}" if result.best else ""
    print(f"{result.steps} steps, {result.seconds:.0f} s: {result.last}{best}")
    return 0
