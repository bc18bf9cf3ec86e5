"""Output files that a resumed job goes on with: which images they hold, and whether the same tokenizer made them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beitcli.data.loading.batches import ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.events import Note, OnEvent
from beitcli.errors import UsageError
from beitcli.tokenizers.base import Tokenizer, to_unit

_SAME = 0.97  # least share of equal tokens of an image by one tokenizer in one precision, on any device


def remaining_images(source: Source, held: Collection[str], on_event: OnEvent) -> Source:
    """Returns the images whose paths are not among those that a file holds."""
    missing = np.array([index for index in range(len(source)) if source.path(index) not in held], dtype=np.int64)
    on_event(Note(f"{len(source) - len(missing):,} of {len(source):,} images are in the file already"))
    return Subset(source, missing)


def tokens_transform(size: int) -> CenterTransform:
    """Returns the transform of the images of `beit tokenize`."""
    return CenterTransform(size=size, filter=Image.Resampling.LANCZOS)


@torch.no_grad()
def require_same_tokens(
    path: Path,
    stored: Mapping[str, Sequence[int]],
    source: Source,
    tokenizer: Tokenizer,
    size: int,
    device: torch.device,
) -> None:
    """Encodes images of a file that does not say its tokenizer again, and compares.

    Says nothing of images that are no longer in the source, or cannot be read.

    Args:
        stored: Tokens in the file by path of the image.
        size: Side of the images in pixels.

    Raises:
        UsageError: In most images less than 97% of the tokens are equal.
    """
    indices = [index for index in range(len(source)) if source.path(index) in stored] if stored else []
    if not indices:
        return
    chosen = Subset(source, np.array(indices[: len(stored)], dtype=np.int64))
    shares: list[torch.Tensor] = []  # of an image
    for batch in ordered_batches(chosen, tokens_transform(size), batch_size=len(chosen), workers=0):
        if len(batch):
            tokens = tokenizer.encode(to_unit(batch.to(device)["images"])).cpu()
            held = torch.tensor([stored[chosen.path(index)] for index in batch.indices])
            shares.append((tokens == held).float().mean(dim=1))
    if shares and float(torch.cat(shares).median()) < _SAME:  # the median: an image may have been replaced meanwhile
        raise UsageError(
            f"'{path}' was made by another tokenizer, or in another precision: "
            f"its tokens of '{chosen.path(0)}' and others are not those of this one.",
            "Go on with the tokenizer that made it, begin again with --overwrite, or give another -o FILE.",
        )
