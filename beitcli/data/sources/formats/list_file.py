"""Format of list files: each line is `path` or `path<TAB>label`. `ListSource` reads any list of image files.

A path may also be the name of an image in a shard, as this program writes it: `shard.tar/cat/1.jpg`.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import Labeller, PackedNames, require_whole_labels
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._list_members import ListedMembers, shard_of
from beitcli.data.sources.formats._local_files import LocalFiles
from beitcli.errors import DataError
from beitcli.runtime.metric_text import counted, size_text

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 65_536
_MOST_BYTES = 2_000_000_000
_MOST_TRIED = 1_000  # paths, from its beginning to its end, that are looked for when a list is opened
_HINT = "Give a path a line, as seen from the list's folder or from here; or name images and folders themselves."


class ListSource(LocalFiles):
    """Image files in the order of a list; a missing file raises BadImage only when it is read."""

    def __init__(
        self,
        paths: Sequence[bytes],
        *,
        name: str,
        base: str = "",
        labels: Sequence[str | None] | None = None,
        labelled: bool = False,
    ) -> None:
        """
        Args:
            paths: Paths as bytes, because file names need not be UTF-8.
            name: The DATA reference.
            base: Folder that is searched for relative paths before the working directory.
            labels: Class name of each path, or None.
            labelled: Whether labels are required: it is then an error if only some paths have one.

        Raises:
            DataError: The list is empty, or some paths have no label.
        """
        if not paths:
            raise DataError(f"'{name}' lists no images.", hint="Give a path a line.")
        self.name = name
        self._base = os.fsencode(base)
        self._paths = PackedNames(paths)
        labeller = Labeller()
        for label in labels or [None] * len(paths):
            labeller.add(label)
        self.classes, self._labels = labeller.finish()
        if labelled and self.classes is None:
            require_whole_labels(name, self._labels, os.fsdecode(paths[int(np.argmin(self._labels))]))

    def __len__(self) -> int:
        return len(self._paths)

    def require_some(self, looks: str, hint: str) -> None:
        """Raises DataError if no path is there: then the file is no list of images.

        Of a long list paths all over it are looked for: one that is sorted may begin with a folder that is gone.

        Args:
            looks: What the file was taken for.
        """
        tried = min(len(self), _MOST_TRIED)
        places = np.linspace(0, len(self) - 1, tried).round().astype(np.int64).tolist()
        if not all(_is_missing(self._file(index)) for index in places):
            return
        first = os.fsdecode(self._paths[0])
        none = "none is a file" if tried == len(self) else f"none of {tried:,} all over it is a file"
        which = f"of which {none}, the first: '{first}'" if len(self) > 1 else f"'{first}', which is not a file"
        raise DataError(f"'{self.name}' is read as a {looks} of {counted(len(self), 'path')}, {which}.", hint=hint)

    def _file(self, index: int) -> bytes:
        """Returns the path below `base` if that exists, else the path as written."""
        path = self._paths[index]
        if not self._base or os.path.isabs(path):
            return path
        below = os.path.join(self._base, path)
        return below if os.path.exists(below) else path


def _is_missing(path: bytes) -> bool:
    """Whether there is no such path; one that may not be looked at is not missing."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    except ValueError:
        return True
    return False


def _open_one(reference: str, request: Request) -> Source:
    """Opens a list file; ignores blank lines, lines that start with `#`, and columns after the label.

    Raises:
        DataError: It cannot be read, is empty, or required labels are missing in some lines.
    """
    try:
        with open(reference, "rb") as file:
            content = file.read(_HEAD_BYTES)
            if b"\0" not in content:  # checked first, because /dev/zero never ends
                content += file.read(_MOST_BYTES)
            content = content.removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise DataError(f"List '{reference}' cannot be read: {error.strerror}.", hint="Check the path.") from None
    if len(content) >= _MOST_BYTES:
        raise DataError(f"List '{reference}' has more than {size_text(_MOST_BYTES)}.", hint="Give several lists.")
    if b"\0" in content:
        hint = f"Give a path a line; where NUL separates them, pass them on stdin: -0 - < {shlex.quote(reference)}"
        raise DataError(f"'{reference}' is not a list of paths: it has NUL bytes.", hint=hint)
    paths: list[bytes] = []
    labels: list[str | None] = []
    for line in content.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        path, _, columns = line.partition(b"\t")
        paths.append(path)
        labels.append(os.fsdecode(columns.partition(b"\t")[0].strip()) or None)
    base, labelled = os.path.dirname(reference), request.labelled
    shards = [shard_of(path, os.fsencode(base)) for path in paths]
    if not any(shards):
        listed = ListSource(paths, name=reference, base=base, labels=labels, labelled=labelled)
        if not request.reports_missing:
            listed.require_some("list", _HINT)
        return listed
    own = [path for path, shard in zip(paths, shards, strict=True) if shard is None]
    files = ListSource(own, name=reference, base=base) if own else None
    return ListedMembers(paths, shards, files=files, name=reference, labels=labels, labelled=labelled)


FORMAT = Format(
    looks="a .txt or .tsv list",
    labels="list lines 'path<TAB>label'",
    recognizes=lambda path: path.lower().endswith((".txt", ".tsv")) or not os.path.isfile(path),  # a pipe: <(find ...)
    open=lambda paths, request: [_open_one(path, request) for path in paths],
    rank=80,
)
