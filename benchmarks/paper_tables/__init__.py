"""The tables of `paper.py`: what each one runs, and how its rows are written."""
