"""`python -m beitcli` and the `beit` executable. Signals count from here on, before anything slow is imported."""

import os
import sys

from beitcli.runtime.distributed.parent_death import end_with_launcher
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import note_signals, restore_signals
from beitcli.runtime.thread_spin import limit_thread_spin


def run() -> None:
    """Runs the command line and exits with its code."""
    note_signals()
    end_with_launcher()
    limit_thread_spin(os.environ)
    try:
        from beitcli.cli.app import main
        from beitcli.runtime.deferred_compiler import defer_compiler

        defer_compiler()
        code = main()
    except (ImportError, OSError, MemoryError) as error:  # under a limit that is too low for Python itself
        lacking = shortage(error)
        if lacking is None:
            raise
        if sys.stderr is not None:
            sys.stderr.write(f"error: {lacking.message}\n  {lacking.hint}\n")
        code = lacking.exit_code
    except KeyboardInterrupt:  # a second Ctrl-C before the command is known
        code = 130
    finally:
        restore_signals()
    sys.exit(code)


if __name__ == "__main__":
    run()
