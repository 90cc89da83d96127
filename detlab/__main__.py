"""`python -m detlab COMMAND`: the same as `detlab COMMAND`."""

from __future__ import annotations

import sys

from detlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
