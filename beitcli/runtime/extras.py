"""Libraries that only some formats and writers need, by the extra of pyproject.toml that has them.

Messages name the libraries, not `beit-cli[EXTRA]`: that line works however this program was installed, from a checkout
too, and never fetches a project of the same name.
"""

from __future__ import annotations

from collections.abc import Collection

from beitcli.escaping import shell_line

EXTRAS = {
    "hub": ("pyarrow>=17",),
    "heic": ("pillow-heif>=0.16",),
    "detect": ("pycocotools>=2.0.8",),
    "tensorboard": ("tensorboard>=2.17",),
    "wandb": ("wandb>=0.18",),
    "mlflow": ("mlflow>=3",),
    "onnx": ("onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"),
}


def install_line(extra: str, names: Collection[str] = ()) -> str:
    """Returns the command that installs the libraries of an extra, such as `pip install 'pyarrow>=17'`.

    Args:
        names: Those of them that are missing; empty for all.
    """
    missing = [each for each in EXTRAS[extra] if not names or each.partition(">")[0] in names]
    return shell_line(["pip", "install", *missing])
