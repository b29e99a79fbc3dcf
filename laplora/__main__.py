"""``laplora COMMAND``, also ``python -m laplora``: ``laplora.commands`` has the commands."""

from __future__ import annotations

import sys

from laplora.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
