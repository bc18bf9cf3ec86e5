"""`python -m beitcli` and the `beit` executable. Signals count from here on, before anything slow is imported."""

import sys

from beitcli.runtime.distributed.parent_death import end_with_launcher
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import note_signals


def run() -> None:
    """Runs the command line and exits with its code."""
    note_signals()
    end_with_launcher()
    try:
        from beitcli.cli.app import main
    except (ImportError, OSError, MemoryError) as error:  # under a limit that is too low for Python itself
        lacking = shortage(error)
        if lacking is None:
            raise
        sys.stderr.write(f"error: {lacking.message}\n  {lacking.hint}\n")
        sys.exit(lacking.exit_code)
    sys.exit(main())


if __name__ == "__main__":
    run()
