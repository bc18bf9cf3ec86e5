"""`beit attn-map`: attention maps of reference points (paper, section 3.4, Figure 2), one document per image in order.

Costs a forward pass up to the block. Attention rows are computed only for the points of the batch's images; an HTML
page needs every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from beitcli.config.attn_map import AttnMapConfig
from beitcli.data.transforms.base import fit_center, normalize, to_array
from beitcli.data.transforms.reference_points import CentralCrop, Patch, Pixel, parse_point
from beitcli.engine.events import OnEvent, Progress, downloads, ignore, warn
from beitcli.engine.io.inputs import image_groups, open_inputs
from beitcli.engine.io.outputs import OutputFile, output_files
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.newest_run import newest_run
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.checkpoints.build import open_backbone
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.attention_maps import attention_rows, block_index
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.pictures.attention import add_colorbar, attention_panel, draw_heatmap
from beitcli.pictures.attention_page import attention_page
from beitcli.pictures.panels import grid_of, mark_point
from beitcli.runtime.compute.device import Compute, choose_compute

FORMATS = (".png", ".html", ".npy")
_DECIMALS = 8
_MARK = (0, 114, 178)


def attn_map(
    config: AttnMapConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "model", "layer", "grid", "output", "maps"}` or `{"path", "error"}` per image, in input order.

    `layer` counts from 0, whatever the sign of `--layer`. `maps` has one entry per point and head: `{"point": [x, y],
    "patch": [row, column], "head", "attention": (h, w), "cls"}`; `attention` and `cls` together sum to 1.

    Raises:
        UsageError: The model, block, head, point or output is not available.
        StorageError: The model cannot be read, or the output cannot be written.
        DataError: After the last image, if some could not be read.
    """
    if config.threshold == 0:
        raise UsageError("--threshold 0 shows no patch.", "Give a share above 0, such as 0.6.")
    points = [parse_point(text) for text in config.point]
    reference = config.model or newest_run(on_event)
    compute = choose_compute(config.device, config.precision)
    model, checkpoint = open_backbone(reference, config.size, downloads(on_event))
    checkpoint = checkpoint.normalized(config.normalization)
    warn(checkpoint.warnings, on_event)
    looker = _AttentionMapper(config, model.to(compute.device), checkpoint, compute, points)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    outputs = None
    if config.output is not None:
        inputs = ProtectedInputs(config, source, models=[reference])
        outputs = output_files(config.output, source, FORMATS, inputs, overwrite=config.overwrite)
    bad = 0
    for group in image_groups(source, config.batch_size):
        views = looker.look([image for _, image in group if not isinstance(image, str)], outputs)
        for index, image in group:
            path = source.path(index)
            if isinstance(image, str):
                bad += 1
                yield {"path": path, "error": image}
            else:
                yield looker.document(path, next(views), outputs[index] if outputs else None)
            on_event(Progress("attn-map", index + 1, len(source), "image"))
    if bad:
        raise DataError(f"{bad} of {len(source)} images cannot be read.", "Their lines say why.")


class _AttentionMapper:
    """Computes and writes the attention maps of one block of one model."""

    def __init__(
        self,
        config: AttnMapConfig,
        model: ImageClassifier,
        checkpoint: CheckpointHandle,
        compute: Compute,
        points: list[Pixel],
    ) -> None:
        self.model, self.checkpoint, self.compute = model, checkpoint, compute
        self.points, self.threshold = points, config.threshold
        self.layer = block_index(model, config.layer)
        heads = model.architecture.heads
        self.head = None if config.head in ("mean", "all") else int(config.head)
        if self.head is not None and self.head >= heads:
            raise UsageError(
                f"--head {self.head}: the model has {heads} heads.", f"Give mean, all, or 0 to {heads - 1}."
            )
        self.names: list[str | int] = (
            list(range(heads)) if config.head == "all" else [self.head if self.head is not None else "mean"]
        )

    @torch.no_grad()
    def rows(self, images: list[Image.Image], queries: list[int] | None) -> np.ndarray:
        """Returns (B, heads, R, L) float32 attention from the positions `queries`; None for all."""
        views = np.stack([to_array(fit_center(image, self.model.architecture.image_size)) for image in images])
        batch = normalize(torch.from_numpy(views).to(self.compute.device), *self.checkpoint.normalization)
        with self.compute.autocast():
            rows = attention_rows(self.model, batch, self.layer, queries).cpu().numpy()
        if not np.isfinite(rows).all():
            raise StorageError(
                f"The attention of '{self.checkpoint.reference}' in {self.compute.precision} is not finite.",
                "Give --precision fp32, or an earlier checkpoint.",
            )
        return rows

    def look(self, images: list[Image.Image], outputs: list[OutputFile] | None) -> Iterator[_Looked]:
        """Runs the model once on all images, whose points may lie in different patches."""
        if not images:
            return
        size, grid = self.model.architecture.image_size, self.model.architecture.grid
        crops = [CentralCrop(*image.size, size, grid) for image in images]
        points = [self.points or crop.reference_points() for crop in crops]
        patches = [[crop.patch_of(point) for point in own] for crop, own in zip(crops, points, strict=True)]
        positions = [[1 + row * grid[1] + column for row, column in own] for own in patches]
        every_row = outputs is not None and outputs[0].path.suffix.lower() == ".html"
        queries = None if every_row else sorted({position for own in positions for position in own})
        batch = self.rows(images, queries)
        for number, rows in enumerate(batch):
            places = [position if queries is None else queries.index(position) for position in positions[number]]
            asked = rows[:, places].swapaxes(0, 1)
            if self.names == ["mean"]:
                asked = asked.mean(axis=1, keepdims=True)
            elif self.head is not None:
                asked = asked[:, [self.head]]
            maps, class_shares = asked[..., 1:].reshape(*asked.shape[:2], *grid), asked[..., 0]
            own = crops[number], points[number], patches[number]
            yield _Looked(images[number], *own, maps, class_shares, rows)

    def document(self, path: str, looked: _Looked, output: OutputFile | None) -> dict[str, Any]:
        """Writes the output file of one image, if any, and returns its document."""
        if output is not None:
            self._write(output, path, looked)
        return {
            "path": path,
            "model": self.checkpoint.reference,
            "layer": self.layer,
            "grid": list(self.model.architecture.grid),
            "output": None if output is None else str(output.path),
            "maps": looked.as_documents(self.names),
        }

    def _write(self, output: OutputFile, path: str, looked: _Looked) -> None:
        suffix = output.path.suffix.lower()
        if suffix == ".npy":
            output.write(lambda file: np.save(file, looked.maps))
        elif suffix != ".html":
            output.save_png(looked.picture(self.names, self.threshold))
        else:
            page = attention_page(
                looked.crop_picture(448, 896),
                looked.rows,
                self.model.architecture.grid,
                title=path,
                detail=f"Block {self.layer} (the last is {len(self.model.blocks) - 1}) of {self.checkpoint.reference}",
                points=looked.patches,
                head=self.head,
                threshold=self.threshold,
                box=looked.crop.box,
            ).encode()
            output.write(lambda file: file.write(page))


@dataclass(frozen=True)
class _Looked:
    """Attention of the points of one image.

    Attributes:
        maps: (P, K, h, w) float32, P points and K heads.
        class_shares: (P, K) float32, attention to the class token.
        rows: (heads, R, L) float32 of the computed positions; all of them for an HTML page.
    """

    image: Image.Image
    crop: CentralCrop
    points: list[Pixel]
    patches: list[Patch]
    maps: np.ndarray
    class_shares: np.ndarray
    rows: np.ndarray

    def as_documents(self, names: list[str | int]) -> list[dict[str, Any]]:
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

    def picture(self, names: list[str | int], threshold: float | None) -> Image.Image:
        """Draws one panel of all points, or one panel of all heads per point."""
        if len(names) > 1:
            return self._head_panels(names, threshold)
        picture = self.crop_picture(448, 672)
        maps = [(self.crop.to_picture(point, picture.size), self.maps[p, 0]) for p, point in enumerate(self.points)]
        said = [] if names == ["mean"] else [f"head {names[0]}"]
        said += [] if threshold is None else [f"{threshold:.0%} of the attention"]
        what = ": " + ", ".join(said) if said else ""
        captions = [f"{p} at {x}, {y}{what}" for p, (x, y) in enumerate(self.points, start=1)]
        return attention_panel(picture, maps, threshold, captions=captions, min_width=min(448, picture.width))

    def _head_panels(self, names: list[str | int], threshold: float | None) -> Image.Image:
        picture, panels = self.crop_picture(256, 256), []
        columns = -(-(1 + len(names)) // -(-(1 + len(names)) // 7))
        for p, (x, y) in enumerate(self.points):
            centre = self.crop.to_picture((x, y), picture.size)
            pictures = []
            for head_map in (None, *self.maps[p]):
                each = picture.copy() if head_map is None else draw_heatmap(picture, head_map, threshold)
                mark_point(each, (centre[0] + 0.5, centre[1] + 0.5), str(p + 1), _MARK)
                pictures.append(add_colorbar(each, head_map, threshold))
            captions = [f"{p + 1} at {x}, {y}", *(f"head {name}" for name in names)]
            panels.append(grid_of(pictures, columns, captions=captions))
        return grid_of(panels, 1, gap=0)
