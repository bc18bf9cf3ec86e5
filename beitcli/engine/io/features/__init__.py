"""Finished files of features: what they hold, and a module for each format, found in `formats.py`."""
