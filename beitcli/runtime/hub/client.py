"""Client of the Hugging Face hub, or a mirror: files of repositories, in the cache shared with other clients.

A model repository is `OWNER/NAME`, a dataset repository `datasets/OWNER/NAME`. huggingface_hub does the requests, the
downloads and the caching. An additional request precedes each download: it fails at once where huggingface_hub would
retry for minutes, and it rejects hashes that are not valid file names. Errors are converted to a StorageError with a
hint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.hub.download import OnProgress, Remote, download, repo_id, repo_type
from beitcli.runtime.hub.offline import is_offline, way_to_download
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.own_files import atomic_write_text
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import one_line

_ENDPOINT = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w.+=-]*(/\w[\w.+=-]*)*")  # also a path in the cache; git allows more
_ADDRESS = re.compile(r"https?://([^\s@/]+@)?(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?")
_LOCAL = "pass the folder of a copy made on another machine"


def fetch(
    repo: str,
    names: Sequence[str],
    *,
    on_progress: OnProgress | None = None,
    revision: str | None = None,
    optional: bool = False,
) -> Path | None:
    """Returns the first of `names` that a repository has, from the cache or downloaded.

    HF_ENDPOINT and HF_HUB_OFFLINE are read at each call. If the hub cannot be reached, the cache is used.

    Args:
        repo: `OWNER/NAME` or `datasets/OWNER/NAME`.
        on_progress: Called during the download.
        revision: Branch, tag or commit; the main branch if None.
        optional: Returns None instead of an error if the repository has none of them, or if the hub cannot be reached
            and the cache has this revision without them.

    Raises:
        UsageError: `repo` is not a repository name.
        StorageError: The file cannot be downloaded; the message gives the reason.
    """
    _require_repo(repo)
    revision = _revision(repo, revision)
    _require_inside(repo, names)
    for name in names if _COMMIT.fullmatch(revision) else ():  # a commit never changes
        if kept := cached_file(repo, name, revision):
            return kept
    if is_offline():
        error: Exception = OfflineModeIsEnabled("HF_HUB_OFFLINE is set.")
    else:
        try:
            remote = _look_up(repo, names, revision)
        except RevisionNotFoundError:
            raise StorageError(f"'{repo}' has no revision '{revision}' at {_endpoint()}.", "Check its name.") from None
        except (HTTPError, FileMetadataError, OSError, ValueError) as problem:
            error = problem
        else:
            if remote is None and not optional:
                raise StorageError(
                    f"'{repo}' has no file {_either(names)} at {_endpoint()}.",
                    "Give another repository, or download the file that holds the weights and pass its path.",
                )
            if remote is None:
                return None
            kept = cached_file(repo, remote.name, revision)
            if kept and remote.commit in kept.parts:
                return kept
            try:
                return download(remote, revision, _hub_cache(), _endpoint(), on_progress)
            except HfHubHTTPError as problem:
                raise _cannot_ask(repo, [remote.name], problem) from None
    for name in names:
        if kept := cached_file(repo, name, revision):
            return kept
    if optional and _has_revision(repo, revision) and _is_unreachable(error):
        return None
    raise _cannot_ask(repo, names, error) from None


@dataclass(frozen=True)
class Listing:
    """Files of a repository at a commit.

    Attributes:
        sizes: File name -> bytes; None if unknown.
        marks: File name -> hash of its content, if known.
    """

    commit: str
    sizes: dict[str, int | None]
    marks: dict[str, str] = field(default_factory=dict)


def list_files(repo: str, *, revision: str | None = None) -> Listing | None:
    """Lists the files of a dataset repository; uses the cached list if the hub cannot be reached.

    Args:
        repo: `datasets/OWNER/NAME`.
        revision: Branch, tag or commit; the main branch if None.

    Returns:
        The listing; None if the repository has no such revision.

    Raises:
        UsageError: `repo` is not a repository name.
        StorageError: The list cannot be downloaded; the message gives the reason.
    """
    _require_repo(repo)
    revision = _revision(repo, revision)
    kept = cache_folder() / "listings" / f"{_repo_folder(repo).name}--{revision.replace('/', '--')}.json"
    if is_offline():
        error: Exception = OfflineModeIsEnabled("HF_HUB_OFFLINE is set.")
    else:
        try:
            about = HfApi(endpoint=_endpoint()).dataset_info(
                repo_id(repo), revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            found = about.siblings or []
            sizes = {each.rfilename: each.size for each in found}
            marks = {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in found}
            listing = _checked(about.sha, sizes, marks)
            with suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(kept, json.dumps(asdict(listing)))
            return listing
        except RevisionNotFoundError:
            return None
        except (KeyError, TypeError, AttributeError, RecursionError):
            error = FileMetadataError("The answer is no list of files")
        except (HTTPError, FileMetadataError, OSError, ValueError) as problem:
            error = problem
    if _is_unreachable(error):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, FileMetadataError):
            document = parse_json(read_regular(kept))
            return _checked(document["commit"], document["sizes"], document.get("marks", {}))
    raise _cannot_ask(repo, [], error) from None


def _checked(commit: object, sizes: dict[str, Any], marks: dict[str, Any]) -> Listing:
    """Returns a listing of what an answer says, if it has the types and ranges that it should have.

    Raises:
        FileMetadataError: It names no commit, or holds no file's name or size.
    """
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise FileMetadataError("The answer names no commit")
    if not all(size is None or (type(size) is int and 0 <= size < 1 << 63) for size in sizes.values()):
        raise FileMetadataError("The answer has sizes that are none")
    inside = {name: size for name, size in sizes.items() if _is_inside(name)}
    return Listing(
        commit, inside, {name: marks[name] for name in inside if marks.get(name) and isinstance(marks[name], str)}
    )


def remote_file(repo: str, name: str, listing: Listing) -> Remote:
    """Returns a file of a listing at its commit, for reading byte ranges."""
    _require_inside(repo, [name])
    url = hf_hub_url(repo_id(repo), name, repo_type=repo_type(repo), revision=listing.commit, endpoint=_endpoint())
    return Remote(repo, name, listing.commit, listing.marks.get(name, ""), listing.sizes[name], url)


def cached_file(repo: str, name: str, revision: str) -> Path | None:
    """Returns the file in the shared cache; None unless some client has downloaded it completely."""
    _require_inside(repo, [name])
    kind, cache = repo_type(repo), _hub_cache()
    found = try_to_load_from_cache(repo_id(repo), name, cache_dir=cache, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def _is_inside(name: str) -> bool:
    """Whether a file name stays inside its folder, on Windows too; the hub's answer is not trusted."""
    is_odd = name.startswith("/") or "\\" in name or "\0" in name
    parts = name.split("/")
    return not is_odd and all(part not in ("", ".", "..") and not PureWindowsPath(part).drive for part in parts)


def _require_inside(repo: str, names: Sequence[str]) -> None:
    """Raises StorageError for a file name that would leave the folder of its repository in the cache."""
    for name in names:
        if not _is_inside(name):
            raise StorageError(f"'{repo}' has a file of the name '{one_line(name)}', which leads out of its folder.")


def _revision(repo: str, revision: str | None) -> str:
    """Returns the revision, the main branch for None or "". It becomes a path in the cache.

    Raises:
        UsageError: It is no name of a branch, tag or commit.
    """
    if not revision:
        return constants.DEFAULT_REVISION
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(
            f"'{one_line(revision)}' is no revision of '{repo}'.", "Give a branch, a tag or a commit behind the @."
        )
    return revision


def _require_repo(repo: str) -> None:
    try:
        validate_repo_id(repo_id(repo))
        valid = re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id(repo)) is not None
    except HFValidationError:
        valid = False
    if not valid:
        example = {"model": "microsoft/beit-base-patch16-224", "dataset": "uoft-cs/cifar10"}[repo_type(repo)]
        raise UsageError(
            f"'{one_line(repo_id(repo))}' is no {repo_type(repo)} repository.", f"Give OWNER/NAME, such as {example}."
        )


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    if not _ADDRESS.fullmatch(endpoint):
        raise UsageError(f"HF_ENDPOINT '{one_line(endpoint)}' is no address.", f"Give one such as {_ENDPOINT}.")
    return endpoint


def _hub_cache() -> Path:
    return cache_folder() / "hub" if os.environ.get("BEIT_CACHE_DIR") else Path(constants.HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return _hub_cache() / repo_folder_name(repo_id=repo_id(repo), repo_type=repo_type(repo))


def _has_revision(repo: str, revision: str) -> bool:
    """Whether the cache has this revision of the repository."""
    folder = _repo_folder(repo)
    return (folder / "refs" / revision).is_file() or (folder / "snapshots" / revision).is_dir()


def _look_up(repo: str, names: Sequence[str], revision: str) -> Remote | None:
    """Asks the hub for the first of `names` that exists at that revision; None if none does."""
    for name in names:
        url = hf_hub_url(repo_id(repo), name, repo_type=repo_type(repo), revision=revision, endpoint=_endpoint())
        try:
            about = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except EntryNotFoundError:
            continue
        commit, mark = about.commit_hash or "", about.etag or ""
        if not _COMMIT.fullmatch(commit) or not re.fullmatch(r"[\w-]+", mark):  # both become file names
            raise FileMetadataError("The answer names no commit or no hash of the file")
        at_commit = hf_hub_url(repo_id(repo), name, repo_type=repo_type(repo), revision=commit, endpoint=_endpoint())
        return Remote(repo, name, commit, mark, about.size, at_commit)
    return None


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub was not asked, or did not answer; False if it refused."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _cannot_ask(repo: str, names: Sequence[str], error: Exception) -> StorageError:
    """Returns the error for a file that is neither in the cache nor can be downloaded."""
    where = _endpoint()
    if isinstance(error, OfflineModeIsEnabled) and (way := way_to_download()):
        return StorageError(f"{_either(names) or 'The list of files'} of '{repo}' is not in '{_hub_cache()}'.", way)
    if isinstance(error, OfflineModeIsEnabled):
        return StorageError(
            f"{_either(names) or 'The list of files'} of '{repo}' is not in the cache '{_hub_cache()}', "
            "and HF_HUB_OFFLINE is set.",
            f"Unset HF_HUB_OFFLINE, or {_LOCAL}.",
        )
    if isinstance(error, GatedRepoError):
        return StorageError(
            f"'{repo}' is gated: its publisher gives it only to those who accept its terms.",
            f"Accept them at {where}/{repo}, then set HF_TOKEN to a token of yours.",
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return StorageError(
            f"There is no {repo_type(repo)} repository '{repo_id(repo)}' at {where}, or it is private.",
            "Check the spelling of OWNER/NAME; for a private one set HF_TOKEN to a token that may read it.",
        )
    if status:
        ways = {403: "Set HF_TOKEN to a token that may read it.", 429: "Wait some minutes; HF_TOKEN raises the limit."}
        way = ways.get(status, f"Try again later, set HF_ENDPOINT to a mirror, or {_LOCAL}.")
        return StorageError(f"{where} answers HTTP {status} when asked for '{repo}'.", way)
    if isinstance(error, FileMetadataError):
        return StorageError(
            f"{where} does not answer as a model hub does when asked for '{repo}'.",
            "Check HF_ENDPOINT; a proxy or a login page may answer in its place.",
        )
    return StorageError(
        f"{where} cannot be reached to ask for '{repo}': {one_line(str(error)) or type(error).__name__}.",
        f"Check network and proxy, set HF_ENDPOINT to a mirror, or {_LOCAL}.",
    )
