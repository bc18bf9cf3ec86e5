"""`beit tokenize`: converts images to visual tokens, and back (paper, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch

from beitcli.config.intensity import with_models_intensity
from beitcli.config.tokenize import TokenizeConfig
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent, Progress, Warned, ignore
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.output_paths import make_folder
from beitcli.engine.io.outputs import (
    OutputFile,
    OutputNames,
    require_distinct_outputs,
    require_writable_outputs,
    to_picture,
)
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.token_files import open_token_file, require_writable_tokens
from beitcli.engine.io.token_lines import TokenFile, TokenKind, parse_line
from beitcli.engine.reconstructed_pictures import ReconstructedPictures
from beitcli.engine.resumed_output import remaining_images, require_same_tokens, tokens_transform
from beitcli.engine.token_pictures import TokenPictures
from beitcli.engine.tokenizer_loading import prepared, tokenizer_for
from beitcli.engine.tokenizer_stats import Sums, Tally
from beitcli.engine.tokenizer_verdict import judge
from beitcli.engine.trainer.prefetch import on_device
from beitcli.errors import BeitError, DataError, UsageError
from beitcli.runtime.compute.device import Compute, choose_compute, choose_workers, join_compute
from beitcli.runtime.metric_text import counted
from beitcli.tokenizers.base import Precision, Tokenizer, to_unit


def tokenize(
    config: TokenizeConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one document per image, in input order: `{"path", "grid", "tokens"}` or `{"path", "error"}`.

    Of several ranks only rank 0 yields and writes. With an output file the documents are written there and not yielded.
    Token maps, the codebook's sheet and the chart of `stats` are drawn where `map`, `codebook` and `output` say.
    With `stats` only the summary is yielded, with a `verdict` and its `reason`; without figures of pictures if the
    tokenizer has no decoder; with `agreement`, the fraction of tokens of the first 64 images that equal those in fp32,
    if the precision is another.

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
    config = with_models_intensity(config, {"intensity_range": reference.intensity_range})
    if config.reconstruct:
        reference.require_decoder()
    size = config.size or reference.size
    reference.grid(size)
    tokenizer = prepared(reference, _precision(config), (size, size) if config.compile else None, on_event)
    kind = TokenKind(tokenizer.grid(size), tokenizer.vocab_size, tokenizer.sha256)
    source = world.rank_zero_first(
        lambda: open_inputs(config, sample_size=max(16, size), stdin=stdin, on_event=on_event)
    )
    inputs = ProtectedInputs(config, source)
    pictures = ReconstructedPictures.of(config, source)
    if pictures is not None and not config.resume:
        world.run_on_rank_zero(lambda: pictures.require_writable(config, inputs))
    drawing = TokenPictures(config, source, tokenizer, size)
    world.run_on_rank_zero(lambda: drawing.plan(inputs))
    world.run_on_rank_zero(lambda: require_distinct_outputs(_outputs(config, pictures, drawing)))
    files: list[TokenFile] = []
    if config.output != "-" and not config.stats:

        def require_own(file: TokenFile) -> None:
            plain = reference.in_precision(tokenizer.precision)  # to compile for eight images takes longer
            require_same_tokens(file.path, file.stored, source, plain, size, compute.device)

        held = world.run_on_rank_zero(lambda: _open_file(files, config, kind, inputs, pictures, require_own))
        source = remaining_images(source, held, on_event) if held else source
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=compute.device)
    tally = Tally(counts, kind.grid)
    tally.reference = reference if config.stats and tokenizer.precision != "fp32" else None
    tally.watch = drawing.count if config.codebook else None
    documents = drawing.drawn(_documents(config, tokenizer, source, size, compute, tally, pictures, on_event), on_event)
    with _ended(files[0]) if files else nullcontext() as file:
        for document in documents:
            if file is not None:
                file.add(document)
            elif not config.stats:
                yield document
    if pictures is not None and world.is_rank_zero:
        pictures.log.end()
    if files:
        images, (rows, columns) = len(files[0].held) + tally.total.images, kind.grid
        tokens = f"{rows} x {columns} tokens of {kind.vocab_size:,} codes"
        on_event(Note(f"Made '{config.output}': {counted(images, 'image')}, {tokens} each."))
    if config.stats:
        summary = tally.document(world)
        verdict = judge(summary, config.inputs)
        on_event((Note if verdict.level == "suits" else Warned)(verdict.reason))
        summary |= {"verdict": verdict.level, "reason": verdict.reason}
        if world.is_rank_zero:
            yield summary | drawing.draw_chart(counts, summary)
    elif config.codebook:
        world.all_reduce_sum(counts)
    drawing.draw_codebook(counts, world, on_event)
    total = tally.total
    if total.bad and config.on_bad == "report":
        way_out = "Without --stats their lines say why." if config.stats else "Their lines say why."
        raise DataError(f"{total.bad} of {counted(total.images + total.bad, 'image')} cannot be read.", way_out)


def _precision(config: TokenizeConfig) -> Precision:
    """Resolves `auto` to fp32 on every device: to a model, other tokens are those of another tokenizer."""
    return "fp32" if config.precision == "auto" else config.precision


def _open_file(
    opened: list[TokenFile],
    config: TokenizeConfig,
    kind: TokenKind,
    inputs: ProtectedInputs,
    pictures: ReconstructedPictures | None,
    require_own: Callable[[TokenFile], None],
) -> set[str]:
    """Appends the output file to `opened`; returns the paths that it already contains."""
    require_writable_tokens(config, inputs)
    file = open_token_file(Path(config.output), kind, config.resume)
    try:
        require_own(file)
        if pictures is not None and config.resume:
            pictures.require_writable(config, inputs, file.held)
    except BaseException:
        file.close(done=False)
        raise
    opened.append(file)
    return set(file.held)


@contextmanager
def _ended(file: TokenFile) -> Iterator[TokenFile]:
    """Closes the output: whole when the job has ended; else it can be resumed, and what it replaces stays as it was."""
    done = False
    try:
        yield file
        done = True
    finally:
        file.close(done=done)


def _outputs(
    config: TokenizeConfig, pictures: ReconstructedPictures | None, drawing: TokenPictures
) -> Iterator[tuple[str, Path]]:
    """Yields all files that the job writes, each after its option."""
    yield from (("--reconstruct", picture) for picture in (pictures.outputs() if pictures is not None else ()))
    yield from drawing.outputs()
    if config.output != "-" and not config.stats:
        yield "-o", Path(config.output)


def _documents(
    config: TokenizeConfig,
    tokenizer: Tokenizer,
    source: Source,
    size: int,
    compute: Compute,
    tally: Tally,
    pictures: ReconstructedPictures | None,
    on_event: OnEvent,
) -> Iterator[dict[str, Any]]:
    """Yields on rank 0 the documents of all ranks, in the order of the images; nothing on the other ranks."""
    if not len(source):
        return
    transform, world = tokens_transform(size), compute.world
    workers = choose_workers(config.workers, compute.device, world)
    batch_size = min(config.batch_size, len(source))
    grid = tokenizer.grid(size)
    loaded = ordered_batches(
        source,
        transform,
        batch_size=batch_size,
        workers=workers,
        pin_memory=compute.device.type == "cuda",
        share=(world.rank, world.size),
    )
    with closing(on_device(loaded, compute.device)) as batches:
        for _ in range(-(-len(source) // (batch_size * world.size))):
            documents: list[dict[str, Any]] = []
            failure: BeitError | None = None
            try:
                batch, tensors = next(batches, (None, {}))
                if batch is not None:
                    found = _bad(batch, config, tally)
                    if len(batch):
                        found |= _tokenized(
                            batch, tensors["images"], source, tokenizer, grid, tally, pictures, config.stats
                        )
                    documents = [found[index] for index in sorted(found)]
            except BeitError as error:
                failure = error
            told = world.gather_on_rank_zero(documents)
            parts = world.gather((tally.batch, failure))
            tally.batch = Sums()
            for rank, (sums, failure) in enumerate(parts):
                if world.is_rank_zero:
                    yield from map(_with_list, told[rank])
                if failure is not None:
                    raise failure
                tally.total += sums
            on_event(Progress("tokenize", tally.total.images + tally.total.bad, len(source), "image"))


def _bad(batch: Batch, config: TokenizeConfig, tally: Tally) -> dict[int, dict[str, Any]]:
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
    pixels: torch.Tensor,
    source: Source,
    tokenizer: Tokenizer,
    grid: tuple[int, int],
    tally: Tally,
    pictures: ReconstructedPictures | None,
    stats: bool,
) -> dict[int, dict[str, Any]]:
    """Returns the documents of a batch's images, whose (B, 3, H, W) uint8 pixels are on the tokenizer's device."""
    images = to_unit(pixels)
    tokens = tokenizer.encode(images)
    tally.compare_tokens(batch.indices, images, tokens)
    tally.batch.images += len(batch)
    if stats or pictures or tally.watch:
        tally.count(tokens)
    if tally.watch:
        tally.watch(images, tokens)
    if (stats or pictures) and tokenizer.can_decode:
        decoded = tokenizer.decode(tokens, grid)
        tally.compare(images, decoded)
        if pictures:
            for index, original, picture in zip(batch.indices, images, decoded, strict=True):
                pictures.write(source.path(index), original, picture)
    rows = tokens.to(torch.int32).cpu().numpy()  # a fifth of what Python's integers take between processes
    return {
        index: {"path": source.path(index), "grid": list(grid), "tokens": row}
        for index, row in zip(batch.indices, rows, strict=True)
    }


def _with_list(document: dict[str, Any]) -> dict[str, Any]:
    return document | {"tokens": document["tokens"].tolist()} if "tokens" in document else document


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
    inputs = ProtectedInputs(config)
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
        guarded = inputs.with_image(document["path"])
        require_writable_outputs([output], f"-o '{names.folder}'", guarded, overwrite=config.overwrite)
        OutputFile(output).save_png(to_picture(picture))
        yield {"path": document["path"], "output": str(output)}
        on_event(Progress("decode", number, number, "image"))


def _token_lines(config: TokenizeConfig, stdin: BinaryIO | None) -> Iterator[dict[str, Any]]:
    for name in config.inputs or ("-",):
        if name == "-":
            if stdin is None:
                raise UsageError("There are no token lines on stdin.", "Pipe the output of `beit tokenize` in.")
            for line in stdin:
                yield parse_line(line.decode("utf-8-sig", errors="replace"), "stdin")
            continue
        try:
            with open(name, encoding="utf-8-sig") as file:
                for text in file:
                    yield parse_line(text, name)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{name}' cannot be read: {error}.", "Give the output of `beit tokenize`.") from None
