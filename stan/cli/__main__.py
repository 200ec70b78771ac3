"""``python -m stan.cli``: the same as the ``stan`` command."""

import sys

from stan.cli import main

sys.exit(main())
