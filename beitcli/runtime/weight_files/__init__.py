"""Reads weights files of any program without running what they hold."""
