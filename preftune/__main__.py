"""`python -m preftune` is the command line `preftune`."""

import sys

from preftune.cli.main import main

sys.exit(main())
