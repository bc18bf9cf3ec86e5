"""Computes the attention of reference points, and for a page that of every query, for a batch of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from beitcli.config.attn_map import AttnMapConfig
from beitcli.data.transforms.base import fit_center, normalize, to_array
from beitcli.data.transforms.reference_points import CentralCrop, Patch, Pixel
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.attention_maps import attention_by_layer, attention_rows, block_index, next_rollout
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.pictures.attention_page import Explorer, choose_storage, packed_layer
from beitcli.runtime.compute.device import Compute

_DECIMALS = 8


@dataclass(frozen=True)
class MappedImage:
    """Attention of the points of one image.

    Attributes:
        maps: (P, K, h, w) float32, P points and K heads.
        class_shares: (P, K) float32, attention to the class token.
        layers: Every block for the page, `packed_layer` each; empty without a page.
    """

    image: Image.Image
    crop: CentralCrop
    points: list[Pixel]
    patches: list[Patch]
    maps: np.ndarray
    class_shares: np.ndarray
    layers: list[dict[str, Any]] = field(default_factory=list)

    def as_documents(self, names: list[str | int]) -> list[dict[str, Any]]:
        """Returns one entry for each point and head, as `maps` of the document has them."""
        return [
            {
                "point": list(point),
                "patch": list(patch),
                "head": name,
                "attention": self.maps[p, k].astype(float).round(_DECIMALS).tolist(),
                "cls": round(float(self.class_shares[p, k]), _DECIMALS),
            }
            for p, (point, patch) in enumerate(zip(self.points, self.patches, strict=True))
            for k, name in enumerate(names)
        ]

    def crop_picture(self, least: int, most: int) -> Image.Image:
        """Returns the crop at the file's resolution, its longer side within the bounds in pixels, 8 or more a patch."""
        rows, columns = self.crop.grid
        left, upper, right, lower = self.crop.box
        sharpest = min(max(round(right - left), round(lower - upper), least), most)
        a_patch = max(8, -(-sharpest // max(rows, columns)))
        return self.image.resize((columns * a_patch, rows * a_patch), Image.Resampling.LANCZOS, self.crop.box)


class AttentionMapper:
    """Computes the attention maps of one block of one model.

    Attributes:
        layer: The block, from 0.
        names: Of the maps of each point: "mean", "rollout" or numbers of heads.

    Raises:
        UsageError: The model has no such block or head.
    """

    def __init__(
        self,
        config: AttnMapConfig,
        model: ImageClassifier,
        checkpoint: CheckpointHandle,
        compute: Compute,
        points: list[Pixel],
    ) -> None:
        self.config, self.model, self.checkpoint, self.compute, self.points = config, model, checkpoint, compute, points
        self.layer = block_index(model, config.layer)
        heads = model.architecture.heads
        if config.head.isdecimal() and int(config.head) >= heads:
            raise UsageError(
                f"--head {int(config.head)}: the model has {heads} heads.",
                f"Give mean, rollout, all, or 0 to {heads - 1}.",
            )
        self.names: list[str | int] = [int(config.head) if config.head.isdecimal() else config.head]
        if config.head == "all":
            self.names = list(range(heads))

    def explorer(self, images: int) -> Explorer:
        """Returns what a page of so many images holds, and what it opens on."""
        architecture, depth = self.model.architecture, len(self.model.blocks)
        most = round(self.config.page_mb * 1e6)
        return Explorer(
            model=self.checkpoint.reference,
            grid=architecture.grid,
            depth=depth,
            heads=architecture.heads,
            layer=self.layer,
            storage=choose_storage(architecture.grid, depth, architecture.heads, images, most),
            head="mean" if self.config.head == "all" else str(self.names[0]),
            threshold=self.config.threshold,
            smooth=self.config.smooth,
            has_class_token=getattr(self.model, "num_prefix_tokens", 1) > 0,
        )

    def look(self, images: list[Image.Image], explorer: Explorer | None = None) -> Iterator[MappedImage]:
        """Runs the model once on all images, whose points may lie in different patches.

        Args:
            explorer: Of the page, for which every layer and query is computed; None for the points alone.
        """
        if not images:
            return
        size, grid = self.model.architecture.image_size, self.model.architecture.grid
        crops = [CentralCrop(*image.size, size, grid) for image in images]
        points = [self.points or crop.reference_points() for crop in crops]
        patches = [[crop.patch_of(point) for point in own] for crop, own in zip(crops, points, strict=True)]
        positions = [[1 + row * grid[1] + column for row, column in own] for own in patches]
        queries = sorted({position for own in positions for position in own})
        layers: list[list[dict[str, Any]]] = [[] for _ in images]
        rows = self._rows(images, queries) if explorer is None else self._explored(images, queries, explorer, layers)
        for number, own_rows in enumerate(rows):
            places = [queries.index(position) for position in positions[number]]
            at_points = own_rows[:, places].swapaxes(0, 1)
            maps, class_shares = at_points[..., 1:].reshape(*at_points.shape[:2], *grid), at_points[..., 0]
            own = crops[number], points[number], patches[number]
            yield MappedImage(images[number], *own, maps, class_shares, layers[number])

    @torch.no_grad()
    def _rows(self, images: list[Image.Image], queries: list[int]) -> np.ndarray:
        """Returns (B, K, R, L) float32: the attention of the positions `queries` under each of `names`."""
        with self.compute.autocast():
            if self.names != ["rollout"]:
                return self._named(attention_rows(self.model, self._batch(images), self.layer, queries), None)
            rollout = None
            for attention in attention_by_layer(self.model, self._batch(images), self.layer):
                rollout = next_rollout(rollout, attention)
        return self._named(attention, rollout)[:, :, queries]

    @torch.no_grad()
    def _explored(
        self, images: list[Image.Image], queries: list[int], explorer: Explorer, layers: list[list[dict[str, Any]]]
    ) -> np.ndarray:
        """Returns what `_rows` does, and appends every block of every image to `layers`."""
        rollout, rows = None, None
        with self.compute.autocast():
            for layer, attention in enumerate(attention_by_layer(self.model, self._batch(images))):
                rollout = next_rollout(rollout, attention)
                if layer == self.layer:
                    rows = self._named(attention, rollout)[:, :, queries]
                heads, rollouts = self._finite(attention), self._finite(rollout)
                for number, own in enumerate(layers):
                    own.append(packed_layer(explorer, layer, heads[number], rollouts[number]))
        assert rows is not None
        return rows

    def _batch(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = np.stack([to_array(fit_center(image, self.model.architecture.image_size)) for image in images])
        return normalize(torch.from_numpy(pixels).to(self.compute.device), *self.checkpoint.normalization)

    def _named(self, attention: torch.Tensor, rollout: torch.Tensor | None) -> np.ndarray:
        """Chooses the maps of `names`: (B, heads, R, L), and (B, R, L) of the rollout -> (B, K, R, L)."""
        if self.names == ["rollout"]:
            assert rollout is not None
            return self._finite(rollout.unsqueeze(1))
        rows = self._finite(attention)
        if self.names == ["mean"]:
            return rows.mean(axis=1, keepdims=True)
        return rows if len(self.names) > 1 else rows[:, [int(self.names[0])]]

    def _finite(self, attention: torch.Tensor) -> np.ndarray:
        rows = attention.float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise StorageError(
                f"The attention of '{self.checkpoint.reference}' in {self.compute.precision} is not finite.",
                "Give --precision fp32, or an earlier checkpoint.",
            )
        return rows
