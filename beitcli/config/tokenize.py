"""Settings of `tokenize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import Launched, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import option
from beitcli.config.output_formats import is_one_picture, require_folder_name
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(Launched):
    command: ClassVar[str] = "tokenize"
    unused_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "decode": (
            *("map", "codebook", "preview", "stats", "reconstruct", "resume", "limit", "split", "nul", "pages"),
            *("intensity_range", "size", "on_bad", "compile"),
        )
    }
    unused_without: ClassVar[dict[str, tuple[str, ...]]] = {"codebook": ("codes",)}
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the tokenizer; auto: fp32. Others are faster where the processor has them, and change some "
        "tokens: --stats says how many.",
        panel="Machine",
    )
    compile: bool = option(
        False, "torch.compile the tokenizer, where it is not fp32.", panel="Machine", flags=("--compile/--no-compile",)
    )
    inputs: tuple[str, ...] = option((), data_help, argument=True, panel="Data", metavar="INPUT")
    tokenizer: str = option(
        "",
        "dall-e; a folder with OpenAI's encoder.pkl; a file of BEiT's own dVAE; hf://OWNER/NAME; a run of "
        "train-tokenizer or pretrain.",
        panel="Tokenizer",
        required=True,
        metavar="TOKENIZER",
    )
    split: str | None = option(None, "Split to read, where the data has splits; default val.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    output: str = option(
        "-",
        "Where the tokens go: .jsonl, .npz, .safetensors, .parquet; - is stdout.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="FILE",
        suffixes=(".jsonl", ".npz", ".safetensors", ".parquet"),
    )
    size: int | None = option(
        None,
        "Side of the square the image is cut to; default the tokenizer's own.",
        panel="Tokenizer",
        metavar="PX",
        ge=1,
    )
    batch_size: int = option(64, "Images per forward pass.", panel="Machine", ge=1)
    on_bad: Literal["report", "skip", "fail"] = option("report", "What to do with an unreadable image.", panel="Data")
    resume: bool = option(False, "Skip what FILE already holds.", panel="Output")
    reconstruct: str | None = option(
        None, "Write each image beside its decoded tokens, as PNG, into DIR.", panel="Output", metavar="DIR"
    )
    overwrite: bool = overwrite_option()
    decode: bool = option(
        False, "Decode instead: read token lines (INPUT or stdin), write PNG files into -o DIR.", panel="Output"
    )
    stats: bool = option(
        False,
        "Print one summary instead of tokens; with -o (.png, .jpg, .webp) also draw it as charts.",
        panel="Output",
    )
    map: str | None = option(
        None,
        "Draw each image's tokens in colours that are alike where codes are: a folder, or a picture (of several "
        "images a sheet).",
        panel="Output",
        metavar="OUT",
    )
    codebook: str | None = option(
        None,
        "Draw the most frequent codes: the mean of their patches, what they decode to, their count.",
        panel="Output",
        metavar="OUT.png",
    )
    codes: int = option(64, "Number of codes that --codebook draws.", panel="Output", metavar="N", ge=1, le=1024)
    preview: bool = option(False, "Draw the token maps in the terminal, on stderr.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode and self.gpus > 1:
            raise UsageError(f"--gpus is {self.gpus}, but --decode computes in one process.", "Leave it out.")
        require_folder_name(self.reconstruct, "--reconstruct")
        if self.decode and self.output != "-":
            require_folder_name(self.output)
        if self.resume and not self.decode and (self.output == "-" or self.stats):
            raise UsageError("--resume has no file of tokens to go on with.", "Give -o FILE, without --stats.")
        if self.resume and self.codebook:
            raise UsageError(
                "--codebook shows the codes of all images, and --resume computes only those that FILE lacks.",
                "Leave one of them out.",
            )

    @property
    def starts_over(self) -> str:
        given = {"--stats": self.stats, "--codebook": self.codebook, "--map": self.map and is_one_picture(self.map)}
        of_all = [flag for flag, is_given in given.items() if is_given]
        return f"{of_all[0]} is about all images together" if of_all else super().starts_over
