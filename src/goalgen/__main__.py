"""``python -m goalgen`` is the command line."""

import sys

from goalgen.cli import main

sys.exit(main())
