"""``python -m stan.evaluation``: a helper process of an evaluation on several devices; see `launch.Helpers`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from stan.config import from_dict
from stan.errors import StanError
from stan.evaluation.run import evaluate


def main() -> int:
    """A helper: the configuration comes through standard input."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        evaluate(from_dict(json.loads(sys.stdin.read()), "the evaluation that started this process"))
    except StanError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended: finished pieces are safe."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
