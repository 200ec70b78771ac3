"""``stan finetune``: go on from a checkpoint at new noise levels or kinds."""

from __future__ import annotations

import argparse

from stan.cli.common import add_config_arguments, load_config
from stan.cli.train import report

HELP = "go on from a checkpoint at new noise levels: stan finetune CONFIG checkpoint=FILE noise.sigma=70"


add_arguments = add_config_arguments


def run(args: argparse.Namespace) -> int:
    """Fine-tune and print what was gained and lost."""
    config = load_config(args)
    from rich.console import Console
    from rich.table import Table

    from stan.training import finetune

    result, gains = finetune(config)
    if gains:
        mixed = len({(gain.noise, gain.task) for gain in gains}) > 1
        columns = ["sigma", *(["noise"] if mixed else []), "level", "noisy", "before", "after", "change"]
        table = Table(*columns, title="Validation PSNR, dB")
        for gain in gains:
            noise = gain.noise if gain.task == "denoise" else f"{gain.task}, {gain.noise}"
            change = gain.after - gain.before
            figures = [f"{psnr:.2f}" for psnr in (gain.psnr_noisy, gain.before, gain.after)]
            colour = "green" if change > 0 else "red"
            named = [noise] if mixed else []
            table.add_row(f"{gain.sigma:g}", *named, gain.origin, *figures, f"[{colour}]{change:+.2f}")
        Console().print(table)
    return report(result)
