"""Cache of DALL-E's weights as safetensors, and the functions that fill it.

    CACHE/dall-e/encoder.safetensors  weights.sha256                                 from the hub
    CACHE/dall-e/HASH/encoder.safetensors  decoder.safetensors  weights.sha256      from a folder; HASH of its encoder

`sha256sum -c weights.sha256` checks a folder, as does opening it. Each file is written under a temporary name and
renamed, the record last. Equal weights give equal files, so processes may write the same entry at the same time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from beitcli.errors import StorageError
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.storage.own_files import apply_umask, create_new
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.tokenizers.dalle import SUFFIXES, WHOLE, Half, fits, read_half, read_halves, weight_files

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress

REPOSITORY = "facebook/flava-image-codebook"
RECORD = "weights.sha256"
DOWNLOAD = "215 MB to download"  # 53.8 million weights in fp32
_STALE_SECONDS = 3600.0

Opened = tuple[Half, Half | None, tuple[str, ...]]  # encoder, decoder, notes for the user


def open_named(on_progress: OnProgress | None = None) -> Opened:
    """Opens `dall-e`: the encoder from the cache or the hub, and the decoder cached from a folder with that encoder.

    Raises:
        StorageError: The encoder is not in the cache and cannot be downloaded.
    """
    folder = cache_folder() / "dall-e"
    files, wrong = verified(folder)
    notes = [f"{wrong}; it was fetched again."] if wrong else []
    if files:
        encoder, _ = read_halves(files)
    else:
        try:
            encoder, _, _ = open_hub(REPOSITORY, None, on_progress)
        except StorageError as error:
            hint = (
                "Restore the network; or pass --tokenizer: a folder with encoder.pkl (and decoder.pkl), or a run of "
                "`beit train-tokenizer`. `beit pretrain DATA --recipe small` trains its own."
            )
            raise StorageError(f"{wrong}, and: {error.message}" if wrong else error.message, hint) from None
        notes += keep(folder, [encoder])
    decoder = None
    files, wrong = verified(_folder_of(encoder))
    for path in files:
        half = read_half(path)
        if half.kind == "decoder" and fits(encoder, half):
            decoder = half
    notes += [f"{wrong}; so there is no decoder."] if wrong else []
    return encoder, decoder, tuple(notes)


def is_cached() -> bool:
    """Whether the encoder of `dall-e` lies in the cache; its hash is checked when it is opened."""
    return (cache_folder() / "dall-e" / RECORD).is_file()


def open_hub(repo: str, revision: str | None, on_progress: OnProgress | None = None) -> Opened:
    """Downloads the encoder of a hub repository, and its decoder if there is one."""
    from beitcli.runtime.hub.client import fetch  # imports the hub's client

    encoder = fetch(repo, [*WHOLE, *_names("encoder")], on_progress=on_progress, revision=revision)
    decoder = fetch(repo, _names("decoder"), on_progress=on_progress, revision=revision, optional=True)
    return *read_halves([half for half in (encoder, decoder) if half]), ()


def _names(stem: str) -> list[str]:
    return [stem + suffix for suffix in SUFFIXES]


def open_files(path: Path) -> Opened:
    """Opens a folder or an encoder file; pickles and state dicts are also written to the cache as safetensors."""
    files = weight_files(path)
    encoder, decoder = read_halves(files)
    if all(file.suffix == ".safetensors" for file in files):
        return encoder, decoder, ()
    return encoder, decoder, tuple(keep(_folder_of(encoder), [encoder, decoder] if decoder else [encoder]))


def _folder_of(encoder: Half) -> Path:
    return cache_folder() / "dall-e" / encoder.sha256[:16]


def verified(folder: Path) -> tuple[list[Path], str]:
    """Returns the cached files if all match their hashes; else none, and what is wrong ("" if nothing is cached)."""
    try:
        entries = [line.split("  ", 1) for line in read_regular(folder / RECORD).decode().splitlines()]
        paths = {folder / name: digest for digest, name in entries if "/" not in name}
        for path, digest in paths.items():
            if sha256_of(path) != digest:
                return [], f"The kept '{path}' is damaged: it does not match its SHA-256"
    except FileNotFoundError as error:
        lost = str(error.filename) != str(folder / RECORD)
        return [], f"The kept '{error.filename}' is missing" if lost else ""
    except (OSError, ValueError) as error:
        place = getattr(error, "filename", None) or folder / RECORD
        return [], f"The kept '{place}' cannot be read ({type(error).__name__})"
    return list(paths), ""


def keep(folder: Path, halves: Sequence[Half]) -> list[str]:
    """Writes missing files to the cache. Returns a note if that fails, which is not an error."""
    names = [f"{half.kind}.safetensors" for half in halves]
    held, _ = verified(folder)
    if {folder / name for name in names} <= set(held):
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        partial = [folder / f".{name}.partial-{os.getpid()}" for name in (*names, RECORD)]
        try:
            for half, path in zip(halves, partial, strict=False):
                save_file(half.tensors, path)
                apply_umask(path)
            sums = [f"{sha256_of(path)}  {name}\n" for name, path in zip(names, partial, strict=False)]
            with create_new(partial[-1]) as record:
                record.write("".join(sums).encode())
            for name, path in zip((*names, RECORD), partial, strict=True):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                path.replace(folder / name)
        finally:
            for path in partial:
                path.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return [f"The tokenizer is not kept in '{folder}': {reason}. BEIT_CACHE_DIR names another cache."]
    return []


def _remove_stale(folder: Path) -> None:
    """Removes temporary files that a killed process left behind."""
    for path in folder.glob(".*.partial-*"):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
