"""``stan experiment``: the paper's experiments, and the ones its reviewers asked for, on any video."""

from __future__ import annotations

import argparse

HELP = "check the paper's claims on your own video; without a name: list the experiments"

EPILOG = """\
An experiment writes report.md (what was run and what came out), results.json, rows.csv and charts into its output
folder. Killed, the same command goes on where it stopped. Options stand behind the key=value words.

  stan experiment                                        what there is
  stan experiment alignment --quick                      at most 5 minutes on 2 cores, on synthetic clips
  stan experiment alignment root=data/DAVIS sigmas=[15,50] windows=[1,9,21]
  stan experiment alignment --settings                   every setting with its meaning
  stan experiment my_experiment.yaml                     a file like those in configs/experiments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("name", nargs="?", help="an experiment, or a YAML file; left out: list them")
    add("words", metavar="key=value", nargs="*", help="settings laid over the experiment's own")
    add("--quick", action="store_true", help="the short form: at most 5 minutes on 2 cores")
    add("--output", metavar="DIR", help="folder of the results")
    add("--report", action="store_true", help="compute nothing, only report what is there")
    add("--settings", action="store_true", help="print the settings with their meaning")


def run(args: argparse.Namespace) -> int:
    """Run the experiment, print its conclusions and the files."""
    from rich.console import Console

    from stan.config.printing import meaning, value_text
    from stan.experiments.frame import run_tasks
    from stan.experiments.report import write_report
    from stan.experiments.run import available, declared_settings, make_plan

    if args.name is None:
        for name, title in available().items():
            print(f"{name:12s} {title}")
        return 0
    if args.settings:
        values, declared = declared_settings(args.name)
        for key, value in values.items():
            print(f"{key}: {value_text(value)}  # {meaning(declared[key])}")
        return 0
    plan = make_plan(args.name, args.words, quick=args.quick, output=args.output)
    rows = run_tasks(plan.experiment, Console(stderr=True), compute=not args.report)
    report = plan.experiment.report(rows)
    files = write_report(plan, rows, report)
    console = Console()
    for text in report.conclusions:
        console.print(f"- {text.replace('**', '')}", highlight=False, soft_wrap=True)
    for file in files:
        print(file)
    return 0
