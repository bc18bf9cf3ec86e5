"""Settings of `embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from beitcli.config.common import MODEL_HELP, POOL_SYNONYMS, Launched, ModelInputs, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import option
from beitcli.config.output_formats import unknown_format
from beitcli.errors import UsageError

FEATURE_SUFFIXES = (".npy", ".parquet", ".safetensors", ".jsonl")
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


def _inputs_help() -> str:
    return f"{data_help()} With --query also a file of features that `beit embed` wrote."


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ModelInputs, Launched):
    command: ClassVar[str] = "embed"
    unused_without: ClassVar[dict[str, tuple[str, ...]]] = {"query": ("preview", "k")}
    model: str = option("", f"{MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL")
    inputs: tuple[str, ...] = option((), _inputs_help, argument=True, required=True, panel="Data", metavar="INPUT")
    layer: int = option(
        -1,
        "Block whose output to take, counted from 1 as in the paper and in `eval` (`attn-map` counts "
        "from 0); -1: the last.",
        panel="Features",
    )
    pool: Literal["mean", "cls", "cls+mean", "none"] = option(
        "mean",
        "The mean of the patches, the class token, both side by side, or none: a feature of each patch.",
        panel="Features",
        synonyms=POOL_SYNONYMS,
    )
    feature_norm: bool = option(
        True,
        "LayerNorm without gain and bias of each token before pooling, as `eval --protocol knn` has it.",
        panel="Features",
        flags=("--feature-norm/--no-feature-norm",),
    )
    dtype: Literal["float32", "float16"] = option(
        "float32", "Type of the numbers in the file; .jsonl has text.", panel="Output"
    )
    output: str = option(
        "-",
        "Write features there: .npy (paths beside it in .json), .parquet, .safetensors or .jsonl; - is stdout. With "
        "--query: a contact sheet, .png or .jpg.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="FILE",
        suffixes=FEATURE_SUFFIXES,
    )
    resume: bool = option(False, "Resume FILE: skip the images that it already holds.", panel="Output")
    overwrite: bool = overwrite_option()
    query: str | None = option(
        None, "Show the images that are nearest to this one, by cosine.", panel="Neighbours", metavar="IMAGE"
    )
    k: int = option(10, "How many neighbours.", panel="Neighbours", ge=1)
    preview: bool = option(
        False, "Draw the image of --query and its neighbours in the terminal, on stderr.", panel="Neighbours"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise UsageError("--layer is 0; blocks count from 1.", "Give 1 for the first, -1 for the last.")
        self._require_suffix(SHEET_SUFFIXES if self.query else FEATURE_SUFFIXES)
        if self.query and self.pool == "none":
            raise UsageError("--query compares images, and --pool none gives patches.", "Give --pool mean or cls.")
        if self.query and self.resume:
            raise UsageError("--resume goes on with a file of features, and --query writes none.", "Leave it out.")
        if self.resume and self.output == "-":
            raise UsageError("--resume has no file to go on with.", "Give -o FILE.")

    @property
    def starts_over(self) -> str:
        return "--query is about all images together" if self.query else super().starts_over

    def _require_suffix(self, suffixes: tuple[str, ...]) -> None:
        if self.output != "-" and Path(self.output).suffix.lower() not in suffixes:
            error = unknown_format(self.output, suffixes)
            if not self.query and self.output.lower().endswith(SHEET_SUFFIXES):
                error.hint = f"A picture shows the neighbours of an image: give --query IMAGE. {error.hint}"
            raise error
