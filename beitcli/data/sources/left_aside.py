"""Counts what a folder or shard holds beside its images, and says it in one line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from beitcli.data.decoding import heif
from beitcli.data.sources.files import PackedNames
from beitcli.runtime.metric_text import counted

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

_UNNAMED = {NO_ENDING: "without an ending", OTHER_ENDINGS: "of other endings"}
_NO_FILES = (LINK, FOLDER_LINK, SPECIAL, TRAILING)


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
        """Returns one line that says what of DATA `name` is not read; empty if that is nothing.

        Such as `'photos': 7 files not read (4 .heic, 3 .txt).`, or with one ending `1 file not read (.txt)`.
        """
        endings, others = self._endings(), _phrases(self.counts, _NO_FILES)
        unnamed = [f"{count:,} {_UNNAMED[key]}" for key in _UNNAMED if (count := endings.pop(key, 0))]
        files = sum(count for key, count in self.counts.items() if key not in _NO_FILES)
        kinds = [*(f"{count:,} {ending}" for ending, count in endings.items()), *unnamed]
        if len(kinds) == 1:
            kinds = [kinds[0].partition(" ")[2]]
        told = [f"{counted(files, 'file')} not read ({', '.join(kinds)})"] if files else []
        told += [f"not read: {_list(others)}"] if others else []
        if not told:
            return ""
        return f"'{name}': {'; '.join(told)}." + (f" {heif.WAY_OUT}" if self.has_heif else "")

    @property
    def has_heif(self) -> bool:
        """Whether there are files that would be images if a library were installed."""
        return any(self.counts[f".{ending}"] for ending in heif.ENDINGS)

    def text(self) -> str:
        """Returns a list such as `4 .heic, 2 .txt and 1 link to a folder`, the most frequent endings first."""
        endings = self._endings()
        named = [f"{count:,} {ending}" for ending, count in endings.items() if ending[0] == "."]
        return _list([*named, *_phrases({**self.counts, **endings}, _PHRASES)])

    def _endings(self) -> dict[str, int]:
        """Returns the files by ending, the most frequent first, those of rarer endings and of none behind them."""
        endings = sorted((key for key in self.counts if key[0] == "."), key=lambda key: (-self.counts[key], key))
        shown = {ending: self.counts[ending] for ending in endings[:_SHOWN]}
        others = self.counts[OTHER_ENDINGS] + sum(self.counts[ending] for ending in endings[_SHOWN:])
        return shown | {NO_ENDING: self.counts[NO_ENDING], OTHER_ENDINGS: others}

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


def _phrases(counts: Mapping[str, int], keys: Iterable[str]) -> list[str]:
    """Returns `1 link to a folder` of each of these keys that something was counted by."""
    return [f"{count:,} {_PHRASES[key][count > 1]}" for key in keys if (count := counts.get(key, 0))]


def _list(parts: Sequence[str]) -> str:
    """Joins `a, b and c`."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
