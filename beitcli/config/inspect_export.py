"""Settings of `inspect` and of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from beitcli.config.common import MODEL_HELP, overwrite_option
from beitcli.config.fields import option
from beitcli.config.output_formats import require_folder_name

LAYOUTS = {"timm": "timm's", "hf": "Hugging Face's", "official": "the release's .pth", "onnx": "an ONNX graph"}


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    command: ClassVar[str] = "inspect"
    ref: str = option("", f"{MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="REF")
    tensors: bool = option(False, "Also list every tensor and its shape.", panel="Output")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    command: ClassVar[str] = "export"
    model: str = option("", f"{MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL")
    to: Literal["timm", "hf", "official", "onnx"] = option(
        "hf",
        f"Format to write: {LAYOUTS['timm']}, {LAYOUTS['hf']}, {LAYOUTS['official']}, or {LAYOUTS['onnx']}.",
        panel="Output",
        required=True,
    )
    output: str = option(
        "",
        "Folder to create; new or empty. For onnx also NAME.onnx, one file.",
        panel="Output",
        required=True,
        flags=("-o", "--output"),
        metavar="DIR",
    )
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        if self.to != "onnx" or Path(self.output).suffix.lower() != ".onnx":
            require_folder_name(self.output)
