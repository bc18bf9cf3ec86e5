"""Visual tokenizers, and how a TOKENIZER is opened. A new tokenizer = a new file here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from beitcli.errors import StorageError, UsageError
from beitcli.models.references import OpenedModel, open_checkpoint
from beitcli.runtime.checkpoint import SUMS
from beitcli.runtime.foreign_files import quote
from beitcli.runtime.hub import OnProgress
from beitcli.tokenizers.dalle import GRID, build, weight_files
from beitcli.tokenizers.dalle_cache import Opened, open_files, open_hub, open_named
from beitcli.tokenizers.dvae import Decoder, DiscreteVAE, DVAEArchitecture
from beitcli.tokenizers.low_precision import Precision, compiled, in_precision

WORDS = ("dall-e", "pixels")  # references that name no file
DALLE_CODES = 8192
PORTION = 8  # images


@dataclass(frozen=True)
class Tokenizer:
    """A frozen tokenizer.

    Attributes:
        model: `encode` (B, 3, H, W) in [0, 1] -> (B, N) int64, and `decode` back where it has a decoder.
        size: Side in pixels of the images it was trained on.
        sha256: Of its weights; of DALL-E's, of the encoder's alone, whichever file they came from.
        warnings: Newer checkpoints of it that were damaged.
        notes: What else a person should know, in sentences.
        precision: Of the encoder; the decoder is fp32.
        is_compiled: Which may round otherwise than the same encoder uncompiled.
    """

    reference: str
    model: DiscreteVAE
    size: int
    sha256: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision = "fp32"
    is_compiled: bool = False

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def can_decode(self) -> bool:
        return self.model.decoder is not None

    def require_decoder(self) -> Decoder:
        """Raises StorageError where there is none."""
        return self.model.require_decoder()

    def grid(self, size: int) -> tuple[int, int]:
        """Tokens down and across for square images of `size` pixels.

        Raises:
            UsageError: The tokenizer's factor does not divide it.
        """
        factor = self.model.downsample
        if size < factor or size % factor:
            raise UsageError(
                f"--size {size} is not divided by {factor}, the factor of tokenizer '{self.reference}'.",
                f"Give a multiple of {factor}, such as {self.size}.",
            )
        return size // factor, size // factor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 or [0, 1] float images (B, 3, H, W) to (B, N) int64."""
        return self.model.encode(to_unit(images))

    def encode_alike(self, images: torch.Tensor) -> torch.Tensor:
        """As `encode`; on a CPU an image's tokens do not depend on the others that it comes with, to the last bit.

        Its convolutions choose a kernel by the batch's size, and logits differ by 4e-6 between those: so it sees
        eight images at a time, the last ones filled up with black. On other devices it is `encode`.
        """
        if images.device.type != "cpu":
            return self.encode(images)
        tokens = []
        for part in images.split(PORTION):
            missing = PORTION - len(part)
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            tokens.append(self.encode(whole)[: len(part)])
        return torch.cat(tokens)

    def in_precision(self, precision: Precision) -> Tokenizer:
        """The fp32 tokenizer with its encoder in `precision`, skips and logits still fp32."""
        return replace(self, model=in_precision(self.model, precision), precision=precision)

    def compiled(self, size: tuple[int, int]) -> tuple[Tokenizer, str]:
        """Itself compiled for images of `size` (H, W), and nothing; or as it is, and why it cannot be."""
        model, failure = compiled(self.model, size)
        return replace(self, model=model, is_compiled=not failure), failure

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N) int64 to images (B, 3, H, W) in [0, 1]; StorageError where there is no decoder."""
        return self.model.decode(tokens, grid)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def open_tokenizer_of(
    opened: OpenedModel, device: torch.device | None = None, on_progress: OnProgress | None = None
) -> Tokenizer:
    """The tokenizer that a pretraining run learned from: its own lies inside it, another where it was.

    Raises:
        StorageError: It names none, or what lies there is another tokenizer now.
    """
    named = opened.settings.get("tokenizer")
    foreign = not opened.settings and opened.layout is not None and not opened.layout.is_version_2
    if foreign and opened.described.outputs == DALLE_CODES:
        tokenizer = open_tokenizer("dall-e", device, on_progress)
        assumed = f"'{opened.reference}' does not name its tokenizer; assumed: DALL-E's, as of the release."
        return replace(tokenizer, notes=(*tokenizer.notes, assumed))
    if not named:
        raise StorageError(f"'{opened.reference}' names no tokenizer that it learned from.", "Pass it as --tokenizer.")
    reference = str(opened.run / "tokenizer") if named["reference"] == "own" else named["reference"]
    tokenizer = open_tokenizer(reference, device, on_progress)
    if tokenizer.sha256 != named["sha256"]:
        raise StorageError(
            f"Tokenizer '{reference}' is not the one that '{opened.reference}' was trained with.", "Put that one back."
        )
    return tokenizer


def open_tokenizer(
    reference: str, device: torch.device | None = None, on_progress: OnProgress | None = None
) -> Tokenizer:
    """`dall-e`, `hf://OWNER/NAME`, a folder with DALL-E's weights, a run of train-tokenizer or pretrain, a checkpoint.

    Raises:
        UsageError: There is none of that name.
        StorageError: It is something else, damaged, or cannot be fetched.
    """
    if reference == "pixels":
        raise UsageError(
            "'pixels' is no tokenizer: it has no codes.", "`beit pretrain --target pixels` learns from pixels."
        )
    path = Path(reference)
    if reference == "dall-e":
        return _dalle(reference, open_named(on_progress), device)
    if reference.startswith("hf://"):
        repo, _, revision = reference.removeprefix("hf://").partition("@")
        return _dalle(reference, open_hub(repo, revision or None, on_progress), device)
    if path.exists() and _looks_like_dalle(path):
        return _dalle(reference, open_files(path), device)
    near = [] if "/" in reference else difflib.get_close_matches(reference.lower(), WORDS, n=1)
    if near and not path.exists():
        raise UsageError(f"There is no tokenizer '{reference}'.", f"Did you mean '{near[0]}'?")
    return _ours(reference, device, on_progress)


def _looks_like_dalle(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    ours = any((folder / name).is_file() for name in (SUMS, "trainer.json"))
    return not ours and bool(weight_files(path))


def _dalle(reference: str, opened: Opened, device: torch.device | None) -> Tokenizer:
    encoder, decoder, notes = opened
    model = build(encoder, decoder)
    model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return Tokenizer(reference, model, GRID * model.downsample, encoder.sha256, notes=notes)


def _ours(reference: str, device: torch.device | None, on_progress: OnProgress | None) -> Tokenizer:
    inside = Path(reference) / "tokenizer"
    opened = open_checkpoint(str(inside) if (inside / "config.toml").exists() else reference)
    if opened.kind == "masked-image-model":
        return open_tokenizer_of(opened, device, on_progress)
    if opened.kind != "tokenizer":
        raise StorageError(
            f"'{reference}' is a {opened.kind}, not a tokenizer.", "Give a run of `beit train-tokenizer`."
        )
    model = _model_of(opened)
    sums = (opened.weights.parent / SUMS).read_text().splitlines()
    sha256 = next(line.split()[0] for line in sums if line.endswith("model.safetensors"))
    model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return Tokenizer(reference, model, int(opened.settings["size"]), sha256, opened.warnings)


def _model_of(opened: OpenedModel) -> DiscreteVAE:
    """The dVAE that the settings describe, with its weights; nothing is drawn for them to replace.

    Raises:
        StorageError: The settings describe another, or none.
    """
    tensors = opened.tensors()
    try:
        architecture = DVAEArchitecture(**opened.settings["architecture"])
        size = opened.settings["size"]
        if type(size) is not int or not 1 <= size <= 100_000:
            raise ValueError(f"size {size!r}")
        if architecture.groups * architecture.blocks_per_group > len(tensors):  # before as many blocks are built
            raise ValueError(f"{architecture.groups} groups of {architecture.blocks_per_group} blocks")
        with torch.device("meta"):
            model = DiscreteVAE(architecture)
        model.load_state_dict(tensors, assign=True)
        model.float()
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, UsageError) as error:
        raise StorageError(
            f"Tokenizer '{opened.reference}' does not fit its own config: {quote(str(error), 200)}.", "Train it again."
        ) from None
    return model
