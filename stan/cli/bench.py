"""``stan bench``: measure this installation: the search operator by itself, or training."""

from __future__ import annotations

import argparse

from stan.cli import bench_operator, bench_train

HELP = "time and weigh the search operator, or training, on this machine"
KINDS = {"op": bench_operator, "train": bench_train}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure; each kind has its own arguments."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, module in KINDS.items():
        kind = kinds.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EPILOG)
        kind.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(kind)


def run(args: argparse.Namespace) -> int:
    """Measure."""
    return KINDS[args.what].run(args)
