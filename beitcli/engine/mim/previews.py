"""Previews of masked image modeling: image, what is hidden, and what the model makes of it.

Of a tokenizer that cannot decode: which of the hidden tokens are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from beitcli.config.architecture import Architecture
from beitcli.config.normalization import Normalization
from beitcli.data.loading.batch_datasets import Masking
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import Size, denormalize, fit_center, normalize, to_array
from beitcli.engine.io.outputs import to_picture
from beitcli.models.networks.patchify import join_patches, patch_pixels
from beitcli.pictures.canvas import PREVIEW_TEXT, Panel, contact_sheet
from beitcli.pictures.masks import MARKS, Guesses, mark_guesses, mask_overlay, mask_panels
from beitcli.pictures.panels import nearest
from beitcli.tokenizers.base import Tokenizer

_WIDTH = 224  # pixels of each picture at least


@dataclass(frozen=True)
class CenterViews:
    """The center of an image, for the model and for its tokenizer.

    Attributes:
        token_size: None if the targets are pixels.
    """

    image_size: Size
    token_size: Size | None
    token_filter: int

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """Returns `images` and `token_images`, (3, H, W) uint8 each."""
        views = {"images": to_array(fit_center(image, self.image_size))}
        if self.token_size is not None:
            views["token_images"] = to_array(fit_center(image, self.token_size, filter=self.token_filter))
        return views


def first_images(source: Source, views: CenterViews, masking: Masking, images: int) -> Batch | None:
    """Returns the first readable ones of the first `images` images, with the masks of epoch 0; None if none is."""
    batch = next(ordered_batches(source, views, batch_size=images, workers=0, masking=masking), None)
    return batch if batch is not None and len(batch) else None


def guessed_pixels(
    images: torch.Tensor, mask: torch.Tensor, outputs: torch.Tensor, architecture: Architecture, how: Normalization
) -> list[Guesses]:
    """Returns the images with the predicted pixels in the hidden patches.

    Args:
        images: (B, 3, H, W) uint8.
        mask: (B, N) bool.
        outputs: (M, 3 * P * P), of the hidden patches.
    """
    pixels = patch_pixels(normalize(images, *how), architecture.patch_size)
    pixels[mask] = outputs.float()
    joined = join_patches(pixels, architecture.grid, architecture.patch_size)
    return [Guesses(to_picture(each)) for each in denormalize(joined, *how)]


def guessed_tokens(
    tokenizer: Tokenizer, tokens: torch.Tensor, mask: torch.Tensor, outputs: torch.Tensor, grid: tuple[int, int]
) -> list[Guesses]:
    """Returns the images as the tokenizer decodes them, with the most likely tokens in the hidden patches.

    Args:
        tokens: (B, N) int64, the true ones.
        mask: (B, N) bool.
        outputs: (M, V), of the hidden patches.
    """
    guessed = tokens.clone()
    guessed[mask] = outputs.argmax(dim=1)
    right = (guessed == tokens).unflatten(1, grid).cpu().numpy()
    guesses, own = (map(to_picture, tokenizer.decode(each, grid)) for each in (guessed, tokens))
    return [Guesses(*each) for each in zip(guesses, own, right, strict=True)]


def reconstruction_panels(images: torch.Tensor, masks: np.ndarray, guesses: Sequence[Guesses]) -> Image.Image:
    """Draws for each image itself, what is hidden, and what the model makes of it, as `beit mask-preview` does.

    Args:
        images: (B, 3, H, W) uint8.
        masks: (B, h, w) bool.
    """
    return contact_sheet(
        [
            mask_panels(to_picture(image), mask, each, min_width=_WIDTH)
            for image, mask, each in zip(images / 255, masks, guesses, strict=True)
        ],
        PREVIEW_TEXT,
        guesses[0].legend,
    )


def agreement_panels(images: torch.Tensor, masks: np.ndarray, right: np.ndarray) -> Image.Image:
    """Draws a row an image: itself, and which of its hidden tokens the model predicts.

    Args:
        images: (B, 3, H, W) uint8.
        masks: (B, h, w) bool.
        right: (B, h, w) bool, True where the prediction is the true token.
    """
    rows = []
    for image, mask, hit in zip(map(to_picture, images / 255), masks, right, strict=True):
        marked = mask_overlay(image, mask, _WIDTH)
        mark_guesses(marked, mask, hit)
        shown = nearest(image, marked.size)
        rows.append([Panel(shown, "image"), Panel(marked, "hidden", Guesses(image, right=hit).notes(mask))])
    return contact_sheet(rows, PREVIEW_TEXT, (MARKS,))
