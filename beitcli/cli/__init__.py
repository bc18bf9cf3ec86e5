"""The command line: words and pictures for a person. Nothing here imports torch before a command runs."""
