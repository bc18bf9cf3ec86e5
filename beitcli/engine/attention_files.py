"""Writes what `beit attn-map` has computed: a file for each image, or one page or figure of all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from beitcli.config.attn_map import AttnMapConfig
from beitcli.engine.attention_mapper import AttentionMapper, MappedImage
from beitcli.engine.io.outputs import OutputFile
from beitcli.pictures.attention import ACCENTS, add_colorbar, attention_panel, draw_heatmap, percent, pixel_text
from beitcli.pictures.attention_figure import FigureRow, attention_figure, headed
from beitcli.pictures.attention_page import ExploredImage, Explorer, attention_page
from beitcli.pictures.canvas import Panel
from beitcli.pictures.drawing import DPI, as_pdf, as_pixels, as_svg
from beitcli.pictures.panels import WHITE, caption_size, grid_of, mark_point, titled

_AS_FIGURE = (".svg", ".pdf")
_MARK = ACCENTS[0]
_DPI_OF_A_SHEET = 150
_HEADING = 1.2  # size of a heading / that of the captions


class AttentionFiles:
    """Writes each image's file at once, and a page or figure of all at the end.

    Attributes:
        explorer: What a page holds; None without a page.
        is_of_all: Whether one file holds all images, so that it is there only after `finish`.
    """

    def __init__(self, config: AttnMapConfig, mapper: AttentionMapper, outputs: Sequence[OutputFile] | None) -> None:
        self.config, self.mapper, self.outputs = config, mapper, outputs
        self.suffix = outputs[0].path.suffix.lower() if outputs else ""
        self.is_of_all = bool(outputs) and len(outputs or ()) > 1 and len({file.path for file in outputs or ()}) == 1
        self.explorer: Explorer | None = None
        if self.suffix == ".html" and outputs:
            self.explorer = mapper.explorer(len(outputs) if self.is_of_all else 1)
        self._explored: list[ExploredImage] = []
        self._rows: list[FigureRow] = []

    @property
    def _is_sheet(self) -> bool:
        """Whether a figure has words (model, names, scales), and is not a bare one for an article."""
        return not self.config.figure and (self.is_of_all or self.suffix in _AS_FIGURE)

    def output(self, index: int) -> str | None:
        """Returns the path of an image's file; None without files."""
        return str(self.outputs[index].path) if self.outputs else None

    def add(self, index: int, path: str, mapped: MappedImage) -> None:
        """Takes the maps of one image, and writes its file if it has one of its own. Raises StorageError."""
        if not self.outputs:
            return
        if self.explorer is not None:
            picture = mapped.crop_picture(448, 896)
            stored = mapped.crop.box, mapped.patches, mapped.layers
            self._explored.append(ExploredImage(path, picture, *stored, self._command(path)))
        elif self.config.figure or self.is_of_all or self.suffix in _AS_FIGURE:
            self._rows += _figure_rows(mapped, (Path(path).name or path) if self._is_sheet else "")
        elif self.suffix == ".npy":
            self.outputs[index].write(lambda file: np.save(file, mapped.maps))
            return
        else:
            self.outputs[index].save_png(self._panel(path, mapped))
            return
        if not self.is_of_all:
            self._write_gathered(self.outputs[index], path)

    def panels(self, path: str, mapped: MappedImage) -> list[Panel]:
        """Returns the crop with its points, and the map of each point and head, for the terminal."""
        marked, about, panels = mapped.crop_picture(448, 672), self._about(), []
        plain, several = marked.copy(), len(self.mapper.names) > 1
        for number, (point, maps) in enumerate(zip(mapped.points, mapped.maps, strict=True), start=1):
            x, y = mapped.crop.to_picture(point, plain.size)
            mark = ((x + 0.5, y + 0.5), str(number), ACCENTS[(number - 1) % len(ACCENTS)])
            mark_point(marked, *mark)
            for name, each in zip(self.mapper.names, maps, strict=True):
                heat = draw_heatmap(plain, each, self.config.threshold, self.config.smooth)
                mark_point(heat, *mark)
                title = f"point {number} at {pixel_text(point)}" + (f", head {name}" if several else "")
                scale = f"at most {percent(float(each.max()))} in a patch, uniform {percent(1 / each.size)}"
                panels.append(Panel(heat, title, (scale,)))
        return [Panel(marked, path, (", ".join(about),)), *panels]

    def finish(self) -> None:
        """Writes the file of all images, if there is one and any image could be read. Raises StorageError."""
        if self.is_of_all and self.outputs and (self._explored or self._rows):
            self._write_gathered(self.outputs[0], "")

    def _write_gathered(self, output: OutputFile, path: str) -> None:
        if self.explorer is not None:
            page = attention_page(self._explored, self.explorer).encode()
            output.write(lambda file: file.write(page))
        else:
            self._write_figure(output, path)
        self._explored, self._rows = [], []

    def _write_figure(self, output: OutputFile, path: str) -> None:
        names = self.mapper.names
        headers = [f"head {name}" for name in names] if len(names) > 1 else []
        title = ", ".join([*([path] if path else []), *self._about()])
        figure = attention_figure(self._rows, self.config.threshold, self.config.smooth, headers, title)
        patches = self._rows[0].maps[0][1].size
        scale = f"each map relative to its max; uniform 1/{patches} = {percent(1 / patches)}"
        words = [", ".join(self._about()), scale]
        if self.suffix in _AS_FIGURE and self._is_sheet:
            figure = headed(figure, words)
        if self.suffix == ".svg":
            output.write(lambda file: file.write(as_svg(figure).encode()))
        elif self.suffix == ".pdf":
            output.write(lambda file: file.write(as_pdf(figure)))
        elif self.config.figure:
            picture = as_pixels(figure)
            output.write(lambda file: picture.save(file, format="PNG", dpi=(DPI, DPI)))
        else:
            margin = ImageOps.expand(as_pixels(figure, _DPI_OF_A_SHEET), 16, WHITE)
            output.save_png(titled(margin, words))

    def _command(self, path: str) -> list[str]:
        """Returns the words of the command that draws this image's maps; IMAGE for one that is no file of its own."""
        config = self.config
        image = os.path.join(".", path) if path.startswith("-") else path
        words = ["beit", "attn-map", image if os.path.isfile(path) else "IMAGE"]
        words += ["--model", self.mapper.checkpoint.reference]
        if config.size is not None:
            words += ["--size", ",".join(map(str, config.size))]
        if config.normalization is not None:
            words += ["--normalization", config.normalization]
        if config.intensity_range is not None:
            words += ["--intensity-range", config.intensity_range]
        return words

    def _about(self) -> list[str]:
        """Returns the model, the layer, the head and the threshold in words."""
        names, depth = self.mapper.names, len(self.mapper.model.blocks)
        head = {"mean": "mean of the heads", "rollout": "rollout"}.get(str(names[0]), f"head {names[0]}")
        about = [
            self.mapper.checkpoint.reference,
            f"layer {self.mapper.layer} (of 0 to {depth - 1})",
        ]
        about.append("all heads" if len(names) > 1 else head)
        if self.config.threshold is not None:
            about.append(f"{self.config.threshold:.0%} of the attention")
        return about

    def _panel(self, path: str, mapped: MappedImage) -> Image.Image:
        """Draws one panel of all points, or one panel of all heads per point, below a title."""
        names, threshold, smooth = self.mapper.names, self.config.threshold, self.config.smooth
        if len(names) > 1:
            panel, width = _head_panels(mapped, names, threshold, smooth), 256
        else:
            picture = mapped.crop_picture(448, 672)
            maps = [
                (mapped.crop.to_picture(point, picture.size), mapped.maps[p, 0])
                for p, point in enumerate(mapped.points)
            ]
            captions = [f"{p} at {pixel_text(point)}" for p, point in enumerate(mapped.points, start=1)]
            width = min(448, picture.width)
            panel = attention_panel(picture, maps, threshold, captions=captions, min_width=width, smooth=smooth)
        heading = [Path(path).name or path, ", ".join(self._about())]
        return titled(panel, heading, round(_HEADING * caption_size(width)))


def _figure_rows(mapped: MappedImage, name: str) -> list[FigureRow]:
    """Returns one row of the figure for an image, or one for each point if there are several heads.

    Args:
        name: Of the image, to be written above its first row, and the scale of each map below it; empty for a bare
            figure.
    """
    picture = mapped.crop_picture(448, 672)
    points = [
        (number, mapped.crop.to_picture(point, picture.size)) for number, point in enumerate(mapped.points, start=1)
    ]
    if mapped.maps.shape[1] == 1:
        return [FigureRow(picture, points, list(enumerate(mapped.maps[:, 0])), name, bool(name))]
    return [
        FigureRow(picture, [point], [(0, head) for head in heads], "" if number else name, bool(name))
        for number, (point, heads) in enumerate(zip(points, mapped.maps, strict=True))
    ]


def _head_panels(mapped: MappedImage, names: list[str | int], threshold: float | None, smooth: bool) -> Image.Image:
    picture, panels = mapped.crop_picture(256, 256), []
    columns = -(-(1 + len(names)) // -(-(1 + len(names)) // 7))
    for p, (x, y) in enumerate(mapped.points):
        centre = mapped.crop.to_picture((x, y), picture.size)
        pictures = []
        for head_map in (None, *mapped.maps[p]):
            each = picture.copy() if head_map is None else draw_heatmap(picture, head_map, threshold, smooth)
            mark_point(each, (centre[0] + 0.5, centre[1] + 0.5), str(p + 1), _MARK)
            words = f"{p + 1} at {pixel_text((x, y))}"
            pictures.append(add_colorbar(each, head_map, threshold, words))
        captions = ["", *(f"head {name}" for name in names)]
        panels.append(grid_of(pictures, columns, captions=captions))
    return grid_of(panels, 1, gap=0)
