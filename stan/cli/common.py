"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stan.config import Config

CONFIG_EPILOG = """\
CONFIG is a YAML file such as those under configs/; key=value words are laid over it, e.g.
  data.root=data/DAVIS trainer.max_steps=300 noise.sigma=[10,30,50] evaluation.max_frames=10
`stan config CONFIG` prints every key with its meaning.
"""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and any number of key=value words."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings laid over CONFIG")
    parser.epilog = CONFIG_EPILOG


def load_config(args: argparse.Namespace) -> Config:
    """The configuration that the arguments name; ``train/demo.yaml`` is also found among ours."""
    from stan import config

    return config.load(args.config, args.overrides)


def picture_size(text: str) -> tuple[int, int]:
    """Width and height of "1280x720", for `add_argument(type=...)`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH, e.g. 1280x720")
    return int(width), int(height)


def temporal_window(args: argparse.Namespace) -> dict[str, Any]:
    """What --temporal-window changes of a network's settings, for `stan.models.load`."""
    return {} if args.temporal_window is None else {"temporal_window": args.temporal_window}
