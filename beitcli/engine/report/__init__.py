"""The report of a run: what its files say, as plain data and as a page."""
