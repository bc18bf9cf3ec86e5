"""Reads weights files of any program without executing code from them."""
