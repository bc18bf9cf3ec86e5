"""`beit mask-preview --animate RUN`: the previews of a run's saves as one animation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.engine.io.picture_outputs import picture_file
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import DataError, UsageError
from beitcli.pictures.animation import FORMATS, frames_of, save_animation

_NAME = re.compile(r"step-(\d+)\.png")
_SECONDS = 10  # that an animation lasts, within the bounds of a frame
_FRAME = (150, 800)  # least and most milliseconds
_MOST_FRAMES = 120


def preview_files(run: Path) -> list[tuple[int, Path]]:
    """Returns step and file of each preview of a run, by step. Raises DataError if there are none."""
    folder = run / "previews" if (run / "previews").is_dir() else run
    found = [(int(match[1]), path) for path in _listed(folder) if (match := _NAME.fullmatch(path.name))]
    if not found:
        raise DataError(
            f"'{run}' has no previews (previews/step-N.png).", "Give a run of pretrain that has saved some."
        )
    return sorted(found)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"'{folder}' cannot be read: {error.strerror}.", "Give the folder of a run.") from None


def animate_previews(config: MaskPreviewConfig) -> dict[str, Any]:
    """Writes the animation; returns `{"run", "steps", "output"}`.

    Of more than 120 previews, that many are taken at even distances, the first and the last among them.

    Raises:
        UsageError: No `-o`, or its suffix is no format of animations.
        DataError: No previews, or one cannot be read.
    """
    run, output = Path(config.animate or ""), config.output
    if not output or output == "-":
        raise UsageError("--animate needs a file to write.", f"Give -o with a name that ends in {', '.join(FORMATS)}.")
    previews = preview_files(run)
    inputs = ProtectedInputs(config, images=[str(path) for _, path in previews])
    file = picture_file(output, "-o", inputs, overwrite=config.overwrite, formats=FORMATS)
    if len(previews) > _MOST_FRAMES:
        last = len(previews) - 1
        previews = [previews[round(number * last / (_MOST_FRAMES - 1))] for number in range(_MOST_FRAMES)]
    pictures = [_read(path) for _, path in previews]
    frames = frames_of(pictures, [f"step {step:,}" for step, _ in previews])
    pause = min(max(_FRAME[0], 1000 * _SECONDS // len(frames)), _FRAME[1])
    format = FORMATS.get(file.path.suffix.lower(), "GIF")
    file.write(lambda target: save_animation(target, frames, format, pause))
    return {"run": str(run), "steps": [step for step, _ in previews], "output": output}


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.", "Remove it, or make the preview again.") from None
