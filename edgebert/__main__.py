"""`python -m edgebert`: the command line."""

import sys

from edgebert.cli import main

sys.exit(main())
