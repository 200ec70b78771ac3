"""``stan bench op``: measure this installation's operator against other ways of doing the same."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stan.cli import measuring
from stan.errors import StanError

if TYPE_CHECKING:
    from stan.experiments.operator_bench.cases import Case

HELP = "time and weigh the search operator against plain PyTorch on this machine"

EPILOG = """\
Every method runs the same problem in one run, in turn, after its matches have been compared with ours. A
method that does not fit in memory or takes too long is named as such. The first method asked for is the
yardstick of the ratios.

  stan bench op --quick
  stan bench op --size 128x128 --size 480x854 --methods native,candidates --json bench.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure and how long."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    add("--quick", action="store_true", help="three small rows, in well under a minute")
    size = "only this frame size, with the goal's settings; repeatable"
    add("--size", action="append", metavar="HxW", help=size)
    add("--case", action="append", metavar="NAME", help="only this row of the table; repeatable")
    add("--methods", help="comma-separated, the yardstick first; own ones as FILE.py (default: all)")
    add("--seconds", type=float, help="time for each method, row and pass (default: 3; quick: 0.5)")
    add("--limit", type=float, default=60, help="give a call up after this many seconds (default: 60)")
    add("--memory", type=float, help="GiB a method may take on the CPU (default: 60 %% of what is free)")
    measuring.add_common_arguments(parser)
    add("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the files."""
    import torch
    from rich.console import Console

    from stan.experiments.operator_bench.bench import Settings, run_bench
    from stan.experiments.operator_bench.methods import METHODS, method
    from stan.experiments.operator_bench.report import disagreements, markdown, print_tables

    if args.device == "cuda" and not torch.cuda.is_available():
        raise StanError("--device cuda: torch finds no CUDA device here; leave it out to measure the CPU")
    measuring.prepare(args.threads, args.json, args.markdown)
    methods = tuple(args.methods.split(",")) if args.methods else tuple(METHODS)
    for name in methods:
        try:
            method(name)
        except ValueError as error:
            raise StanError(f"--methods: {error}") from None
    settings = Settings(
        device=args.device,
        methods=methods,
        seconds=args.seconds if args.seconds is not None else (0.5 if args.quick else 3.0),
        limit=args.limit,
        memory=None if args.memory is None else int(args.memory * 2**30),
    )
    console = Console()
    cases = _cases(args)
    with measuring.counting(
        console, "measuring the machine's ceilings", len(cases), "rows measured"
    ) as on_row:
        report = run_bench(cases, settings, on_row)
    print_tables(report, console)
    measuring.keep(console, args.json, report.as_dict())
    measuring.keep(console, args.markdown, markdown(report))
    return 1 if disagreements(report) else 0


def _cases(args: argparse.Namespace) -> list[Case]:
    """The rows asked for."""
    from stan.experiments.operator_bench.cases import GOAL, table

    cases = table(args.device, args.quick)
    if args.size:
        sized = []
        for text in args.size:
            height, _, width = text.lower().partition("x")
            if not (height.isdigit() and width.isdigit() and int(height) > 9 and int(width) > 9):
                raise StanError(f"--size {text}: expected HxW in pixels, each at least 10, as 480x854")
            sized.append(replace(GOAL, name=text, height=int(height), width=int(width)))
        return sized
    if args.case:
        cases = [*cases, *(case for case in table("cuda") if case.name not in {c.name for c in cases})]
        names = {case.name: case for case in cases}
        unknown = [name for name in args.case if name not in names]
        if unknown:
            raise StanError(f"--case {unknown[0]}: no such row; choose from {', '.join(names)}")
        return [names[name] for name in args.case]
    return cases
