"""The same as `stan finetune`, for those who prefer `python scripts/finetune.py ...`."""

import sys

from stan.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
