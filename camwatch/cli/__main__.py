"""``python -m camwatch.cli``."""

import sys

from camwatch.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
