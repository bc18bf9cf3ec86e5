"""Is `beit attn-map` on one photo as fast as the script that a user of transformers would write?

Whole processes in turn: the imports count. Both open the same folder (BEiT-B in transformers' layout, random weights)
and the same JPEG, take the last block's attention of a few patches, averaged over the heads, and write a PNG. The
script is the peer's way: `output_attentions=True` with eager attention, upscaled and blended with Pillow.

    python benchmarks/attn_map.py --rounds 7 -o benchmarks/results/attn_map.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import report, spread
from PIL import Image
from startup import run

PEER = """
import sys
import torch
from PIL import Image
from transformers import BeitImageProcessor, BeitModel
folder, photo, output = sys.argv[1:]
processor = BeitImageProcessor.from_pretrained(folder)
model = BeitModel.from_pretrained(folder, attn_implementation="eager").eval()
image = Image.open(photo).convert("RGB")
inputs = processor(images=image, return_tensors="pt")
with torch.no_grad():
    attention = model(**inputs, output_attentions=True).attentions[-1][0].mean(dim=0)
picture = image.resize((448, 448))
panels = []
for row, column in ((3, 3), (3, 10), (7, 7), (10, 3), (10, 10)):
    heat = attention[1 + row * 14 + column, 1:].reshape(14, 14)
    heat = Image.fromarray((heat / heat.max() * 255).byte().numpy()).resize((448, 448), Image.Resampling.BILINEAR)
    panels.append(Image.composite(Image.new("RGB", (448, 448), (255, 80, 0)), picture, heat))
sheet = Image.new("RGB", (448 * len(panels), 448))
for number, panel in enumerate(panels):
    sheet.paste(panel, (448 * number, 0))
sheet.save(output)
"""


def prepare(folder: Path) -> tuple[Path, Path, Path]:
    """(model, photo, script)."""
    import torch
    from transformers import BeitConfig, BeitImageProcessor, BeitModel

    torch.manual_seed(0)
    config = BeitConfig(use_shared_relative_position_bias=True, use_mask_token=True, layer_scale_init_value=0.1)
    model = BeitModel(config)
    model.save_pretrained(folder / "model")
    BeitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=90)
    (folder / "peer.py").write_text(PEER)
    return folder / "model", folder / "photo.jpg", folder / "peer.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model, photo, script = prepare(Path(made))
        ours = ["-m", "beitcli", "attn-map", photo, "--model", model, "-o", Path(made) / "ours.png", "--overwrite"]
        lines = {"script": [script, model, photo, Path(made) / "peer.png"], "beit attn-map": ours}
        taken: dict[str, list[float]] = {name: [] for name in lines}
        worked: dict[str, list[float]] = {name: [] for name in lines}
        for number in range(-1, args.rounds):
            for name in list(lines) if number % 2 else list(lines)[::-1]:
                seconds, cpu, _ = run(list(map(str, lines[name])))
                if number >= 0:
                    taken[name].append(seconds)
                    worked[name].append(cpu)
    theirs, work = taken["script"], worked["script"]
    results = {
        name: {
            "seconds": spread(seconds),
            "times_faster": spread([their / own for their, own in zip(theirs, seconds, strict=True)]),
            "cpu_seconds": spread(worked[name]),
            "times_less_cpu": spread([their / own for their, own in zip(work, worked[name], strict=True)]),
        }
        for name, seconds in taken.items()
    }
    for name, its in results.items():
        seconds, ratio, less = its["seconds"], its["times_faster"], its["times_less_cpu"]
        sys.stderr.write(
            f"{name}: {seconds['median']:.2f} s ({seconds['low']:.2f}-{seconds['high']:.2f}), "
            f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f}), "
            f"processor {its['cpu_seconds']['median']:.2f} s, {less['median']:.2f}x\n"
        )
    report("attn-map on one photo against a script with transformers", results, args.output)


if __name__ == "__main__":
    main()
