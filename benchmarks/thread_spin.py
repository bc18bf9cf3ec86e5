"""What does it cost that waiting threads spin, on a quiet machine and beside one busy process?

A pretraining step of recipe `tiny` (64 images of 64 pixels, bf16 where the processor has it) on all threads, with
libgomp's own number of spins and with the program's, and on one thread; each in a process of its own, in an order that
turns with the round, alone and beside a process that counts.

    python benchmarks/thread_spin.py --rounds 7 -o benchmarks/results/thread_spin.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from measure import report, spread

from beitcli.runtime.thread_spin import SPINS

PROGRAM = Path(__file__).resolve().parents[1]
STEPS = """
import sys, time, torch
import torch.nn.functional as F
from beitcli.config.architecture import Architecture
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.runtime.compute.cpu_matmul import has_bf16_units

torch.manual_seed(0)
model = MaskedImageModel(Architecture(image_size=(64, 64), patch_size=8, width=128, depth=4, heads=4), 256)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
images, mask = torch.rand(64, 3, 64, 64), torch.zeros(64, 64, dtype=torch.bool)
mask[:, :25] = True
tokens = torch.randint(256, (64 * 25,))

def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16_units()):
        loss = F.cross_entropy(model(images, mask).float(), tokens)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

for _ in range(3):
    step()
number, begun = 0, time.perf_counter()
while time.perf_counter() - begun < float(sys.argv[1]):
    step()
    number += 1
print((time.perf_counter() - begun) / number)
"""
SPUN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
CONTESTANTS = {
    "all threads, libgomp's spins": {},
    f"all threads, {SPINS:,} spins": {"GOMP_SPINCOUNT": str(SPINS)},
    "all threads, no spins": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def seconds_a_step(variables: dict[str, str], duration: float) -> float:
    kept = {name: value for name, value in os.environ.items() if name not in SPUN}
    environment = kept | {"PYTHONPATH": str(PROGRAM)} | variables
    command = [sys.executable, "-c", STEPS, str(duration)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps, a measurement")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    names = list(CONTESTANTS)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place, busy in (("quiet", 0), ("one busy process", 1)):
        taken: dict[str, list[float]] = {name: [] for name in names}
        neighbours = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(busy)
        ]
        try:
            for number in range(args.rounds):
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    taken[name].append(seconds_a_step(CONTESTANTS[name], args.seconds))
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()
        found[place] = {name: spread(seconds) for name, seconds in taken.items()}
    report(__doc__.splitlines()[0], {"seconds_a_step": found}, args.output)


if __name__ == "__main__":
    main()
