"""What `beit export` refuses before it opens the weights: a place that is taken, a kind of model without an export."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from beitcli.config.architecture import kind_in_words
from beitcli.config.inspect_export import ExportConfig
from beitcli.engine.io.output_paths import require_folder
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import UsageError
from beitcli.runtime.extras import install_line

_KINDS = ("masked-image-model", "classifier", "backbone")
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def is_one_file(config: ExportConfig) -> bool:
    """Whether the export is one file, NAME.onnx, and no folder."""
    target = Path(config.output)
    return config.to == "onnx" and target.suffix.lower() == ".onnx" and not target.is_dir()


def require_packages(config: ExportConfig) -> None:
    """Raises UsageError if a package that the format needs is not installed."""
    needed = _ONNX_PACKAGES if config.to == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        raise UsageError(
            f"--to {config.to} needs {named}, which {'are' if others else 'is'} not installed.",
            f"Install {'them' if others else 'it'}: {install_line('onnx', missing)}",
        )


def require_free_target(config: ExportConfig) -> None:
    """Raises UsageError if `-o` exists, or holds files that `--overwrite` does not allow to replace.

    Raises StorageError if it cannot be made.
    """
    target = Path(config.output).resolve()
    if is_one_file(config):
        require_writable_outputs([target], f"-o '{config.output}'", ProtectedInputs(config), overwrite=config.overwrite)
    elif target.exists() and (not target.is_dir() or (any(target.iterdir()) and not config.overwrite)):
        raise taken(config)
    require_folder(target.parent)


def taken(config: ExportConfig) -> UsageError:
    """Returns the error for a folder that is in use."""
    hint = "Give a new or empty folder, or add --overwrite to replace the files of an export in it."
    return UsageError(f"-o '{config.output}' is there already.", hint)


def refuse_kind(config: ExportConfig, kind: str) -> None:
    """Raises UsageError for a kind of model that no layout holds."""
    if kind not in _KINDS:
        raise UsageError(
            f"'{config.model}' is {kind_in_words(kind)}, which has no export.", "Export a pretraining or classifier."
        )
