"""The same as `stan train`, for those who prefer `python scripts/train.py ...`."""

import sys

from stan.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
