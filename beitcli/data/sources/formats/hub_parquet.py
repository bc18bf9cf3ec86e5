"""`hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`: the parquet files of a data set on the hub, streamed.

Only footers and labels are read at opening, then row groups as the order of training comes to them; a split of a few
megabytes is fetched whole, and so is any where the server has no ranges. All is read at the commit that the listing
names. A data set kept in another form is read from the branch on which the hub keeps its conversion to parquet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from beitcli.data.sources.base import OnProgress
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.parquet import ParquetSource, require_pyarrow
from beitcli.data.sources.remote.parquet_stream import StreamedParquet, open_streams
from beitcli.data.sources.splits import configuration_of, files_of_split
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.runtime.hub.client import Listing, fetch, kept_file, list_files, remote_file
from beitcli.runtime.hub.http_ranges import NoRanges
from beitcli.runtime.hub.range_cache import limit_bytes

_REFERENCE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_CONVERTED = "refs/convert/parquet"
_FETCHED_WHOLE = 4_000_000  # bytes of all files; less is not worth its requests


def _open(reference: str, request: Request) -> ParquetSource:
    """The images of a data set on the hub.

    Raises:
        UsageError: the reference is no such one, or pyarrow is not installed.
        DataError: no parquet files, several configurations, an absent split, or as `ParquetSource`.
        StorageError: the files cannot be had.
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
        on_progress=request.on_progress,
    )
    source.splits = splits
    return source


def _files(
    repo: str, listing: Listing, names: list[str], on_progress: OnProgress | None
) -> Sequence[str | StreamedParquet]:
    """Streams of what is not in the cache as a whole file; paths where all of it is to be fetched."""
    sizes = [listing.sizes[name] for name in names]
    if not all(sizes) or sum(size or 0 for size in sizes) <= _FETCHED_WHOLE:
        return _download(repo, listing, names, on_progress)
    limit_bytes()  # a wrong limit is told before anything is read
    whole = {name: kept_file(repo, name, listing.commit) for name in names}
    try:
        streams = open_streams([remote_file(repo, name, listing) for name in names if not whole[name]], on_progress)
    except NoRanges:
        return _download(repo, listing, names, on_progress)
    rest = iter(streams)
    return [str(path) if path else next(rest) for path in whole.values()]


def _with_parquet(reference: str, repo: str, revision: str | None) -> Listing:
    """The listing of the revision, or where it has no parquet and none was asked for, of the hub's conversion."""
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
    """The files of `default` where there are several configurations; of the only one else."""
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
    """Paths of the files in the cache; what is there is not fetched again."""
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
