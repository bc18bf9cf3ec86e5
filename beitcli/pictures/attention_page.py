"""The attention explorer: one HTML file for any number of images, every layer, head and query (`pages/attention/`).

A map is stored relative to its strongest patch in 255 or 65,535 steps; the strongest patch and the class token are
float32, so exact. BEiT-B at 224 pixels: 10.2 MB of base64 with its 12 x 12 heads in 8 bits, means and rollouts in 16.
What does not fit is left out, heads first, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from beitcli.escaping import shell_line, terminal_line
from beitcli.pictures import colormap
from beitcli.pictures.page_file import Page, assemble, base64_of, fill, image_url, page_part, plain_section

_THUMBNAIL = (168, 120)


@dataclass(frozen=True)
class Storage:
    """How much of the attention a page holds.

    Attributes:
        bits: 8 or 16, of the means over the heads and of the rollouts.
        head_bits: 8 or 16, of the single heads.
        heads: Whose heads are held: of every layer, of the one that the page opens on, or of none.
    """

    bits: int
    head_bits: int
    heads: str  # "all", "one" or "none"


_STORAGES = (
    Storage(16, 16, "all"),
    Storage(16, 8, "all"),
    Storage(16, 8, "one"),
    Storage(8, 8, "one"),
    Storage(16, 8, "none"),
    Storage(8, 8, "none"),
)


@dataclass(frozen=True)
class Explorer:
    """What all images of a page have in common.

    Attributes:
        model: Its name; any text.
        grid: (h, w) patches.
        depth: Blocks of the model; `heads` in each.
        layer: The block shown first, from 0.
        head: "mean", "rollout" or the number of the head shown first.
        threshold: Fraction of the attention in (0, 1] shown first; None for all.
        smooth: Whether maps are shown smooth first, instead of in blocks.
        has_class_token: Whether there is one, to be a query too.
        storage: Of `choose_storage`.
    """

    model: str
    grid: tuple[int, int]
    depth: int
    heads: int
    layer: int
    storage: Storage
    head: str = "mean"
    threshold: float | None = None
    smooth: bool = False
    has_class_token: bool = True

    def holds_heads(self, layer: int) -> bool:
        """Whether the page has the heads of a layer."""
        return self.storage.heads == "all" or (self.storage.heads == "one" and layer == self.layer)


@dataclass(frozen=True)
class ExploredImage:
    """One image of a page.

    Attributes:
        name: Of its file; any text.
        picture: RGB, the crop that the patches cover.
        box: The crop in the upright image, (left, upper, right, lower) in pixels.
        patches: (row, column) of the reference points.
        layers: One `packed_layer` for each block of the model, in order.
        command: The words of the command that draws its maps, without those that the page's controls stand for.
    """

    name: str
    picture: Image.Image
    box: tuple[float, float, float, float]
    patches: Sequence[tuple[int, int]]
    layers: Sequence[dict[str, Any]]
    command: Sequence[str]


def choose_storage(grid: tuple[int, int], depth: int, heads: int, images: int, max_bytes: int) -> Storage:
    """Returns the most complete storage of which `images` images fit into a page; the smallest if none does.

    Args:
        max_bytes: Of attention as base64; pictures and the page's own files (0.3 MB) come on top.
    """
    patches = grid[0] * grid[1]

    def size(storage: Storage) -> int:
        of_heads = {"all": depth, "one": 1, "none": 0}[storage.heads] * heads
        one = (patches + 1) * patches // 8
        values = 2 * depth * one * storage.bits + of_heads * one * storage.head_bits
        return 4 * (values + (2 * depth + of_heads) * (patches + 1) * 8) // 3

    return next((each for each in _STORAGES if images * size(each) <= max_bytes), _STORAGES[-1])


def packed_layer(explorer: Explorer, layer: int, heads: np.ndarray, rollout: np.ndarray) -> dict[str, Any]:
    """Encodes the attention of one block.

    Args:
        heads: (heads, L, L), class token first.
        rollout: (L, L), up to this block.

    Raises:
        ValueError: `heads` or `rollout` does not fit the grid.
    """
    tokens = explorer.grid[0] * explorer.grid[1] + 1
    if heads.shape != (explorer.heads, tokens, tokens) or rollout.shape != (tokens, tokens):
        raise ValueError(f"attention of shape {heads.shape} does not fit a grid of {explorer.grid}")
    return {
        "mean": _packed(heads.mean(axis=0)[None], explorer.storage.bits),
        "rollout": _packed(rollout[None], explorer.storage.bits),
        "heads": _packed(heads, explorer.storage.head_bits) if explorer.holds_heads(layer) else None,
    }


def _packed(rows: np.ndarray, bits: int) -> dict[str, Any]:
    """Encodes (K, L, L) maps: relative to the strongest patch, that patch, and the class token."""
    most = rows[..., 1:].max(axis=-1)
    relative = rows[..., 1:] / np.where(most > 0, most, 1)[..., None]
    steps, kind = (255, "u1") if bits == 8 else (65535, "<u2")
    return {
        "bits": bits,
        "weights": base64_of(np.rint(relative * steps).astype(kind)),
        "most": base64_of(most.astype("<f4")),
        "cls": base64_of(rows[..., 0].astype("<f4")),
    }


def attention_page(images: Sequence[ExploredImage], explorer: Explorer) -> str:
    """Builds the page as HTML, to be encoded as UTF-8; several images become a gallery.

    Raises:
        ValueError: No images.
    """
    if not images:
        raise ValueError("a page of no images")
    head = explorer.head
    if head not in ("mean", "rollout") and not explorer.holds_heads(explorer.layer):
        head = "mean"
    data: dict[str, Any] = {
        "model": terminal_line(explorer.model),
        "grid": explorer.grid,
        "depth": explorer.depth,
        "heads": explorer.heads,
        "classToken": explorer.has_class_token,
        "shape": images[0].picture.width / images[0].picture.height,
        "palette": base64_of(colormap.apply(np.linspace(0, 1, 256)[None])),
        "start": {
            "layer": explorer.layer,
            "head": head,
            "share": 1 if explorer.threshold is None else explorer.threshold,
            "smooth": explorer.smooth,
        },
        "leftOut": _left_out(explorer),
        "images": [_as_data(image) for image in images],
    }
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return assemble(
        Page(
            title=f"{images[0].name}{more}: attention",
            body=fill(page_part("attention/page.html"), title=images[0].name),
            styles=page_part("attention/style.css"),
            script=page_part("attention/page.js") + page_part("attention/controls.js"),
            data=data,
            plain=_plain(explorer, data["images"]),
        )
    )


def _plain(explorer: Explorer, images: Sequence[dict[str, Any]]) -> str:
    """Returns what a reader without JavaScript sees: what the page holds, and how to get a map as a picture."""
    texts = [
        "The maps are drawn by JavaScript, which is off here. As a picture:",
        shell_line(["beit", "attn-map", "IMAGE", "--model", explorer.model, "-o", "map.png"]),
    ]
    grid = f"{explorer.grid[0]} x {explorer.grid[1]} patches"
    rows = [("model", explorer.model), ("attention", f"{explorer.depth} layers of {explorer.heads} heads, {grid}")]
    return plain_section("Attention maps", texts, rows, [(each["name"], each["thumbnail"]) for each in images])


def _as_data(image: ExploredImage) -> dict[str, Any]:
    thumbnail = image.picture.convert("RGB")
    thumbnail.thumbnail(_THUMBNAIL, Image.Resampling.LANCZOS)
    return {
        "name": terminal_line(image.name),
        "picture": image_url(image.picture, quality=92),
        "thumbnail": image_url(thumbnail, quality=85),
        "box": image.box,
        "points": [list(patch) for patch in image.patches],
        "layers": list(image.layers),
        "command": shell_line(image.command),
    }


def _left_out(explorer: Explorer) -> str:
    if explorer.storage.heads == "all":
        return ""
    whose = "other layers" if explorer.storage.heads == "one" else "all layers"
    return f"The single heads of {whose} are left out, to keep this page small: --page-mb raises its limit."
