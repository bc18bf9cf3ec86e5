"""Counts what a folder or shard holds beside its images, and says it in one line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from beitcli.data.decoding import heif
from beitcli.data.sources.files import PackedNames

_ENDING = re.compile(rb"[^./\\](\.[a-z0-9_+-]{1,12})\Z", re.IGNORECASE)
_SHOWN = 5  # endings
_MOST_ENDINGS = 1000  # kept; the files of further ones count as files of other endings
NO_ENDING, OTHER_ENDINGS = "no ending", "other endings"
LINK, FOLDER_LINK, SPECIAL, TRAILING = "link", "folder link", "special", "trailing"
_PHRASES = {  # of one, of several
    NO_ENDING: ("file without an ending", "files without an ending"),
    OTHER_ENDINGS: ("file of another ending", "files of other endings"),
    LINK: ("link that leads to no member", "links that lead to no member"),
    FOLDER_LINK: ("link to a folder", "links to folders"),
    SPECIAL: ("member that is no file", "members that are no files"),
    TRAILING: ("byte after the end mark, which is no tar", "bytes after the end mark, which are no tar"),
}


class LeftAside:
    """What was left aside: counts by ending in small letters, such as `.heic`, or by one of the words above."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)

    def add_file(self, name: bytes) -> None:
        """Counts a file by its ending."""
        found = _ENDING.search(name)
        ending = found[1].decode().lower() if found else NO_ENDING
        if ending not in self.counts and len(self.counts) >= _MOST_ENDINGS:
            ending = OTHER_ENDINGS
        self.counts[ending] += 1

    def remark(self, name: str) -> str:
        """Returns one line that says what of DATA `name` is not read; empty if that is nothing."""
        if not (text := self.text()):
            return ""
        return f"'{name}': not read are {text}." + (f" {heif.WAY_OUT}" if self.has_heif else "")

    @property
    def has_heif(self) -> bool:
        """Whether there are files that would be images if a library were installed."""
        return any(self.counts[f".{ending}"] for ending in heif.ENDINGS)

    def text(self) -> str:
        """Returns a list such as `4 .heic, 2 .txt and 1 link to a folder`, the most frequent endings first."""
        endings = sorted((key for key in self.counts if key[0] == "."), key=lambda key: (-self.counts[key], key))
        counts = self.counts.copy()
        for ending in endings[_SHOWN:]:
            counts[OTHER_ENDINGS] += counts.pop(ending)
        parts = [f"{counts[ending]:,} {ending}" for ending in endings[:_SHOWN]]
        parts += [f"{counts[key]:,} {words[counts[key] > 1]}" for key, words in _PHRASES.items() if counts[key]]
        return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the counts for an index."""
        packed = PackedNames(key.encode() for key in self.counts)
        counts = np.array(list(self.counts.values()), dtype=np.int64)
        return {"aside": packed.block, "aside bounds": packed.bounds, "aside counts": counts}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LeftAside:
        """Reads the counts from an index."""
        keys = PackedNames.of(arrays["aside"], arrays["aside bounds"])
        return cls(dict(zip([key.decode() for key in keys], arrays["aside counts"].tolist(), strict=True)))

    @classmethod
    def joined(cls, parts: Iterable[LeftAside]) -> LeftAside:
        """Adds several up."""
        total = cls()
        for part in parts:
            total.counts.update(part.counts)
        return total
