"""`beit tokenize`: converts images to visual tokens, and back (paper, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from beitcli.config.tokenize import TokenizeConfig
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.events import Note, OnEvent, Progress, ignore
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.outputs import OutputNames, check_no_overwrite, make_folder, save_png, to_picture
from beitcli.engine.io.token_files import TokenFile, TokenKind, open_token_file, parse_line
from beitcli.engine.tokenizer_loading import prepared, tokenizer_for
from beitcli.errors import BeitError, DataError, UsageError
from beitcli.pictures.reconstruction import reconstruction_pair
from beitcli.runtime.compute.device import Compute, choose_compute, choose_workers, join_compute
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.tokenizers.base import Precision, Tokenizer, to_unit
from beitcli.tokenizers.dvae_loss import codebook_usage, psnr

_COMPARED = 64  # images compared for `agreement`: more would cost what low precision saves


@dataclass
class _Sums:
    """Sums over batches and over ranks."""

    compared: int = 0
    agreed: float = 0.0
    images: int = 0
    bad: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    values: int = 0

    def __iadd__(self, other: _Sums) -> _Sums:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self


@dataclass
class _Tally:
    """Running metrics of `--stats`.

    Attributes:
        counts: (V,) int64, codes seen by this rank.
        reference: The tokenizer in fp32, if another precision is compared with it.
        batch: Of the current batch.
        total: Of the previous batches, of all ranks.
    """

    counts: torch.Tensor
    reference: Tokenizer | None = None
    batch: _Sums = field(default_factory=_Sums)
    total: _Sums = field(default_factory=_Sums)

    def count(self, tokens: torch.Tensor) -> None:
        self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))

    def compare(self, images: torch.Tensor, decoded: torch.Tensor) -> None:
        difference = (decoded - images).cpu().double()
        self.batch.absolute += float(difference.abs().sum())
        self.batch.squared += float(difference.square().sum())
        self.batch.values += difference.numel()

    def compare_tokens(self, indices: Sequence[int], images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts the tokens that equal those in fp32, for the first images of the data."""
        wanted = sum(index < _COMPARED for index in indices)
        if self.reference is None or not wanted:
            return
        equal = self.reference.encode(images[:wanted]) == tokens[:wanted]
        self.batch.agreed += float(equal.float().mean(dim=1).sum())
        self.batch.compared += len(equal)

    def document(self, world: DistributedContext) -> dict[str, Any]:
        used, perplexity = codebook_usage(world.all_reduce_sum(self.counts))
        total = self.total
        mae = total.absolute / total.values if total.values else None
        agreement = {"agreement": total.agreed / total.compared if total.compared else None} if self.reference else {}
        return agreement | {
            "images": total.images,
            "bad": total.bad,
            "vocab_size": len(self.counts),
            "codes_used": used,
            "perplexity": perplexity,
            "mae": mae,
            "psnr": psnr(total.squared / total.values) if total.values and total.squared else None,
            "mae_normalized": None if mae is None else 2 * mae,
        }


def tokenize(
    config: TokenizeConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one document per image, in input order: `{"path", "grid", "tokens"}` or `{"path", "error"}`.

    Of several ranks only rank 0 yields and writes. With an output file the documents are written there and not yielded.
    With `stats` only the summary is yielded: without `mae` and `psnr` if the tokenizer has no decoder; with
    `agreement`, the fraction of tokens of the first 64 images that equal those in fp32, if the precision is another.

    Raises:
        StorageError: Pictures are requested from a tokenizer without a decoder.
        DataError: After the last image, if some could not be read; at the first with `on_bad="fail"`.
    """
    if config.decode:
        yield from decode(config, on_event, stdin)
        return
    compute = join_compute(config, choose_compute(config.device, _precision(config)))
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    reference = world.rank_zero_first(lambda: tokenizer_for(config.tokenizer, compute.device, on_event))
    if config.reconstruct:
        reference.require_decoder()
    size = config.size or reference.size
    reference.grid(size)
    tokenizer = prepared(reference, _precision(config), (size, size) if config.compile else None, on_event)
    kind = TokenKind(tokenizer.grid(size), tokenizer.vocab_size, tokenizer.sha256)
    source = world.rank_zero_first(
        lambda: open_inputs(config, sample_size=max(16, size), stdin=stdin, on_event=on_event)
    )
    pictures = world.rank_zero_first(lambda: _picture_paths(config.reconstruct, source))
    files: list[TokenFile] = []
    if config.output != "-" and not config.stats:
        held = world.run_on_rank_zero(lambda: _open_file(files, config, kind))
        source = _without(source, held, on_event) if held else source
    tally = _Tally(torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=compute.device))
    tally.reference = reference if config.stats and tokenizer.precision != "fp32" else None
    documents = _documents(config, tokenizer, source, size, compute, tally, pictures, on_event)
    with closing(files[0]) if files else nullcontext() as file:
        for document in documents:
            if file is not None:
                file.add(document)
            elif not config.stats:
                yield document
    if config.stats:
        summary = tally.document(world)
        if world.is_rank_zero:
            yield summary
    total = tally.total
    if total.bad and config.on_bad == "report":
        raise DataError(f"{total.bad} of {total.images + total.bad} images cannot be read.", "Their lines say why.")


def _precision(config: TokenizeConfig) -> Precision:
    """Resolves `auto` to fp32 on every device: to a model, other tokens are those of another tokenizer."""
    return "fp32" if config.precision == "auto" else config.precision


def _open_file(opened: list[TokenFile], config: TokenizeConfig, kind: TokenKind) -> set[str]:
    """Appends the output file to `opened`; returns the paths that it already contains."""
    opened.append(open_token_file(Path(config.output), kind, config.resume))
    return set(opened[0].held)


def _picture_paths(folder: str | None, source: Source) -> dict[str, Path] | None:
    """Returns the PNG of the decoded tokens by image path; the pair with the original is written next to it."""
    if not folder:
        return None
    names = OutputNames(make_folder(Path(folder)), ".png", beside=("-pair",))
    paths = [source.path(index) for index in range(len(source))]
    pictures = {path: names.path(path) for path in paths}
    outputs = (each for picture in pictures.values() for each in (picture, _pair_path(picture)))
    check_no_overwrite(outputs, paths, f"--reconstruct '{folder}'")
    return pictures


def _pair_path(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}-pair.png")


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
    """Yields on rank 0 the documents of all ranks, in the order of the images; nothing on the other ranks."""
    if not len(source):
        return
    transform, world = CenterTransform(size=size, filter=Image.Resampling.LANCZOS), compute.world
    workers = choose_workers(config.workers, compute.device, world.local_size)
    batch_size = min(config.batch_size, len(source))
    batches = ordered_batches(source, transform, batch_size=batch_size, workers=workers, share=(world.rank, world.size))
    grid = tokenizer.grid(size)
    for _ in range(-(-len(source) // (batch_size * world.size))):
        documents: list[dict[str, Any]] = []
        failure: BeitError | None = None
        try:
            batch = next(batches, None)
            if batch is not None:
                found = _bad(batch, config, tally)
                if len(batch):
                    found |= _tokenized(batch, source, tokenizer, grid, compute, tally, pictures, config.stats)
                documents = [found[index] for index in sorted(found)]
        except BeitError as error:
            failure = error
        parts = world.gather((documents, tally.batch, failure))
        tally.batch = _Sums()
        for documents, sums, failure in parts:
            if world.is_rank_zero:
                yield from documents
            if failure is not None:
                raise failure
            tally.total += sums
        on_event(Progress("tokenize", tally.total.images + tally.total.bad, len(source), "image"))


def _bad(batch: Batch, config: TokenizeConfig, tally: _Tally) -> dict[int, dict[str, Any]]:
    """Returns the documents of a batch's unreadable images, as `--on-bad` says."""
    documents = {}
    for index, path, reason in batch.bad:
        if config.on_bad == "fail":
            raise DataError(f"'{path}' cannot be read: {reason}.", "Mend it, or pass --on-bad report or skip.")
        tally.batch.bad += 1
        if config.on_bad == "report":
            documents[index] = {"path": path, "error": reason}
    return documents


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
    tally.compare_tokens(batch.indices, images, tokens)
    tally.batch.images += len(batch)
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


def decode(
    config: TokenizeConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Decodes token lines to PNG files; yields `{"path", "output"}` per line.

    Each picture is decoded by itself, so that it does not depend on the others.
    """
    compute = choose_compute(config.device, _precision(config))
    tokenizer = tokenizer_for(config.tokenizer, compute.device, on_event)
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
        check_no_overwrite([output], [document["path"]], f"-o '{names.folder}'")
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
