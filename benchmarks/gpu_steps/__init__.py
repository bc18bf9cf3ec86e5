"""The steps of `benchmarks/gpu.py`: one module a step, each run in a process of its own.

schedule.py   which steps there are, in which order, with which limits     (stdlib)
parent.py     starts, watches and ends the steps; rewrites the report      (stdlib)
report.py     gpu.json and gpu.md; goals.py: the table at its end          (stdlib)
child.py      runs one step; context.py: what it is given                  (torch)
"""
