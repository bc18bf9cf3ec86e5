"""What a pretrained model makes of hidden patches, for `beit mask-preview --model`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.data.transforms.base import FILTERS, Size, denormalize, fit_center, normalize, to_array
from beitcli.engine.events import OnEvent, downloads, warn
from beitcli.engine.io.outputs import to_picture
from beitcli.engine.tokenizer_loading import tokenizer_for, tokenizer_of
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.patchify import join_patches, patch_pixels
from beitcli.runtime.compute.device import Compute
from beitcli.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class PretrainedRun:
    """A masked image model, with the tokenizer of its targets if it has one."""

    model: MaskedImageModel
    checkpoint: CheckpointHandle
    tokenizer: Tokenizer | None
    compute: Compute

    @torch.no_grad()
    def reconstruct(self, pictures: list[Image.Image], masks: list[np.ndarray]) -> list[Image.Image]:
        """Returns pictures of the visible patches and the model's prediction of the hidden ones, in one pass."""
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
        else:
            rows, columns = (patches * self.tokenizer.model.downsample for patches in architecture.grid)
            filter = FILTERS[self.checkpoint.settings.get("token_filter", "lanczos")]
            tokens = self.tokenizer.encode(self._views(pictures, (rows, columns), filter))
            tokens[hidden] = outputs.argmax(dim=1)
            rebuilt = self.tokenizer.decode(tokens, architecture.grid)
        return [to_picture(each) for each in rebuilt]

    def _views(self, pictures: list[Image.Image], size: Size, filter: int = Image.Resampling.BICUBIC) -> torch.Tensor:
        """(B, 3, H, W) uint8 on the device."""
        arrays = np.stack([to_array(fit_center(each, size, filter=filter)) for each in pictures])
        return torch.from_numpy(arrays).to(self.compute.device)


def open_pretrained_run(config: MaskPreviewConfig, on_event: OnEvent) -> PretrainedRun:
    """Opens `config.model`, and its tokenizer if a picture is drawn.

    Raises:
        StorageError: The tokenizer has no decoder, or is not the one that the model learned from.
    """
    model, checkpoint = open_masked_image_model(config.model or "", downloads(on_event))
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    tokenizer = None
    if config.output and checkpoint.settings.get("target", "tokens") == "tokens":
        if config.tokenizer:
            tokenizer = tokenizer_for(config.tokenizer, compute.device, on_event)
        else:
            tokenizer = tokenizer_of(checkpoint, compute.device, on_event)
        tokenizer.require_decoder()
        if tokenizer.vocab_size != checkpoint.outputs:
            raise StorageError(
                f"Tokenizer '{tokenizer.reference}' has {tokenizer.vocab_size} codes, '{config.model}' "
                f"{checkpoint.outputs} outputs.",
                "Give the tokenizer that it learned from.",
            )
    return PretrainedRun(model.to(compute.device), checkpoint, tokenizer, compute)
