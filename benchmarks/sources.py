"""Opening large data: how long the first and every later time, and what it costs in memory.

    python benchmarks/sources.py [--output benchmarks/results/sources.json] [--tar 1000 ... --folder 1000 ...]

Each opening is a process of its own, with a cache of its own for "first"; files are as warm as the system keeps them.
Memory is the growth of the resident set from before the opening to after it, and its peak. Parquet: images a second in
the order of training, which keeps to a window of row groups, against a permutation of all rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import gather_interleaved, report, spread

_CLASSES = 100


def make_tar(path: Path, members: int) -> Path:
    content = (b"0123456789abcdef" + bytes(496))[:512]
    with path.open("wb") as file:
        for number in range(members):
            member = tarfile.TarInfo(f"class{number % _CLASSES:03d}/image{number:08d}.jpg")
            member.size = 16
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + content)
        file.write(bytes(10_240))
    time.sleep(2.5)  # what has changed just now is not kept
    return path


def make_folder(root: Path, files: int) -> Path:
    for number in range(_CLASSES):
        (root / f"class{number:03d}").mkdir(parents=True)
    for number in range(files):
        os.close(os.open(root / f"class{number % _CLASSES:03d}" / f"image{number:08d}.jpg", os.O_CREAT))
    time.sleep(2.5)
    return root


def resident() -> int:
    """Bytes; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_once(path: str) -> dict[str, float]:
    """What one opening takes, in a process that has done nothing else."""
    from beitcli.data.sources.open_data import open_data

    gc.collect()
    before = resident()
    start = time.perf_counter()
    source = open_data([path])
    seconds = time.perf_counter() - start
    gc.collect()
    return {"images": len(source), "seconds": seconds, "megabytes": (resident() - before) / 1e6,
            "peak_megabytes": (peak() - before) / 1e6}  # fmt: skip


def openings(path: Path, rounds: int, cache: Path) -> dict[str, Any]:
    """First and second opening by turns."""
    taken: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        for which in taken:
            done = subprocess.run(
                [sys.executable, __file__, "--once", str(path)],
                env={**os.environ, "BEIT_CACHE_DIR": str(cache)}, check=True, capture_output=True, text=True,
            )  # fmt: skip
            taken[which].append(json.loads(done.stdout))
    measured = {
        f"{which}_{figure}": spread([each[figure] for each in results])
        for which, results in taken.items()
        for figure in ("seconds", "megabytes", "peak_megabytes")
    }
    index = sum(each.stat().st_size for each in (cache / "indexes").iterdir())
    return {"images": taken["first"][0]["images"], "index_megabytes": index / 1e6, **measured}


def shuffled_reading(folder: Path, rounds: int) -> dict[str, Any]:
    """1,000 images of 20 kB out of 400 row groups of 100."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from beitcli.data.loading.sampler import KeyedPermutation, WindowedPermutation
    from beitcli.data.sources.open_data import open_data

    pixels = np.random.default_rng(0).bytes(20_000)
    table = pa.table({"image": pa.array([pixels] * 10_000)})
    for number in range(4):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=100, use_dictionary=False)
    source = open_data([f"{folder}/*.parquet"])
    blocks = source.blocks()
    assert blocks is not None
    orders = {
        "window of row groups": WindowedPermutation(blocks, 0),
        "permutation of all rows": KeyedPermutation(len(source), 0),
    }

    def read(order: WindowedPermutation | KeyedPermutation) -> None:
        for index in order.indices(np.arange(1000))[1].tolist():
            source.read(index)
        source._held.clear()  # type: ignore[attr-defined]

    contestants = {name: (lambda order=order: read(order)) for name, order in orders.items()}
    results = gather_interleaved(contestants, rounds, peer="permutation of all rows")
    return {"row_groups": len(blocks.lengths), "window": blocks.together, "images_read": 1000, "orders": results}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tar", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=int, nargs="*", default=[1000, 10_000, 100_000, 200_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        sys.stdout.write(json.dumps(open_once(options.once)))
        return
    results: dict[str, Any] = {"tar": [], "folder": []}
    for kind, make in (("tar", make_tar), ("folder", make_folder)):
        for count in getattr(options, kind):
            with tempfile.TemporaryDirectory() as folder:
                data = make(Path(folder) / ("x.tar" if kind == "tar" else "data"), count)
                results[kind].append(openings(data, options.rounds, Path(folder) / "cache"))
    with tempfile.TemporaryDirectory() as folder:
        results["parquet"] = shuffled_reading(Path(folder), options.rounds)
    report("How long does data of many images take to open, and what does it cost in memory?", results, options.output)


if __name__ == "__main__":
    main()
