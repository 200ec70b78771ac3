"""The same as `stan evaluate`, for those who prefer `python scripts/evaluate.py ...`."""

import sys

from stan.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
