"""The ``stan`` command.

Each sub-command is a module of this package with three names: ``HELP`` (one line), ``add_arguments(parser)``
and ``run(args) -> int`` (the exit code); ``EPILOG``, where there is one, ends its help. Heavy imports stay inside
``run`` so that ``--help`` is instant.

Exit codes: 0 done; 2 the input's fault, told in one line; 130 interrupted by Ctrl-C; 1 a defect of ours, also told
in one line, with its traceback in a file (see `stan.cli.failures`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from stan.cli.failures import told
from stan.cli.streams import keep_numbers, tell

# Threads that wait by spinning steal the cores from each other as soon as anything else runs as well: with
# two busy neighbours on 2 cores a training step took ten times as long. Must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = (
    "denoise",
    "models",
    "export",
    "prepare",
    "train",
    "finetune",
    "evaluate",
    "config",
    "doctor",
    "demo",
    "bench",
    "experiment",
    "visualize",
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, and takes words before, between and behind options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As its base, which gives up words that stand behind an option if others, or none, stood before it."""
        namespace, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if action.nargs == "*" and not action.option_strings:
                more = [word for word in rest if not word.startswith("-")]
                setattr(namespace, action.dest, [*getattr(namespace, action.dest), *more])
                rest = [word for word in rest if word.startswith("-")]
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {_cut(message)}; `{self.prog} --help` explains\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="stan",
        description="Train, evaluate, fine-tune and use space-time attention networks for video denoising.",
        epilog="`stan COMMAND --help` explains a command; README.md and docs/ explain the rest.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"stan.cli.{name}")
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=getattr(module, "EPILOG", None),
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    keep_numbers()
    # Importing torch makes so many objects that looking for dead ones takes 0.1 s of 1.4.
    gc.set_threshold(10_000)
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from stan.version import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        code = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that has gone shows here, not while Python ends
        return code
    except KeyboardInterrupt:
        tell("stan: interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; what Python still holds for it goes nowhere when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code, line = told(error)
        tell(f"stan: {_cut(line)}")
        return code


def _cut(line: str) -> str:
    """A message in a length that people read, whatever was put in."""
    return line if len(line) <= 700 else f"{line[:500]} ... {line[-150:]}"
