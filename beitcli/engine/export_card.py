"""The model card of an export: README.md with the YAML header that the Hugging Face hub reads."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli import __version__
from beitcli.config.problem import TRANSFORMERS_NAMES
from beitcli.engine.onnx_export import output_name
from beitcli.engine.report.document import images_of
from beitcli.engine.report.front_matter import FEATURES, PIPELINES, UNKNOWN_LICENSE, HubFacts, front_matter
from beitcli.engine.report.run_state import document_in
from beitcli.escaping import markdown
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.locate import read_beside, split_part
from beitcli.runtime.metric_text import HELD_OUT, is_idle, measured_images
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import one_line

_LIBRARIES = {"hf": "transformers", "timm": "timm", "official": "pytorch", "onnx": "onnx"}
_METRICS = ("top1", "top5", "mean_ap", "micro_f1")
_OPENS = {
    "hf": "from transformers import AutoImageProcessor, {kind}\n\n"
    'processor = AutoImageProcessor.from_pretrained("FOLDER")\nmodel = {kind}.from_pretrained("FOLDER").eval()',
    "timm": "import timm\n\n"
    'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
    "transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))",
    "official": 'import torch\n\nstate_dict = torch.load("FOLDER/model.pth", weights_only=False)["model"]',
    "onnx": """import numpy as np
import onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("PHOTO")).convert("RGB")
{resize}
canvas = Image.new("RGB", ({width}, {height}), {fill})
canvas.paste(image, (-round((image.width - {width}) / 2), -round((image.height - {height}) / 2)))
pixels = (np.asarray(canvas) / 255 - {mean}) / {std}
pixel_values = pixels.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, {height}, {width})

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
{output} = session.run(None, {{"pixel_values": pixel_values}})[0]  # {shape}""",
}
_RESIZE = {  # by crop_mode
    "center": "scale = max({across} / image.width, {down} / image.height)",
    "border": "scale = min({across} / image.width, {down} / image.height)",
}


@dataclass(frozen=True)
class Measured:
    """Metrics of a run at its checkpoint: by name, and the data and the kind of images that they were measured on."""

    metrics: dict[str, float]
    data: str
    images: str


def export_card(to: str, checkpoint: CheckpointHandle, hf_class: str, verified: str) -> str:
    """Returns README.md.

    Args:
        hf_class: Class of transformers that opens it.
        verified: How it was verified, in a sentence.
    """
    measured = _measured(checkpoint)
    title = one_line(Path(checkpoint.reference).name or checkpoint.reference)
    height, width = checkpoint.architecture.image_size
    crop = checkpoint.crop
    mean, std = (", ".join(f"{value:g}" for value in part) for part in checkpoint.normalization)
    facts = {
        "kind": checkpoint.kind,
        "exported by": f"beit {__version__}",
        "images": f"{height} x {width} pixels, {crop.crop_mode}, {crop.pct((height, width)):g} of the resized side, "
        f"{crop.interpolation}",
        "normalization": f"mean {mean}; std {std}",
        "outputs": _outputs(to, checkpoint),
        "verified": verified,
    }
    lines = [f"# {markdown(title)}", "", *(f"- {name}: {markdown(value)}" for name, value in facts.items() if value)]
    if measured is not None:
        lines += [
            "",
            f"Measured on {measured.images} of {markdown(measured.data)}:",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {markdown(name)} | {value:.4f} |" for name, value in measured.metrics.items()]
    lines += ["", "```python", _OPENS[to].format(**_code(checkpoint, hf_class)), "```", ""]
    return "\n".join([*front_matter(_hub_facts(to, checkpoint, title, measured)), "", *lines])


def _code(checkpoint: CheckpointHandle, hf_class: str) -> dict[str, Any]:
    """Returns what the lines of `_OPENS` name."""
    (height, width), crop = checkpoint.architecture.image_size, checkpoint.crop
    down, across = crop.resized((height, width))
    as_torchvision = crop.crop_mode == "center" and height == width  # which rounds the longer side down
    side = "int(image.{0} * scale + 1e-6)" if as_torchvision else "round(image.{0} * scale)"
    sides = f"({side.format('width')}, {side.format('height')})"
    scale = _RESIZE.get(crop.crop_mode, "").format(down=down, across=across)
    size = sides if scale else f"({across}, {down})"
    resize = f"image = image.resize({size}, Image.Resampling.{crop.interpolation.upper()})"
    mean, std = checkpoint.normalization
    is_classifier = checkpoint.kind == "classifier"
    tokens = checkpoint.architecture.num_patches + 1
    return {
        "kind": hf_class,
        "height": height,
        "width": width,
        "resize": f"{scale}\n{resize}" if scale else resize,
        "fill": tuple(round(255 * channel) for channel in mean),
        "mean": [round(channel, 6) for channel in mean],
        "std": [round(channel, 6) for channel in std],
        "output": output_name(checkpoint),
        "shape": f"(1, {checkpoint.outputs if is_classifier else f'{tokens}, {checkpoint.architecture.width}'})",
    }


def _outputs(to: str, checkpoint: CheckpointHandle) -> str:
    if to == "onnx" and checkpoint.kind != "classifier":
        return "class token and patches before any head, as transformers' last_hidden_state"
    if checkpoint.kind == "classifier":
        what = {"single-label": "classes", "multi-label": "labels, each by a sigmoid", "regression": "numbers"}
        return f"{checkpoint.outputs} {what[checkpoint.problem]}"
    return f"{checkpoint.outputs} visual tokens" if checkpoint.kind == "masked-image-model" else ""


def _hub_facts(to: str, checkpoint: CheckpointHandle, title: str, measured: Measured | None) -> HubFacts:
    pipeline = PIPELINES["classifier"] if checkpoint.kind == "classifier" else FEATURES
    own = ["beit", "vision", pipeline, *(["masked-image-modeling"] if checkpoint.kind == "masked-image-model" else [])]
    if checkpoint.kind == "classifier" and checkpoint.problem != "single-label":
        own.append(TRANSFORMERS_NAMES[checkpoint.problem].replace("_", "-"))
    from_hub = checkpoint.reference.startswith("hf://")
    repository = split_part(checkpoint.reference)[0].removeprefix("hf://").partition("@")[0]
    return HubFacts(
        library=_LIBRARIES[to],
        pipeline=pipeline,
        name=title,
        tags=own,
        license=_license(checkpoint) or "",
        base_model=repository if from_hub else "",
        metrics=measured.metrics if measured else {},
        data=measured.data if measured else "",
    )


def _license(checkpoint: CheckpointHandle) -> str | None:
    """Returns the licence that timm's config.json, or the README.md beside the weights, names."""
    if checkpoint.folder is not None:  # a run's own card, in which its user may have named one
        return _license_of_card(checkpoint.run / "README.md")
    if not checkpoint.weights.is_file():
        return None
    _, config, _ = read_beside(checkpoint.weights)
    cfg = config.get("pretrained_cfg")
    named = cfg.get("license") if isinstance(cfg, dict) else None
    if isinstance(named, str) and named:
        return named
    folders = dict.fromkeys((checkpoint.weights.parent, Path(split_part(checkpoint.reference)[0])))
    return next(filter(None, (_license_of_card(folder / "README.md") for folder in folders)), None)


def _license_of_card(card: Path) -> str | None:
    try:
        lines = read_regular(card).decode(errors="replace").splitlines()
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            named = line.removeprefix("license:").strip().strip("\"'")
            return named if named not in ("", UNKNOWN_LICENSE) else None
    return None


def _measured(checkpoint: CheckpointHandle) -> Measured | None:
    """Returns the metrics of the run at the step of the checkpoint; None for others' checkpoints, or without any."""
    if checkpoint.folder is None or checkpoint.kind != "classifier":
        return None
    try:
        step = int(checkpoint.folder.path.name.rpartition("-")[2])
        text = (checkpoint.run / "metrics.jsonl").read_text(encoding="utf-8")
        config: dict[str, Any] = tomllib.loads((checkpoint.run / "config.toml").read_text(encoding="utf-8"))
        records = [record for record in map(parse_json, text.splitlines()) if record.get("step") == step]
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    names = [name for name in _METRICS if not is_idle(name, len(checkpoint.classes))]
    found = {name: records[-1].get(f"{HELD_OUT}{name}") for name in names} if records else {}
    metrics = {name: float(value) for name, value in found.items() if _is_measured(value)}
    named = config.get("val") or config.get("data")
    sources = [str(each) for each in named] if isinstance(named, list) else []
    data = ", ".join(each if "://" in each else Path(each).name or each for each in sources)
    on_training = document_in(checkpoint.folder.path, "trainer.json").get("on_training") is True
    number = records[-1].get(f"{HELD_OUT}images") if records else None
    images = images_of(on_training)
    if number is not None and _is_measured(number):
        images = measured_images(round(number), on_training=on_training)
    return Measured(metrics, data, images) if metrics else None


def _is_measured(value: Any) -> bool:
    """Whether it is a number that a card can show; a log may hold NaN, or an integer beyond every float."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
