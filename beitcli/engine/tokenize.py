"""`beit tokenize`: images to visual tokens, and back (paper section 2.1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from beitcli.config.use import TokenizeConfig
from beitcli.data.loader import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.views import CenterView
from beitcli.engine.events import Note, OnEvent, Progress, ignore
from beitcli.engine.inputs import open_inputs
from beitcli.engine.opened_tokenizer import prepared, tokenizer_for
from beitcli.engine.outputs import OutputNames, make_folder, save_png, spare_inputs
from beitcli.engine.token_files import TokenFile, TokenKind, open_token_file, parse_line
from beitcli.errors import DataError, UsageError
from beitcli.pictures.reconstruction import reconstruction_pair
from beitcli.runtime.device import Compute, choose_compute, choose_workers
from beitcli.tokenizers import Tokenizer, to_unit
from beitcli.tokenizers.low_precision import Precision
from beitcli.tokenizers.objective import codebook_usage, psnr

_COMPARED = 64  # images that `agreement` is of: fp32 is what low precision is there to avoid


@dataclass
class _Tally:
    """Running figures of `--stats`.

    Attributes:
        reference: The tokenizer in fp32, where another precision is to be compared with it.
    """

    counts: torch.Tensor
    reference: Tokenizer | None = None
    compared: int = 0
    agreed: float = 0.0
    images: int = 0
    bad: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    values: int = 0
    paths: list[str] = field(default_factory=list)

    def count(self, tokens: torch.Tensor) -> None:
        self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))

    def compare(self, images: torch.Tensor, decoded: torch.Tensor) -> None:
        difference = (decoded - images).double()
        self.absolute += float(difference.abs().sum())
        self.squared += float(difference.square().sum())
        self.values += difference.numel()

    def compare_tokens(self, images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts how many are fp32's, of the first images that come."""
        wanted = _COMPARED - self.compared
        if self.reference is None or wanted <= 0:
            return
        equal = self.reference.encode(images[:wanted]) == tokens[:wanted]
        self.agreed += float(equal.float().mean(dim=1).sum())
        self.compared += len(equal)

    def document(self) -> dict[str, Any]:
        used, perplexity = codebook_usage(self.counts)
        measured = self.values > 0
        agreement = {"agreement": self.agreed / self.compared if self.compared else None} if self.reference else {}
        return agreement | {
            "images": self.images,
            "bad": self.bad,
            "vocab_size": len(self.counts),
            "codes_used": used,
            "perplexity": perplexity,
            "mae": self.absolute / self.values if measured else None,
            "psnr": psnr(self.squared / self.values) if measured and self.squared else None,
        }


def tokenize(
    config: TokenizeConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields a document an image, in input order: `{"path", "grid", "tokens"}` or `{"path", "error"}`.

    With an output file the documents go there, and none is yielded; with `stats` only the summary is, without `mae`
    and `psnr` where the tokenizer has no decoder, and in another precision than fp32 with `agreement`, the share of
    tokens that are fp32's, of the first 64 images.

    Raises:
        StorageError: Pictures are wanted of a tokenizer without a decoder.
        DataError: After the last image, where some could not be read; at the first with `on_bad="fail"`.
    """
    if config.decode:
        yield from decode(config, on_event, stdin)
        return
    compute, reference = _open_tokenizer(config, on_event)
    if config.reconstruct:
        reference.require_decoder()
    size = config.size or reference.size
    reference.grid(size)
    tokenizer = prepared(reference, _precision(config), (size, size) if config.compile else None, on_event)
    kind = TokenKind(tokenizer.grid(size), tokenizer.vocab_size, tokenizer.sha256)
    source = open_inputs(config, sample_size=max(16, size), stdin=stdin, on_event=on_event)
    pictures = _picture_paths(config.reconstruct, source) if config.reconstruct else None
    file = None if config.output == "-" or config.stats else open_token_file(Path(config.output), kind, config.resume)
    if file is not None and file.held:
        source = _without(source, file.held, on_event)
    tally = _Tally(torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=compute.device))
    tally.reference = reference if config.stats and tokenizer.precision != "fp32" else None
    documents = _documents(config, tokenizer, source, size, compute, tally, pictures, on_event)
    if file is not None:
        with closing(file):
            _fill(file, documents)
    elif config.stats:
        for _ in documents:
            pass
        yield tally.document()
    else:
        yield from documents
    if tally.bad and config.on_bad == "report":
        raise DataError(f"{tally.bad} of {tally.images + tally.bad} images cannot be read.", "Their lines say why.")


def _open_tokenizer(config: TokenizeConfig, on_event: OnEvent) -> tuple[Compute, Tokenizer]:
    compute = choose_compute(config.device, _precision(config))
    return compute, tokenizer_for(config.tokenizer, compute.device, on_event)


def _precision(config: TokenizeConfig) -> Precision:
    """`auto` is fp32 on every device: other tokens are another tokenizer's, as far as a model is concerned."""
    return "fp32" if config.precision == "auto" else config.precision


def _picture_paths(folder: str, source: Source) -> dict[str, Path]:
    """The PNG of each image's decoded tokens, by the image's path; the pair of both stands beside it."""
    names = OutputNames(make_folder(Path(folder)), ".png", beside=("-pair",))
    paths = [source.path(index) for index in range(len(source))]
    pictures = {path: names.path(path) for path in paths}
    outputs = (each for picture in pictures.values() for each in (picture, _pair_path(picture)))
    spare_inputs(outputs, paths, f"--reconstruct '{folder}'")
    return pictures


def _pair_path(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}-pair.png")


def _fill(file: TokenFile, documents: Iterator[dict[str, Any]]) -> None:
    for document in documents:
        file.add(document)


def _without(source: Source, held: set[str], on_event: OnEvent) -> Source:
    missing = np.array([index for index in range(len(source)) if source.path(index) not in held], dtype=np.int64)
    on_event(Note(f"{len(source) - len(missing)} of {len(source)} images are in the file already"))
    return Subset(source, missing)


def _documents(
    config: TokenizeConfig,
    tokenizer: Tokenizer,
    source: Source,
    size: int,
    compute: Compute,
    tally: _Tally,
    pictures: dict[str, Path] | None,
    on_event: OnEvent,
) -> Iterator[dict[str, Any]]:
    view = CenterView(size=size, filter=Image.Resampling.LANCZOS)
    workers = choose_workers(config.workers, compute.device)
    batches = ordered_batches(source, view, batch_size=min(config.batch_size, max(1, len(source))), workers=workers)
    for batch in batches if len(source) else ():
        documents: dict[int, dict[str, Any]] = {}
        for index, path, reason in batch.bad:
            if config.on_bad == "fail":
                raise DataError(f"'{path}' cannot be read: {reason}.", "Mend it, or pass --on-bad report or skip.")
            tally.bad += 1
            if config.on_bad == "report":
                documents[index] = {"path": path, "error": reason}
        if len(batch):
            documents |= _tokenized(
                batch, source, tokenizer, tokenizer.grid(size), compute, tally, pictures, config.stats
            )
        for index in sorted(documents):
            yield documents[index]
        on_event(Progress("tokenize", tally.images + tally.bad, len(source), "image"))


@torch.no_grad()
def _tokenized(
    batch: Batch,
    source: Source,
    tokenizer: Tokenizer,
    grid: tuple[int, int],
    compute: Compute,
    tally: _Tally,
    pictures: dict[str, Path] | None,
    stats: bool,
) -> dict[int, dict[str, Any]]:
    images = to_unit(batch.to(compute.device)["images"])
    tokens = tokenizer.encode(images)
    tally.compare_tokens(images, tokens)
    tally.images += len(batch)
    if stats or pictures:
        tally.count(tokens)
    if (stats or pictures) and tokenizer.can_decode:
        decoded = tokenizer.decode(tokens, grid)
        tally.compare(images, decoded)
        if pictures:
            for index, original, picture in zip(batch.indices, images, decoded, strict=True):
                output = pictures[source.path(index)]
                save_png(to_picture(picture), output)
                save_png(reconstruction_pair(to_picture(original), to_picture(picture)), _pair_path(output))
    rows = tokens.tolist()
    return {
        index: {"path": source.path(index), "grid": list(grid), "tokens": row}
        for index, row in zip(batch.indices, rows, strict=True)
    }


def to_picture(image: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to a picture."""
    pixels = image.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def decode(
    config: TokenizeConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Token lines in, PNG files out: yields `{"path", "output"}` a line.

    Each picture is decoded by itself, so that it does not depend on its neighbours.
    """
    compute, tokenizer = _open_tokenizer(config, on_event)
    tokenizer.require_decoder()
    names = OutputNames(make_folder(Path("decoded" if config.output == "-" else config.output)), ".png")
    for number, document in enumerate(_token_lines(config, stdin), start=1):
        if "tokens" not in document:
            continue
        if max(document["tokens"]) >= tokenizer.vocab_size:
            raise DataError(
                f"'{document['path']}' has tokens outside 0 to {tokenizer.vocab_size - 1}.",
                "Decode with the tokenizer that made them.",
            )
        tokens = torch.tensor([document["tokens"]], device=compute.device)
        picture = tokenizer.decode(tokens, (document["grid"][0], document["grid"][1]))[0]
        output = names.path(document["path"])
        spare_inputs([output], [document["path"]], f"-o '{names.folder}'")
        save_png(to_picture(picture), output)
        yield {"path": document["path"], "output": str(output)}
        on_event(Progress("decode", number, number, "image"))


def _token_lines(config: TokenizeConfig, stdin: BinaryIO | None) -> Iterator[dict[str, Any]]:
    for name in config.inputs or ("-",):
        if name == "-":
            if stdin is None:
                raise UsageError("There are no token lines on stdin.", "Pipe the output of `beit tokenize` in.")
            for line in stdin:
                yield parse_line(line.decode(errors="replace"), "stdin")
            continue
        try:
            with open(name, encoding="utf-8") as file:
                for text in file:
                    yield parse_line(text, name)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{name}' cannot be read: {error}.", "Give the output of `beit tokenize`.") from None
