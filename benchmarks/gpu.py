"""Does the whole GPU path work, and how fast is it? One unattended run of under nine minutes on an H100 or H200.

    python benchmarks/gpu.py --out RESULTS                                    # everything, on CUDA
    python benchmarks/gpu.py --out RESULTS --only environment,rates,base
    python benchmarks/gpu.py --out RESULTS --device cpu --small               # the same code on two CPU cores

Every step is a process of its own with a time limit; a crash, a hang or a missing package costs that step alone.
RESULTS holds gpu.json, gpu.md (the table of goals near its top), gpu.log and tests-gpu.xml, rewritten after each step.
See benchmarks/README.md for the steps, their budgets, and a machine without network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from gpu_steps.parent import Parent
from gpu_steps.report import render
from gpu_steps.schedule import NAMES, groups_to_run


def names(text: str) -> set[str]:
    """Comma-separated steps."""
    given = {name for name in text.split(",") if name}
    unknown = given - set(NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no step {', '.join(sorted(unknown))}; steps: {', '.join(NAMES)}")
    return given


def limit(text: str) -> tuple[str, float]:
    """NAME=SECONDS."""
    name, _, seconds = text.partition("=")
    names(name)
    return name, float(seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the report; made where it is not there")
    parser.add_argument("--only", type=names, default=set(), metavar="A,B", help="run these steps alone")
    parser.add_argument("--skip", type=names, default=set(), metavar="A,B")
    parser.add_argument("--deadline", type=float, default=520, metavar="SECONDS", help="for everything")
    parser.add_argument("--limit", type=limit, action="append", default=[], metavar="NAME=SECONDS", help="of one step")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: the script works, no speed is said")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=Path, help="folder of compiled code and images, kept; default a temporary one, removed"
    )
    parser.add_argument("--step", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    given = parse()
    if given.step:
        from gpu_steps.child import run_step

        return run_step(given)
    given.limits = dict(given.limit)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.log").write_bytes(b"")
    scratch = given.scratch.resolve() if given.scratch else Path(tempfile.mkdtemp(prefix="beit-gpu-"))
    for folder in ("results", "logs"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    parent = Parent(given, out, scratch)
    try:
        code = parent.run(groups_to_run(given.only, given.skip, one_at_a_time=given.device == "cpu"))
    finally:
        if not given.scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.write("\n" + render(parent.document, table_only=True))
    return code


if __name__ == "__main__":
    sys.exit(main())
