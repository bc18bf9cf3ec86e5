"""Command-line interface: argument parsing, console output, exit codes. torch is imported only when a command runs."""
