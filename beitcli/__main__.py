"""`python -m beitcli` and the `beit` executable. Signals count from here on, before anything slow is imported."""

import sys

from beitcli.runtime.distributed.parent_death import end_with_launcher
from beitcli.runtime.signals import note_signals


def run() -> None:
    """Runs the command line and exits with its code."""
    note_signals()
    end_with_launcher()
    from beitcli.cli.app import main

    sys.exit(main())


if __name__ == "__main__":
    run()
