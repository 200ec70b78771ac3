"""`stan prepare`: bring a data set to disk, check every frame, and decode it into the cache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stan.errors import ConfigError

if TYPE_CHECKING:
    from stan.data.prepare import Prepared

HELP = "download, unpack, check and decode a data set, or make the synthetic one"

EPILOG = """\
examples:
  stan prepare davis --download                      both official archives (1.0 GB), to data/DAVIS
  stan prepare davis --archive DAVIS-2017-trainval-480p.zip DAVIS-2017-test-dev-480p.zip
  stan prepare davis --root /datasets/DAVIS          check what is there, and decode it
  stan prepare set8 --source ~/Set8                  copy eight folders of PNG frames to data/Set8
  stan prepare folder --root data/mine               your own frames or videos
  stan prepare synthetic --root data/synthetic       no download: made from scikit-image's photographs

A broken download goes on when the command is repeated. See docs/data.md for layouts and the cache.
"""
_ROOTS = {"davis": "data/DAVIS", "set8": "data/Set8", "synthetic": "data/synthetic", "folder": "data/mine"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("kind", choices=list(_ROOTS), help="which data set")
    add("--root", type=Path, help="its folder (default data/DAVIS, data/Set8, ...)")
    origin = parser.add_mutually_exclusive_group().add_argument
    origin("--download", action="store_true", help="fetch it from its authors, or from --url")
    origin("--archive", type=Path, nargs="+", default=[], metavar="FILE", help="unpack zip or tar files")
    origin("--source", type=Path, metavar="DIR", help="copy from an unpacked folder")

    fetch = parser.add_argument_group("download").add_argument
    address = "fetch these archives instead; an address that ends in / is a folder with the official names"
    fetch("--url", nargs="+", default=[], metavar="URL", help=address)
    fetch("--subset", choices=("all", "trainval", "test-dev"), default="all", help="which archives of davis")
    fetch("--sha256", nargs="+", default=[], metavar="HEX", help="checksums of the archives, in order")
    fetch("--keep", action="store_true", help="keep the archives in ROOT/.downloads")

    cache = parser.add_argument_group("decoded cache").add_argument
    cache("--cache", type=Path, metavar="DIR", help="its folder (as data.cache in training)")
    cache("--no-cache", action="store_true", help="check every frame, but keep no decoded copy")

    made = parser.add_argument_group("synthetic").add_argument
    made("--seed", type=int, default=0, help="seed of the scenes (default 0)")
    made("--size", type=_size, default=(160, 240), metavar="WxH", help="frame size (default 240x160)")
    made("--frames", type=int, default=10, help="frames a sequence (default 10)")
    made("--train", type=int, default=12, help="training sequences (default 12)")
    made("--val", type=int, default=3, help="held-out sequences (default 3)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from stan.data.prepare import davis_urls, prepare
    from stan.data.synthetic import write_synthetic

    root = args.root or Path(_ROOTS[args.kind])
    kind = args.kind
    urls: list[str] = []
    if args.url and not args.download:
        raise ConfigError("--url needs --download")
    if kind == "synthetic":
        if args.download or args.archive or args.source:
            raise ConfigError("synthetic data is made here: leave out --download, --archive and --source")
        write_synthetic(
            root, seed=args.seed, size=args.size, frames=args.frames, train=args.train, val=args.val
        )
        kind = "davis"
    elif args.download:
        if kind == "davis" and (not args.url or args.url[0].endswith("/")):
            urls = davis_urls(root, args.subset, args.url[0] if args.url else None)
        elif args.url:
            urls = args.url
        else:
            raise ConfigError(
                f"no address is known for {kind}: give one by --url, or a file by --archive, "
                "or an unpacked folder by --source"
            )
    if len(args.sha256) > len(urls):
        raise ConfigError(f"{len(args.sha256)} checksums for {len(urls)} downloads (--sha256)")
    prepared = prepare(
        kind,
        root,
        urls=urls,
        archives=args.archive,
        source=args.source,
        checksums=args.sha256,
        keep=args.keep,
        cache=args.cache,
        build_cache=not args.no_cache,
    )
    _report(args.kind, prepared)
    return 0


def _report(kind: str, prepared: Prepared) -> None:
    sizes = sorted({(height, width) for _, _, height, width in prepared.sequences})
    shown = ", ".join(f"{width}x{height}" for height, width in sizes[:4]) + (" ..." if sizes[4:] else "")
    print(
        f"{kind} in {prepared.root}: {len(prepared.sequences)} sequences, {prepared.frames} frames, {shown}"
    )
    print("every frame decodes and has its sequence's size")
    for name, count in prepared.lists.items():
        print(f"  split {name}: {count} sequences")
    for note in prepared.notes:
        print(f"  note: {note}")
    if prepared.cache is not None:
        size, folder = prepared.cache
        print(f"decoded cache: {size / 1e9:.2f} GB in {folder}")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 240x160")
    return int(height), int(width)
