"""`python -m launcher VERB ...` is `launcher VERB ...`."""

import sys

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
