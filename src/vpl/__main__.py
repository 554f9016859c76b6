"""`python -m vpl`."""

import sys

from vpl.cli import main

sys.exit(main())
