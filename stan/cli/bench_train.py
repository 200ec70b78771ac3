"""``stan bench train``: how fast networks train here, and where the time of a step goes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stan.cli import measuring
from stan.errors import StanError

if TYPE_CHECKING:
    from stan.config import Config

HELP = "how fast networks train here, and where the time of a step goes"

CONFIG = "train/stan_tiny.yaml"

EPILOG = f"""\
Steps of the real trainer, on synthetic clips unless --own-data is given: first timed as they are, then some under
torch's profiler. Nothing is left behind but the file asked for. CONFIG may be left out: it is {CONFIG} then.
Options stand behind the key=value words.

  stan bench train
  stan bench train configs/train/davis_small.yaml data.crop=64 data.batch_size=1 --steps 5
  stan bench train --models stan_tiny,unet_tiny --json bench.json
  stan bench train configs/train/stan_tiny.yaml data.root=data/DAVIS --own-data --operations 20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train and how long."""
    add = parser.add_argument
    add("config", metavar="CONFIG", nargs="?", help=f"YAML file (default: {CONFIG})")
    add("overrides", metavar="key=value", nargs="*", help="settings laid over CONFIG")
    add("--models", help="comma-separated networks (default: the configuration's)")
    add("--steps", type=int, default=20, help="steps that are timed (default: %(default)s)")
    add("--profiled", type=int, default=5, help="steps after them under the profiler (default: %(default)s)")
    add("--own-data", action="store_true", help="train on the configuration's data, not on synthetic clips")
    backends = "comma-separated backends of the search: native, reference (default: what training takes)"
    add("--operators", help=backends)
    add("--operations", type=int, default=0, metavar="N", help="also name the N costliest operations")
    measuring.add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells of itself on standard error
    from rich.console import Console

    from stan.experiments.training_bench.bench import Settings, run_bench
    from stan.experiments.training_bench.report import print_tables

    for name, least in (("steps", 1), ("profiled", 1), ("operations", 0)):
        value = getattr(args, name)
        if value < least:
            raise StanError(f"--{name} {value}: at least {least} is needed")
    measuring.prepare(args.threads, args.json)
    configs = _configs(args)
    settings = Settings(
        steps=args.steps,
        profiled=args.profiled,
        own_data=args.own_data,
        operators=tuple(args.operators.split(",")) if args.operators else (None,),
        operations=max(args.operations, 30),
    )
    console = Console()
    count = len(configs) * len(settings.operators)
    with measuring.counting(console, f"training, {count} in all", count, "trained") as on_row:
        report = run_bench(configs, settings, on_row)
    print_tables(report, console, args.operations)
    measuring.keep(console, args.json, report.as_dict())
    return 0


def _configs(args: argparse.Namespace) -> list[Config]:
    """The configuration, once for each network asked for."""
    from stan import config

    path, words = args.config or CONFIG, list(args.overrides)
    if "=" in path and not Path(path).exists():  # CONFIG was left out
        path, words = CONFIG, [path, *words]
    if not args.models:
        return [config.load(path, words)]
    return [config.load(path, [*words, f"model.name={name}"]) for name in args.models.split(",")]
