"""What does JPEG cost a pack: levels, bytes and decoding time, with half and with full resolution in colour.

python benchmarks/pack_encoding.py DATA --short-sides 320 --images 200 --output FILE

The photographs are decoded, shrunk, and encoded with quality 95, as `beit pack` does for what is no JPEG. Decoding is
in turn, `--rounds` times an image; ratios are of one image's processor times.
"""

from __future__ import annotations

import argparse
import time
from io import BytesIO

import numpy as np
from measure import report, spread
from PIL import Image

from beitcli.data.decode import decode_pixels
from beitcli.data.sources.open_data import open_data
from beitcli.engine.pack.encoding import shrunk

SUBSAMPLING = {"4:2:0": 2, "4:4:4": 0}  # Pillow's numbers; the first is its default


def encoded(pixels: np.ndarray, name: str, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=SUBSAMPLING[name])
    return file.getvalue()


def milliseconds(data: bytes) -> float:
    began = time.process_time()
    decode_pixels(data)
    return 1e3 * (time.process_time() - began)


def compared(images: list[np.ndarray], quality: int, rounds: int) -> dict[str, object]:
    levels: dict[str, list[float]] = {name: [] for name in SUBSAMPLING}
    sizes: dict[str, list[float]] = {name: [] for name in SUBSAMPLING}
    ratios: list[float] = []
    for pixels in images:
        files = {name: encoded(pixels, name, quality) for name in SUBSAMPLING}
        for name, data in files.items():
            levels[name].append(float(np.abs(decode_pixels(data).astype(np.int16) - pixels).mean()))
            sizes[name].append(float(len(data)))
        times = [[milliseconds(data) for data in files.values()] for _ in range(rounds)]
        half, full = np.median(times, axis=0)
        ratios.append(float(full / half))
    metrics: dict[str, object] = {
        name: {
            "levels": spread(levels[name]) | {"mean": float(np.mean(levels[name]))},
            "bytes_an_image": float(np.mean(sizes[name])),
        }
        for name in SUBSAMPLING
    }
    return metrics | {"times_slower_to_decode_444": spread(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--short-sides", type=int, nargs="*", default=[320])
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output")
    given = parser.parse_args()
    source = open_data([given.data])
    images = [source.pixels(index) for index in range(min(given.images, len(source)))]
    results: dict[str, object] = {"images": len(images), "quality": given.quality, "rounds": given.rounds}
    for side in (None, *given.short_sides):
        name = "every size" if side is None else f"shorter side {side}"
        results[name] = compared([shrunk(pixels, side) for pixels in images], given.quality, given.rounds)
    report("What does JPEG cost a pack?", results, given.output)


if __name__ == "__main__":
    main()
