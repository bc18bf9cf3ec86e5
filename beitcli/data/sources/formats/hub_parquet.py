"""Format `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`: parquet files of a dataset on the hub, streamed.

Opening reads only footers and labels; row groups are read when training needs them. A split of a few megabytes is
downloaded completely, as is any if the server does not support ranges. Everything is read at one commit, that of the
file list. Datasets in another format are read from the hub's branch with their conversion to parquet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beitcli.data.sources.base import OnProgress
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.parquet import ParquetSource, require_pyarrow
from beitcli.data.sources.splits import configuration_of, files_of_split
from beitcli.errors import DataError, StorageError, UsageError

if TYPE_CHECKING:  # the hub's library takes a quarter of a second, and every DATA asks this file
    from beitcli.data.sources.remote.parquet_stream import StreamedParquet
    from beitcli.runtime.hub.client import Listing

_REFERENCE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_CONVERTED = "refs/convert/parquet"
_FETCHED_WHOLE = 4_000_000  # bytes of all files, up to which streaming is not worth its requests


def _open(reference: str, request: Request) -> ParquetSource:
    """Opens a dataset on the hub.

    Raises:
        UsageError: The reference is malformed, or pyarrow is not installed.
        DataError: No parquet files, several configurations, a missing split, or as in `ParquetSource`.
        StorageError: The files cannot be downloaded.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise UsageError(f"'{reference}' is no data set on the hub.", hint="Give hf://datasets/OWNER/NAME.")
    require_pyarrow(reference)
    repo, revision, folder = f"datasets/{found[1]}", found[2], (found[3] or "").strip("/")
    listing = _with_parquet(reference, repo, revision)
    prefix = f"{folder}/" if folder else ""
    files = sorted(name for name in listing.sizes if name.endswith(".parquet") and name.startswith(prefix))
    if not files:
        raise DataError(f"'{reference}' has no parquet files below '{folder}'.", hint="Leave the folder out.")
    chosen, splits = files_of_split(reference, _of_one_configuration(reference, files, folder), request)
    source = ParquetSource(
        _files(repo, listing, chosen, request.on_progress),
        name=reference,
        names=[f"hf://{repo}/{name}" for name in chosen],
        versions=[listing.marks.get(name, listing.commit) for name in chosen],
        labelled=request.labelled,
        is_local=False,
        on_progress=request.on_progress,
    )
    source.splits = splits
    return source


def _files(
    repo: str, listing: Listing, names: list[str], on_progress: OnProgress | None
) -> Sequence[str | StreamedParquet]:
    """Returns paths of files that are cached or small, and streams of the others."""
    from beitcli.data.sources.remote.parquet_stream import open_streams
    from beitcli.runtime.hub.client import cached_file, remote_file
    from beitcli.runtime.hub.http_ranges import RangesUnsupported
    from beitcli.runtime.hub.range_cache import limit_bytes

    sizes = [listing.sizes[name] for name in names]
    if not all(sizes) or sum(size or 0 for size in sizes) <= _FETCHED_WHOLE:
        return _download(repo, listing, names, on_progress)
    limit_bytes()  # raises UsageError before anything is read
    whole = {name: cached_file(repo, name, listing.commit) for name in names}
    try:
        streams = open_streams([remote_file(repo, name, listing) for name in names if not whole[name]], on_progress)
    except RangesUnsupported:
        return _download(repo, listing, names, on_progress)
    rest = iter(streams)
    return [str(path) if path else next(rest) for path in whole.values()]


def _with_parquet(reference: str, repo: str, revision: str | None) -> Listing:
    """Lists the revision; without a given revision and without parquet files, the hub's conversion to parquet."""
    from beitcli.runtime.hub.client import list_files

    listing = list_files(repo, revision=revision)
    if listing is None:
        raise StorageError(f"'{reference}': there is no revision '{revision or 'main'}'.", "Check its name.")
    if _has_parquet(listing):
        return listing
    converted = None if revision else list_files(repo, revision=_CONVERTED)
    if converted is not None and _has_parquet(converted):
        return converted
    raise DataError(
        f"'{reference}' has no parquet files, and the hub keeps no conversion of it.",
        hint="Only parquet is streamed: download it (hf download --repo-type dataset), pass its images or .tar shards.",
    )


def _has_parquet(listing: Listing) -> bool:
    return any(name.endswith(".parquet") for name in listing.sizes)


def _of_one_configuration(reference: str, files: list[str], folder: str) -> list[str]:
    """Returns the files of the only configuration, or of `default` if there are several."""
    configurations = {name: configuration_of(name) for name in files}
    available = sorted({each for each in configurations.values() if each is not None})
    if folder or len(set(configurations.values())) < 2:
        return files
    if "default" in available:
        return [name for name in files if configurations[name] == "default"]
    raise DataError(
        f"'{reference}' comes in several configurations: {', '.join(available)}.",
        hint=f"Name one: {reference.rstrip('/')}/{available[0]}",
    )


def _download(repo: str, listing: Listing, names: list[str], on_progress: OnProgress | None) -> list[str]:
    """Downloads files unless they are cached, and returns their paths."""
    from beitcli.runtime.hub.client import fetch

    total = sum(listing.sizes[name] or 0 for name in names)
    done, paths = 0, []
    for name in names:

        def tell(what: str, part: int, whole: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(f"downloading {repo.removeprefix('datasets/')}", before + part, max(total, whole), "byte")

        paths.append(str(fetch(repo, [name], revision=listing.commit, on_progress=tell)))
        done += listing.sizes[name] or 0
    return paths


FORMAT = Format(
    looks="hf://datasets/OWNER/NAME (parquet, streamed)",
    words=("hf://",),
    open=lambda references, request: [_open(reference, request) for reference in references],
    rank=40,
    finds_splits=True,
)
