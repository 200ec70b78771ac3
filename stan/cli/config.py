"""``stan config``: print the resolved configuration."""

from __future__ import annotations

import argparse

from stan.cli.common import add_config_arguments, load_config

HELP = "print the resolved configuration as YAML, every key with its meaning"


add_arguments = add_config_arguments


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    from stan.config import to_yaml

    print(to_yaml(load_config(args)), end="")
    return 0
