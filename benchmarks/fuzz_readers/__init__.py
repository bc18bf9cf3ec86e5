"""The parts of `benchmarks/fuzz.py`: what reads foreign bytes, a target each, and how it is driven and contained.

target.py        what a target is
mutators.py      mutations that get past lengths and checksums
containment.py   the process of a target: atheris, limits, findings                  (needs atheris)
pictures.py      images and masks
collections.py   tar, WebDataset, parquet, lists, tables, COCO
weights.py       safetensors, torch files, the configs beside them
records.py       settings, runs, caches, token files
hub.py           what a server answers
"""
