"""The same as `stan denoise`, for those who prefer `python scripts/denoise.py ...`."""

import sys

from stan.cli import main

if __name__ == "__main__":
    sys.exit(main(["denoise", *sys.argv[1:]]))
