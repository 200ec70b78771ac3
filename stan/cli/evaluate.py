"""``stan evaluate``: figures of one or more checkpoints and baselines, by a named protocol."""

from __future__ import annotations

import argparse

from stan.cli.common import CONFIG_EPILOG, add_config_arguments, load_config

HELP = "evaluate checkpoints and baselines by a named protocol; the same command again goes on"

EPILOG = """
What to evaluate, in CONFIG or as key=value:
  checkpoint=FILE                          one checkpoint, or a baseline by name (docs/evaluation.md)
  checkpoint=[a.ckpt,b.ckpt,nlmeans]       several, side by side
  evaluation.protocol=davis-85             what is measured how (docs/evaluation.md lists the protocols)
  evaluation.sigmas=[10,30,50]             noise levels, 8-bit units
  evaluation.max_frames=25                 a cap of your own (the table says so)
  evaluation.split=val                     another split list than the protocol's (the table says so)
  evaluation.temporal_gain=true            what each method has from other frames, at the price of a second run
  evaluation.sequences=[dog,judo]          some sequences only (the table says so)
  data.root=DIR  output=DIR                where the data is, where the results go

OUTPUT receives results.csv, results.json, report.md, report.html and parts/ (finished pieces).
Several GPUs: trainer.devices=4, or torchrun --nproc-per-node 4 scripts/evaluate.py CONFIG key=value ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_config_arguments(parser)
    parser.epilog = CONFIG_EPILOG + EPILOG


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and say where the results are."""
    config = load_config(args)
    from rich.console import Console

    from stan.evaluation.devices import Ranks
    from stan.evaluation.facts import lead
    from stan.evaluation.run import evaluate
    from stan.evaluation.tables import terminal

    results = evaluate(config)
    if Ranks.of_environment().rank == 0:
        console = Console()
        console.print(terminal(results))
        console.print(lead(results), highlight=False, soft_wrap=True)
        for name in ("results.csv", "results.json", "report.md", "report.html"):
            print(f"{config.output}/{name}")
    return 0
