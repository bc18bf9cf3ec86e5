"""The YAML header of a README.md, which model hubs read.

Every text that comes from a checkpoint, its classes or its data is quoted: it may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HUB_METRICS = {  # the hub's names of ours
    "top1": "accuracy", "top5": "accuracy", "mean_ap": "map", "micro_f1": "f1", "miou": "mean_iou", "ap": "map",
    "masked_accuracy": "accuracy",
}  # fmt: skip
PIPELINES = {  # by kind of checkpoint
    "classifier": "image-classification", "segmenter": "image-segmentation", "detector": "object-detection",
}  # fmt: skip
UNKNOWN_LICENSE = "unknown"  # the hub's word for a run's: it is for the owner of the data to say
FEATURES = "image-feature-extraction"  # pipeline of all others


@dataclass(frozen=True)
class HubFacts:
    """What the header says.

    Attributes:
        name: Of the model.
        tags: Words of ours, unquoted.
        license: Its hub identifier; empty to leave it out.
        base_model: On the hub; empty for none.
        metrics: By our names.
        data: What they were measured on.
    """

    library: str
    pipeline: str
    name: str
    tags: Sequence[str]
    license: str = ""
    base_model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: str = ""


def front_matter(facts: HubFacts) -> list[str]:
    """Returns the lines of the header, with its fences."""
    lines = ["---", f"library_name: {facts.library}", f"pipeline_tag: {facts.pipeline}", "tags:"]
    lines += [f"- {tag}" for tag in facts.tags]
    if facts.license:
        lines.append(f"license: {yaml_text(facts.license)}")
    if facts.base_model:
        lines.append(f"base_model: {yaml_text(facts.base_model)}")
    metrics = {name: value for name, value in facts.metrics.items() if name in HUB_METRICS}
    if metrics:
        lines += ["metrics:", *(f"- {name}" for name in dict.fromkeys(HUB_METRICS[name] for name in metrics))]
    if metrics and facts.pipeline in PIPELINES.values():
        lines += ["model-index:", f"- name: {yaml_text(facts.name)}", "  results:", "  - task:"]
        lines += [f"      type: {facts.pipeline}", "    dataset:", f"      name: {yaml_text(facts.data)}"]
        lines += ["      type: imagefolder", "    metrics:"]
        for name, value in metrics.items():
            lines += [f"    - type: {HUB_METRICS[name]}", f"      name: {name}", f"      value: {float(value)!r}"]
    return [*lines, "---"]


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
