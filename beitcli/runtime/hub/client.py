"""Files of repositories on the Hugging Face hub, or a mirror of it, in the cache that its other clients share.

A repository is `OWNER/NAME` where it holds a model, `datasets/OWNER/NAME` where it holds data.
huggingface_hub asks for what there is and finds what is kept; `runtime/hub/download.py` fetches the bodies. What they
raise becomes one sentence and a way out here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
from huggingface_hub.utils import WeakFileLock, validate_repo_id

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.hub.download import OnProgress, Remote, disk_full, download
from beitcli.runtime.weight_files.file_sniffing import one_line

__all__ = [
    "Listing",
    "OnProgress",
    "Remote",
    "cache_folder",
    "fetch",
    "is_offline",
    "kept_file",
    "list_files",
    "remote_file",
]

_DATA = "datasets/"
_ENDPOINT = "https://huggingface.co"
_ON = {"1", "ON", "YES", "TRUE"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(r"https?://([^\s@/]+@)?(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?")
_LOCAL = "pass the folder of a copy made on another machine"


def cache_folder() -> Path:
    """Where this program keeps what it fetches and computes: BEIT_CACHE_DIR, else XDG_CACHE_HOME/beit."""
    if os.environ.get("BEIT_CACHE_DIR"):
        return Path(os.environ["BEIT_CACHE_DIR"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beit"


def fetch(
    repo: str,
    names: Sequence[str],
    *,
    on_progress: OnProgress | None = None,
    revision: str | None = None,
    optional: bool = False,
) -> Path | None:
    """The first of `names` that a repository has, from the cache or downloaded.

    HF_ENDPOINT and HF_HUB_OFFLINE are read at each call. Where the hub cannot be asked, the cache answers.

    Args:
        repo: `OWNER/NAME` or `datasets/OWNER/NAME`.
        on_progress: Called while a body comes in.
        revision: Branch, tag or commit; the main branch if None.
        optional: None rather than an error where the repository has none of them, and where the hub cannot be asked
            and the cache knows the repository without them.

    Raises:
        UsageError: `repo` is no repository name.
        StorageError: It cannot be had; says why.
    """
    _require_repo(repo)
    revision = revision or constants.DEFAULT_REVISION
    for name in names if _COMMIT.fullmatch(revision) else ():  # a commit never changes
        if kept := _cached(repo, name, revision):
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
            return None if remote is None else _obtain(remote, revision, on_progress)
    for name in names:
        if kept := _cached(repo, name, revision):
            return kept
    if optional and _is_known(repo, revision) and _is_unreachable(error):
        return None
    raise _cannot_ask(repo, names, error) from None


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit.

    Attributes:
        sizes: File to bytes; None where the hub does not say.
        marks: File to the hash of its content, as far as the hub says.
    """

    commit: str
    sizes: dict[str, int | None]
    marks: dict[str, str] = field(default_factory=dict)


def list_files(repo: str, *, revision: str | None = None) -> Listing | None:
    """The files of a data set's repository; the last known ones where the hub cannot be asked.

    Args:
        repo: `datasets/OWNER/NAME`.
        revision: Branch, tag or commit; the main branch if None.

    Returns:
        None where the repository has no such revision.

    Raises:
        UsageError: `repo` is no repository name.
        StorageError: They cannot be had; says why.
    """
    _require_repo(repo)
    revision = revision or constants.DEFAULT_REVISION
    kept = cache_folder() / "listings" / f"{_repo_folder(repo).name}--{revision.replace('/', '--')}.json"
    if is_offline():
        error: Exception = OfflineModeIsEnabled("HF_HUB_OFFLINE is set.")
    else:
        try:
            about = HfApi(endpoint=_endpoint()).dataset_info(
                _id(repo), revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            inside = [each for each in about.siblings or [] if _is_inside(each.rfilename)]
            sizes = {each.rfilename: each.size for each in inside}
            marks = {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id or "" for each in inside}
            if not _COMMIT.fullmatch(about.sha or ""):
                raise FileMetadataError("The answer names no commit")
            listing = Listing(about.sha or "", sizes, {name: mark for name, mark in marks.items() if mark})
            with suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(asdict(listing)))
            return listing
        except RevisionNotFoundError:
            return None
        except (KeyError, TypeError, AttributeError):
            error = FileMetadataError("The answer is no list of files")
        except (HTTPError, FileMetadataError, OSError, ValueError) as problem:
            error = problem
    if _is_unreachable(error):
        with suppress(OSError, ValueError, TypeError):
            return Listing(**json.loads(kept.read_text()))
    raise _cannot_ask(repo, [], error) from None


def remote_file(repo: str, name: str, listing: Listing) -> Remote:
    """A file of a listing, to be read in parts at its commit."""
    url = hf_hub_url(_id(repo), name, repo_type=_kind(repo), revision=listing.commit, endpoint=_endpoint())
    return Remote(repo, name, listing.commit, listing.marks.get(name, ""), listing.sizes[name], url)


def kept_file(repo: str, name: str, commit: str) -> Path | None:
    """The file in the cache where all of it was downloaded, by whichever client."""
    return _cached(repo, name, commit)


def _is_inside(name: str) -> bool:
    """Whether a file's name stays in its folder; a hub could say anything."""
    return not name.startswith("/") and "\\" not in name and ".." not in name.split("/")


def _kind(repo: str) -> str:
    return "dataset" if repo.startswith(_DATA) else "model"


def _id(repo: str) -> str:
    return repo.removeprefix(_DATA)


def _require_repo(repo: str) -> None:
    try:
        validate_repo_id(_id(repo))
        valid = re.fullmatch(r"[\w.-]+/[\w.-]+", _id(repo)) is not None
    except HFValidationError:
        valid = False
    if not valid:
        example = {"model": "microsoft/beit-base-patch16-224", "dataset": "uoft-cs/cifar10"}[_kind(repo)]
        raise UsageError(
            f"'{one_line(_id(repo))}' is no {_kind(repo)} repository.", f"Give OWNER/NAME, such as {example}."
        )


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    if not _ADDRESS.fullmatch(endpoint):
        raise UsageError(f"HF_ENDPOINT '{one_line(endpoint)}' is no address.", f"Give one such as {_ENDPOINT}.")
    return endpoint


def is_offline() -> bool:
    """As it is set now; huggingface_hub holds to what was set when it was imported."""
    return any(os.environ.get(name, "").upper() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _hub_cache() -> Path:
    return cache_folder() / "hub" if os.environ.get("BEIT_CACHE_DIR") else Path(constants.HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return _hub_cache() / repo_folder_name(repo_id=_id(repo), repo_type=_kind(repo))


def _cached(repo: str, name: str, revision: str) -> Path | None:
    found = try_to_load_from_cache(_id(repo), name, cache_dir=_hub_cache(), revision=revision, repo_type=_kind(repo))
    return Path(found) if isinstance(found, str) else None


def _is_known(repo: str, revision: str) -> bool:
    """Whether the cache has had to do with this revision."""
    folder = _repo_folder(repo)
    return (folder / "refs" / revision).is_file() or (folder / "snapshots" / revision).is_dir()


def _look_up(repo: str, names: Sequence[str], revision: str) -> Remote | None:
    """The first of `names` that the hub has at that revision; None where it has none."""
    for name in names:
        url = hf_hub_url(_id(repo), name, repo_type=_kind(repo), revision=revision, endpoint=_endpoint())
        try:
            about = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except EntryNotFoundError:
            continue
        commit, mark = about.commit_hash or "", about.etag or ""
        if not _COMMIT.fullmatch(commit) or not re.fullmatch(r"[\w-]+", mark):  # both become names of files
            raise FileMetadataError("The answer names no commit or no hash of the file")
        at_commit = hf_hub_url(_id(repo), name, repo_type=_kind(repo), revision=commit, endpoint=_endpoint())
        return Remote(repo, name, commit, mark, about.size, at_commit)
    return None


def _obtain(remote: Remote, revision: str, on_progress: OnProgress | None) -> Path:
    """The file in the cache, downloaded unless it is there."""
    kept = _cached(remote.repo, remote.name, revision)
    if kept and remote.commit in kept.parts:
        return kept
    folder = _repo_folder(remote.repo)
    blob, lock = folder / "blobs" / remote.mark, _hub_cache() / ".locks" / folder.name / f"{remote.mark}.lock"
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the one that the hub's own clients take
            if not blob.exists():
                download(remote, blob, on_progress)
            return _link(remote, revision, blob)
    except HTTPError as error:
        raise _cannot_ask(remote.repo, [remote.name], error) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(remote, folder) from None
        raise StorageError(
            f"'{remote.label}' cannot be kept in '{_hub_cache()}': {error.strerror or error}.",
            "Give a writable folder in BEIT_CACHE_DIR.",
        ) from None


def _link(remote: Remote, revision: str, blob: Path) -> Path:
    """Enters a blob under its commit, and the commit under its branch or tag, as the hub's cache has them."""
    folder = blob.parent.parent
    pointer, ref = folder / "snapshots" / remote.commit / remote.name, folder / "refs" / revision
    if not pointer.exists():
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)  # one whose blob was removed
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # some file systems have no links
            shutil.copyfile(blob, pointer)
    if revision != remote.commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(remote.commit)
    return pointer


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub was not asked at all, or had no answer; False where it refused."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _cannot_ask(repo: str, names: Sequence[str], error: Exception) -> StorageError:
    """Why a file that is not in the cache cannot be had."""
    where = _endpoint()
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
            f"There is no {_kind(repo)} repository '{_id(repo)}' at {where}, or it is private.",
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
