"""The parts of `benchmarks/kills.py`.

processes.py   starts a run, watches its processes, reaps them               (Linux)
strikes.py     what is drawn for a kill, how it is done, what was promised   (Linux)
lineage.py     one run, killed and resumed again and again, and what must hold after each kill
"""
