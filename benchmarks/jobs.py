"""Do whole jobs compute as fast as their model can, and as a script over transformers?

`beit predict`, `embed` and `eval` of all photographs of a folder with a BEiT-S in transformers' layout (random weights,
ten classes), and `beit tokenize`, as whole processes. Each beside

- "limit": the same network on tensors that are there already, the same batch and threads, without reading a file;
- "script": what a user of transformers would write (a loop over batches of Pillow images through the processor).

Whole processes in turn, a round each. Images a second are of N photographs; "after the start" of the N - 1 that come
after the first, (N - 1) / (seconds of N - seconds of one), each from the same round.

    python benchmarks/jobs.py PHOTOS --tokenizer RUN --rounds 3 -o benchmarks/results/jobs.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measure import report, spread
from startup import run

BATCH, CLASSES, SIZE = 32, 10, 224
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import BeitForImageClassification, BeitImageProcessor
folder, photos, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
processor = BeitImageProcessor.from_pretrained(folder)
model = BeitForImageClassification.from_pretrained(folder).eval()
files = sorted(Path(photos).rglob("*.*"))
for start in range(0, len(files), batch):
    part = files[start : start + batch]
    inputs = processor(images=[Image.open(each).convert("RGB") for each in part], return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(dim=-1)
    for path, row in zip(part, scores):
        best, places = row.topk(5)
        print(json.dumps({"path": str(path), "top": list(zip(places.tolist(), best.tolist()))}))
"""
LIMIT = """
import sys
import torch
reference, images, batch, size, kind = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
if kind == "tokenizer":
    from beitcli.runtime.compute.device import Compute
    from beitcli.tokenizers.open import open_tokenizer
    tokenizer = open_tokenizer(reference)
    compute = lambda inputs: tokenizer.model.encode(tokenizer.model.preprocess(inputs))
else:
    from beitcli.models.checkpoints.build import open_backbone, open_classifier
    compute = (open_backbone if kind == "backbone" else open_classifier)(reference)[0]
inputs = torch.rand(batch, 3, size, size)
with torch.inference_mode():
    for start in range(0, images, batch):
        compute(inputs[: min(batch, images - start)])
"""


def prepare(folder: Path, photos: Path) -> dict[str, Path]:
    """The model, the photographs in two class folders, one photograph alone, and the scripts."""
    import torch
    from transformers import BeitConfig, BeitForImageClassification, BeitImageProcessor

    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=CLASSES,
        use_relative_position_bias=True, layer_scale_init_value=0.1,
    )  # fmt: skip
    BeitForImageClassification(config).save_pretrained(folder / "model")
    BeitImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder / "model")
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number, path in enumerate(files):
        place = folder / "many" / f"LABEL_{number % CLASSES}" / f"{number:05d}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (folder / "one" / "LABEL_0").mkdir(parents=True)
    shutil.copy(files[0], folder / "one" / "LABEL_0" / files[0].name)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "limit.py").write_text(LIMIT)
    return {name: folder / name for name in ("model", "many", "one", "script.py", "limit.py")}


def lines_of(job: str, made: dict[str, Path], tokenizer: str, size: int, count: int) -> dict[str, list[str]]:
    """Contestant to command line, of the folder with `count` photographs."""
    folder = str(made["many" if count > 1 else "one"])
    model, batch = str(made["model"]), ["--batch-size", str(BATCH), "--device", "cpu"]
    ours = {
        "predict": ["predict", model, folder, *batch, "--precision", "fp32"],
        "embed": ["embed", model, folder, *batch, "--precision", "fp32"],
        "eval": ["eval", model, folder, *batch, "--precision", "fp32"],
        "tokenize": ["tokenize", folder, "--tokenizer", tokenizer, "--size", str(size), *batch],
    }[job]
    reference, kind = (tokenizer, "tokenizer") if job == "tokenize" else (model, "classifier")
    pixels = size if job == "tokenize" else SIZE
    found = {
        "beit": ["-m", "beitcli", *ours],
        "limit": [str(made["limit.py"]), reference, str(count), str(BATCH), str(pixels), kind],
    }
    if job in ("predict", "eval"):
        found["script"] = [str(made["script.py"]), model, folder, str(BATCH)]
    return found


def arguments() -> argparse.ArgumentParser:
    """Paths are absolute: the jobs run in another folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=os.path.abspath)
    parser.add_argument("--tokenizer", required=True, type=os.path.abspath, help="a run of train-tokenizer")
    parser.add_argument("--tokenizer-size", type=int, default=112)
    parser.add_argument("--jobs", nargs="+", default=["predict", "embed", "eval", "tokenize"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output")
    return parser


def main() -> None:
    args = arguments().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder), Path(args.photos))
        count = sum(path.is_file() for path in made["many"].rglob("*"))
        results = {job: _measured(job, made, args, count) for job in args.jobs}
    report("Do whole jobs compute as fast as their model can?", {"photographs": count, "jobs": results}, args.output)


def _measured(job: str, made: dict[str, Path], args: argparse.Namespace, count: int) -> dict[str, object]:
    many = lines_of(job, made, args.tokenizer, args.tokenizer_size, count)
    one = lines_of(job, made, args.tokenizer, args.tokenizer_size, 1)
    whole: dict[str, list[float]] = {name: [] for name in many}
    after: dict[str, list[float]] = {name: [] for name in many}
    for number in range(args.rounds):
        for name in list(many) if number % 2 else list(many)[::-1]:
            seconds, alone = run(many[name])[0], run(one[name])[0]
            whole[name].append(count / seconds)
            after[name].append((count - 1) / (seconds - alone))
        sys.stderr.write(f"{job}: round {number + 1} of {args.rounds}\n")
    return {
        name: {
            "images_per_second": spread(whole[name]),
            "after_the_start": spread(after[name]),
            "share_of_the_limit": spread([a / b for a, b in zip(after[name], after["limit"], strict=True)]),
        }
        for name in many
    }


if __name__ == "__main__":
    main()
