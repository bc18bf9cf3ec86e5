"""Files of visual tokens by suffix: .jsonl is appended line by line, archives are written when the job has ended."""

from __future__ import annotations

from pathlib import Path

from beitcli.config.output_formats import unknown_format
from beitcli.engine.io.token_archives import Npz, Parquet, Safetensors
from beitcli.engine.io.token_lines import JsonLines, TokenFile, TokenKind

FORMATS: dict[str, type[TokenFile]] = {
    ".jsonl": JsonLines,
    ".npz": Npz,
    ".safetensors": Safetensors,
    ".parquet": Parquet,
}


def open_token_file(path: Path, kind: TokenKind, resume: bool) -> TokenFile:
    """Returns the writer for the file's suffix.

    Raises:
        UsageError: Unknown suffix, or with `resume` a file that holds tokens of another kind.
        StorageError: It is not a token file, or cannot be written.
    """
    require_known_suffix(path)
    return FORMATS[path.suffix.lower()](path, kind, resume)


def require_known_suffix(path: Path) -> None:
    """Raises UsageError if the suffix is that of no format."""
    if path.suffix.lower() not in FORMATS:
        raise unknown_format(path, FORMATS)
