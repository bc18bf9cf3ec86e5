"""What a masked image model makes of hidden patches, as pictures: for `beit mask-preview --model`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.data.transforms.base import FILTERS, Size, denormalize, fit_center, normalize, to_array
from beitcli.engine.events import OnEvent, downloads, warn
from beitcli.engine.io.outputs import to_picture
from beitcli.engine.report.run_state import settings_of_run
from beitcli.engine.runs import read_run
from beitcli.engine.tokenizer_loading import tokenizer_for, tokenizer_of
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.patchify import join_patches, patch_pixels
from beitcli.pictures.masks import Guesses
from beitcli.runtime.compute.device import Compute
from beitcli.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Guesser:
    """A model with the tokenizer that it learned from.

    Attributes:
        tokenizer: None for a model of pixels, and where no pictures are needed.
        baseline: Accuracy of always guessing the most frequent token in the run's own data, where it is known.
    """

    model: MaskedImageModel
    checkpoint: CheckpointHandle
    tokenizer: Tokenizer | None
    compute: Compute
    baseline: float | None = None

    @torch.no_grad()
    def guess(self, pictures: list[Image.Image], masks: list[np.ndarray]) -> list[Guesses]:
        """Returns the guesses of the hidden patches of some images, in one pass.

        Args:
            masks: (h, w) bool each, True where the patch is hidden.
        """
        architecture = self.model.architecture
        images = normalize(self._views(pictures, architecture.image_size), *self.checkpoint.normalization)
        hidden = torch.from_numpy(np.stack([mask.reshape(-1) for mask in masks])).to(self.compute.device)
        with self.compute.autocast():
            outputs = self.model(images, hidden)
        if self.tokenizer is None:
            pixels = patch_pixels(images, architecture.patch_size)
            pixels[hidden] = outputs.float()
            joined = join_patches(pixels, architecture.grid, architecture.patch_size)
            rebuilt = denormalize(joined, *self.checkpoint.normalization)
            return [Guesses(to_picture(each)) for each in rebuilt]
        rows, columns = (patches * self.tokenizer.model.downsample for patches in architecture.grid)
        filter = FILTERS[self.checkpoint.settings.get("token_filter", "lanczos")]
        own = self.tokenizer.encode(self._views(pictures, (rows, columns), filter))
        guessed = own.clone()
        guessed[hidden] = outputs.argmax(dim=1)
        right = (guessed == own).unflatten(1, architecture.grid).cpu().numpy()
        decoded = [self.tokenizer.decode(tokens, architecture.grid) for tokens in (guessed, own)]
        return [
            Guesses(to_picture(one), to_picture(other), each, self.baseline)
            for one, other, each in zip(*decoded, right, strict=True)
        ]

    def _views(self, pictures: list[Image.Image], size: Size, filter: int = Image.Resampling.BICUBIC) -> torch.Tensor:
        """(B, 3, H, W) uint8 on the device."""
        arrays = np.stack([to_array(fit_center(each, size, filter=filter)) for each in pictures])
        return torch.from_numpy(arrays).to(self.compute.device)


def open_guesser(config: MaskPreviewConfig, draws: bool, on_event: OnEvent) -> Guesser:
    """Opens `--model`, and its tokenizer if pictures are drawn.

    Raises:
        StorageError: The tokenizer has no decoder, or is not the model's.
    """
    reference = config.model or ""
    model, checkpoint = open_masked_image_model(reference, downloads(on_event))
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    tokenizer = None
    if draws and checkpoint.settings.get("target", "tokens") == "tokens":
        if config.tokenizer:
            tokenizer = tokenizer_for(config.tokenizer, compute.device, on_event)
        else:
            tokenizer = tokenizer_of(checkpoint, compute.device, on_event)
        tokenizer.require_decoder()
        if tokenizer.vocab_size != checkpoint.outputs:
            raise StorageError(
                f"Tokenizer '{tokenizer.reference}' has {tokenizer.vocab_size:,} codes, '{config.model}' "
                f"{checkpoint.outputs} outputs.",
                "Give the tokenizer that it learned from.",
            )
    return Guesser(model.to(compute.device), checkpoint, tokenizer, compute, _baseline(reference))


def learned_from(config: MaskPreviewConfig) -> bool:
    """Whether the images are, but for some that it held out, those that the run `--model` learned from.

    It goes by the names of DATA and split in the run's config.toml; of any other MODEL nothing is known.
    """
    try:
        settings = settings_of_run(Path(config.model or ""))
    except (OSError, ValueError):
        return False
    data = settings.get("data")
    given = [data] if isinstance(data, str) else data if isinstance(data, list) else []
    places = [[os.path.realpath(str(each)) for each in names] for names in (given, config.inputs)]
    return places[0] == places[1] and (settings.get("split") or "train") == (config.split or "train")


def _baseline(reference: str) -> float | None:
    """Returns the accuracy of the most frequent token that a run folder has measured; None of any other MODEL."""
    try:
        figures = read_run(Path(reference)).figures if Path(reference, "config.toml").is_file() else {}
    except (OSError, ValueError, RecursionError, OverflowError):
        return None
    return figures.get("held_out_baseline_accuracy", figures.get("baseline_accuracy"))
