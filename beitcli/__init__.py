"""BEiT as one command-line tool; the engine behind it is importable from here."""

__version__ = "0.1.0"
