"""Data sets that are read over the network while training runs."""
