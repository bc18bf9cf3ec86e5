"""`python -m beitcli`, the same as the `beit` executable."""

import sys

from beitcli.cli.app import main

sys.exit(main())
