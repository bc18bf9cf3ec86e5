"""Files of visual tokens by suffix: .jsonl is appended line by line, archives are written when the job has ended."""

from __future__ import annotations

import os
from pathlib import Path

from beitcli.config.output_formats import PICTURE_SUFFIXES, unknown_format
from beitcli.config.tokenize import TokenizeConfig
from beitcli.engine.io.output_paths import is_stream, require_folder
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.part_files import part_files
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.token_archives import Npz, Parquet, Safetensors
from beitcli.engine.io.token_lines import JsonLines, TokenFile, TokenKind
from beitcli.errors import UsageError

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


def require_writable_tokens(config: TokenizeConfig, inputs: ProtectedInputs) -> None:
    """Refuses to replace what exists at `-o`, and its part files.

    Raises:
        UsageError: Unknown suffix, or one is a folder, an input, or exists without `--overwrite` or `--resume`.
        StorageError: The folder cannot be made.
    """
    path = Path(config.output)
    require_known_suffix(path)
    require_writable_outputs(
        [path] if path.suffix.lower() == ".jsonl" else [path, *part_files(path)],
        f"-o '{path}'",
        inputs,
        overwrite=config.overwrite or config.resume,
        follows=True,
        way_out=", or --resume to go on with it",
    )
    if not is_stream(path):
        require_folder(Path(os.path.realpath(path)).parent)


def require_known_suffix(path: Path) -> None:
    """Raises UsageError if the suffix is that of no format."""
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        hint = f"Tokens as a picture: --map {path}. As numbers: a name that ends in {', '.join(FORMATS)}."
        raise UsageError(f"-o '{path}' is a picture's name, and -o writes tokens.", hint)
    if suffix not in FORMATS:
        raise unknown_format(path, FORMATS)
