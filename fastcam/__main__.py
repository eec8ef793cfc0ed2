"""`python -m fastcam` is the `fastcam` command."""

import sys

from fastcam.cli import main

if __name__ == "__main__":
    sys.exit(main())
