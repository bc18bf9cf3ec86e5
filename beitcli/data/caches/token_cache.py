"""On-disk cache of visual tokens. Transforms are keyed, so the tokens of (epoch, image) are the same in every run.

    DIR/<key>/meta.json             what <key> is the SHA-256 of: tokenizer, data, seed, transform, versions
    DIR/<key>/epoch-0000000.rows    one record per image of DATA: CRC-32, then N tokens of 16 bits (32 if V > 65536)

The checksum covers the tokens, the key, the epoch, the image's index and the CRC-32 of its decoded pixels. A record
that was torn by a kill, damaged, copied from elsewhere, or computed from a picture that has changed since counts as
missing, in whatever order the disk wrote. Nothing is synced or locked: several runs may fill one cache, because they
write the same. Files are read and written by offset instead of memory-mapped: a full disk or a truncated file is then
an error or a missing record, not a signal that kills the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beitcli.runtime.storage.own_files import atomic_write_text, open_own

FORMAT = 1
_OPEN_EPOCHS = 4
_SUM_BYTES = 4


class TokenCache:
    """The tokens of one tokenizer for one transform of one data set.

    Args:
        root: DIR; created if missing.
        identity: What the tokens depend on besides epoch and image, as JSON.
        tokens: N, per image.

    Attributes:
        trouble: Why writing was given up, after a failure; existing records are still read.
        notes: Other problems found on opening.
        read, written: Number of records so far, of this process.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], tokens: int, vocab_size: int) -> None:
        self.identity = {"format": FORMAT, "tokens": tokens, "vocab_size": vocab_size, **identity}
        document = json.dumps(self.identity, indent=2, sort_keys=True) + "\n"
        self.key = hashlib.sha256(document.encode()).hexdigest()
        self.folder = root / self.key[:32]
        self.tokens, self.vocab_size = tokens, vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.trouble = ""
        self.notes: list[str] = []
        self.read = self.written = 0
        self._files: dict[tuple[int, int], int] = {}  # (epoch, flags) to descriptor
        self._describe(document)

    def _describe(self, document: str) -> None:
        """Writes meta.json. Records next to a wrong one are harmless, as their checksums include the key."""
        path = self.folder / "meta.json"
        with suppress(OSError):
            with open(open_own(path, os.O_RDONLY), "rb") as file:
                if file.read() == document.encode():
                    return
            self.notes.append(f"'{path}' is damaged or another cache's: its tokens are made anew.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, document)
        except OSError as error:
            self._give_up(error)

    def row(self, epoch: int, index: int, pixels: int) -> np.ndarray | None:
        """Returns the tokens of an image, (N,) int64; None if they are not cached.

        Args:
            index: Of the image in DATA.
            pixels: CRC-32 of the decoded image.
        """
        size = self._record_bytes
        try:
            record = os.pread(self._file(epoch, os.O_RDONLY), size, index * size)
        except OSError:
            return None
        if len(record) < size or int.from_bytes(record[:_SUM_BYTES], "little") != self._sum(
            epoch, index, pixels, record[_SUM_BYTES:]
        ):
            return None
        tokens = np.frombuffer(record, self.dtype, offset=_SUM_BYTES).astype(np.int64)
        if int(tokens.max(initial=0)) >= self.vocab_size:  # a checksum is no proof of who wrote it
            return None
        self.read += 1
        return tokens

    def add(self, epoch: int, index: int, pixels: int, tokens: np.ndarray) -> None:
        """Writes (N,) tokens; does nothing after the first failure."""
        if self.trouble:
            return
        content = tokens.astype(self.dtype).tobytes()
        record = self._sum(epoch, index, pixels, content).to_bytes(_SUM_BYTES, "little") + content
        try:
            file = self._file(epoch, os.O_RDWR | os.O_CREAT)
            if os.pwrite(file, record, index * len(record)) < len(record):
                raise OSError("no space left")
        except OSError as error:
            self._give_up(error)
        else:
            self.written += 1

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    @property
    def _record_bytes(self) -> int:
        return _SUM_BYTES + self.tokens * self.dtype.itemsize

    def _sum(self, epoch: int, index: int, pixels: int, content: bytes) -> int:
        """Returns the checksum of a record; never 0, which is what a hole in a file reads as."""
        place = f"{self.key} {epoch} {index} {pixels} ".encode()
        return zlib.crc32(content, zlib.crc32(place)) or 1

    def _file(self, epoch: int, flags: int) -> int:
        if (epoch, flags) not in self._files:
            descriptor = open_own(self.folder / f"epoch-{epoch:07d}.rows", flags)
            if len(self._files) >= _OPEN_EPOCHS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[epoch, flags] = descriptor
        return self._files[epoch, flags]

    def _give_up(self, error: OSError) -> None:
        place = error.filename if isinstance(error.filename, str) else self.folder
        self.trouble = f"No tokens are kept in '{place}': {error.strerror or error}."

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_files": {}}  # a spawned loader worker opens its own


@dataclass(frozen=True)
class CachedTokenTransform:
    """Transform that looks up the tokens first, and skips the tokenizer's image if they are cached.

    Attributes:
        transform: A pretraining transform, a dataclass with `token_size`.
    """

    transform: Any
    cache: TokenCache

    @property
    def bytes_per_image(self) -> int:
        return self.transform.bytes_per_image

    @property
    def wants_pixels(self) -> bool:
        return getattr(self.transform, "wants_pixels", False)

    def __call__(self, image: Image.Image | np.ndarray, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns the transform's arrays, `visual_tokens` (N,) int64, -1 if not cached, and `token_place` (3,) int64.

        `token_place` is (epoch, index, CRC-32 of the decoded pixels), under which the tokens are to be cached.
        """
        pixels = zlib.crc32(image.tobytes())
        tokens = self.cache.row(epoch, index, pixels)
        transform = self.transform if tokens is None else replace(self.transform, token_size=None)
        cached_tokens = np.full(self.cache.tokens, -1, dtype=np.int64) if tokens is None else tokens
        place = np.array([epoch, index, pixels], dtype=np.int64)
        return transform(image, epoch, index) | {"visual_tokens": cached_tokens, "token_place": place}


# What the keys of existing caches call the transforms.
_KEY_NAMES = {"FastPretrainingTransform": "FastPretrainingView", "PretrainingTransform": "PretrainingView"}


def transform_identity(transform: Any) -> dict[str, Any]:
    """Returns the settings that a transform's tokens depend on, by name; the transform is a dataclass."""
    name, settings = type(transform).__name__, asdict(transform)
    if settings.get("token_filter") == "lanczos":  # the only one when the first caches were filled
        del settings["token_filter"]
    return {"class": _KEY_NAMES.get(name, name), **settings}
