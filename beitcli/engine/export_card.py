"""The model card of an export: README.md with the YAML header that the Hugging Face hub reads.

Every text that comes from a checkpoint, its classes or its data is quoted: it may hold anything.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli import __version__
from beitcli.config.problem import TRANSFORMERS_NAMES
from beitcli.escaping import markdown
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.locate import read_beside
from beitcli.runtime.metric_text import HELD_OUT
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import one_line

_LIBRARIES = {"hf": "transformers", "timm": "timm", "official": "pytorch"}
_PIPELINES = {"classifier": "image-classification"}  # of the others: image-feature-extraction
_HUB_METRICS = {"top1": "accuracy", "top5": "accuracy", "mean_ap": "map", "micro_f1": "f1"}  # the hub's names
_OPENS = {
    "hf": "from transformers import AutoImageProcessor, {kind}\n\n"
    'processor = AutoImageProcessor.from_pretrained("FOLDER")\nmodel = {kind}.from_pretrained("FOLDER").eval()',
    "timm": "import timm\n\n"
    'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
    "transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))",
    "official": 'import torch\n\nstate_dict = torch.load("FOLDER/model.pth", weights_only=False)["model"]',
}


@dataclass(frozen=True)
class Measured:
    """Metrics of a run at its checkpoint: by name, and the data that they were measured on."""

    metrics: dict[str, float]
    data: str


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
        "outputs": _outputs(checkpoint),
        "verified": verified,
    }
    lines = [f"# {markdown(title)}", "", *(f"- {name}: {markdown(value)}" for name, value in facts.items() if value)]
    if measured is not None:
        lines += [
            "",
            f"Measured on held-out images of {markdown(measured.data)}:",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {markdown(name)} | {value:.4f} |" for name, value in measured.metrics.items()]
    lines += ["", "```python", _OPENS[to].format(kind=hf_class), "```", ""]
    return "\n".join(["---", *_header(to, checkpoint, title, measured), "---", "", *lines])


def _outputs(checkpoint: CheckpointHandle) -> str:
    if checkpoint.kind == "classifier":
        what = {"single-label": "classes", "multi-label": "labels, each by a sigmoid", "regression": "numbers"}
        return f"{checkpoint.outputs} {what[checkpoint.problem]}"
    return f"{checkpoint.outputs} visual tokens" if checkpoint.kind == "masked-image-model" else ""


def _header(to: str, checkpoint: CheckpointHandle, title: str, measured: Measured | None) -> Iterator[str]:
    """Yields the lines of the YAML header."""
    pipeline = _PIPELINES.get(checkpoint.kind, "image-feature-extraction")
    yield f"library_name: {_LIBRARIES[to]}"
    yield f"pipeline_tag: {pipeline}"
    yield "tags:"
    own = ["beit", "vision", pipeline, *(["masked-image-modeling"] if checkpoint.kind == "masked-image-model" else [])]
    if checkpoint.kind == "classifier" and checkpoint.problem != "single-label":
        own.append(TRANSFORMERS_NAMES[checkpoint.problem].replace("_", "-"))
    yield from (f"- {tag}" for tag in own)
    license_name = _license(checkpoint)
    if license_name:
        yield f"license: {yaml_text(license_name)}"
    if checkpoint.reference.startswith("hf://"):
        yield f"base_model: {yaml_text(checkpoint.reference.removeprefix('hf://').partition('@')[0])}"
    if measured is None:
        return
    yield "metrics:"
    yield from (f"- {name}" for name in dict.fromkeys(_HUB_METRICS[name] for name in measured.metrics))
    yield "model-index:"
    yield f"- name: {yaml_text(title)}"
    yield "  results:"
    yield "  - task:"
    yield f"      type: {pipeline}"
    yield "    dataset:"
    yield f"      name: {yaml_text(measured.data)}"
    yield "      type: imagefolder"
    yield "    metrics:"
    for name, value in measured.metrics.items():
        yield f"    - type: {_HUB_METRICS[name]}"
        yield f"      name: {name}"
        yield f"      value: {value!r}"


def yaml_text(text: str) -> str:
    """Returns a text as YAML's double-quoted scalar, whatever is in it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    code = ord(char)
    if 0xD800 <= code < 0xE000:  # bytes of a file name that are no text
        return "\\ufffd"
    if char.isprintable():
        return char
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _license(checkpoint: CheckpointHandle) -> str | None:
    """Returns the licence that timm's config.json, or the README.md beside the weights, names."""
    if checkpoint.folder is not None or not checkpoint.weights.is_file():
        return None
    _, config, _ = read_beside(checkpoint.weights)
    cfg = config.get("pretrained_cfg")
    named = cfg.get("license") if isinstance(cfg, dict) else None
    return named if isinstance(named, str) and named else _license_of_card(checkpoint.weights.parent / "README.md")


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
            return line.removeprefix("license:").strip().strip("\"'") or None
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
    found = {name: records[-1].get(f"{HELD_OUT}{name}") for name in _HUB_METRICS} if records else {}
    metrics = {name: float(value) for name, value in found.items() if _is_measured(value)}
    named = config.get("val") or config.get("data")
    sources = [str(each) for each in named] if isinstance(named, list) else []
    data = ", ".join(each if "://" in each else Path(each).name or each for each in sources)
    return Measured(metrics, data) if metrics else None


def _is_measured(value: Any) -> bool:
    """Whether it is a number that a card can show; a log may hold NaN, or an integer beyond every float."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
