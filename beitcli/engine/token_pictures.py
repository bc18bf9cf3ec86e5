"""The pictures of `beit tokenize`: token maps, the codebook's sheet, the chart of `--stats`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from beitcli.config.tokenize import TokenizeConfig
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import fit_center
from beitcli.engine.events import Drawn, Note, OnEvent
from beitcli.engine.io.output_paths import is_stdout
from beitcli.engine.io.outputs import OutputFile, finish, to_picture
from beitcli.engine.io.picture_outputs import PictureOutputs, picture_file, picture_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import BadImage, UsageError
from beitcli.pictures.canvas import Panel, contact_sheet, sheet
from beitcli.pictures.tokens import CodeEntry, codebook_sheet, similarity_colours, token_panels, usage_chart
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.tokenizers.base import Tokenizer

_PICTURE, _ON_A_SHEET = 448, 224  # width of a panel in pixels, alone and on a sheet of several images
_DECODED_AT_ONCE = 256  # codes
_LOOKED_AT = 256  # codes whose own colours orient the colours of all


@dataclass
class TokenPictures:
    """Plans and draws the pictures of one job; all of them on rank 0.

    Attributes:
        size: Side of the square that the tokenizer sees, in pixels.
        patches: (V, 3, p, p) float32 sums of the patches with each code, on this rank; None without `--codebook`.
    """

    config: TokenizeConfig
    source: Source
    tokenizer: Tokenizer
    size: int
    maps: PictureOutputs | None = None
    codebook: OutputFile | None = None
    chart: OutputFile | None = None
    patches: torch.Tensor | None = None
    _colours: np.ndarray | None = field(default=None, repr=False)

    def plan(self, inputs: ProtectedInputs) -> None:
        """Plans the files. Raises UsageError if one exists, its suffix is no picture's, or it cannot be resumed."""
        config = self.config
        if config.map:
            self.maps = picture_outputs(config.map, "--map", self.source, inputs, overwrite=config.overwrite)
            if self.maps.is_sheet and config.resume:
                raise UsageError(
                    f"--map '{config.map}' shows all images, and --resume computes only those that FILE lacks.",
                    "Give --map DIR, for a picture an image.",
                )
        if config.codebook:
            self.codebook = picture_file(config.codebook, "--codebook", inputs, overwrite=config.overwrite)
        if config.stats and config.output != "-":
            self.chart = picture_file(config.output, "-o", inputs, overwrite=config.overwrite)

    def outputs(self) -> Iterator[tuple[str, Path]]:
        """Yields each planned file once, after the option that names it."""
        maps = self.maps.files if self.maps is not None else []
        yield from (("--map", file.path) for file in (maps[:1] if self.maps and self.maps.is_sheet else maps))
        if self.codebook is not None:
            yield "--codebook", self.codebook.path
        if self.chart is not None:
            yield "-o", self.chart.path

    def count(self, images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Adds the patches of (B, 3, H, W) images in [0, 1] to their codes, with `--codebook`."""
        if not self.config.codebook:
            return
        side = self.tokenizer.model.downsample
        patches = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        if self.patches is None:
            self.patches = patches.new_zeros(self.tokenizer.vocab_size, 3, side, side)
        self.patches.index_add_(0, tokens.flatten(), patches)

    def drawn(self, documents: Iterator[dict[str, Any]], on_event: OnEvent) -> Iterator[dict[str, Any]]:
        """Draws the token map of each document that passes, and their sheet at the end."""
        if self.maps is None and not self.config.preview:
            yield from documents
            return
        places = {self.source.path(index): index for index in range(len(self.source))}
        together: list[list[Panel]] = []
        written: list[Path] = []
        for document in documents:
            panels = self._panels(document, places) if "tokens" in document else None
            if panels and self.config.preview:
                on_event(Drawn(panels))
            if panels and self.maps is not None and self.maps.is_sheet:
                together.append(panels)
            elif panels and self.maps is not None:
                file = self.maps.files[places[document["path"]]]
                file.save_picture(sheet(panels))
                written.append(file.path)
            yield document
        if together and self.maps is not None:
            self.maps.files[0].save_picture(contact_sheet(together))
            written.append(self.maps.files[0].path)
        finish(self.maps.files if self.maps is not None else None)
        if written and not is_stdout(self.config.map):
            place = f"Map: {written[0]}" if len(written) == 1 else f"Maps: {len(written):,} in '{self.config.map}'"
            on_event(Note(place))

    def _panels(self, document: dict[str, Any], places: dict[str, int]) -> list[Panel] | None:
        tokens = np.array(document["tokens"]).reshape(document["grid"])
        try:
            image = self.source.image(places[document["path"]])
        except BadImage:  # it has changed since
            return None
        width = _ON_A_SHEET if self.maps is not None and self.maps.is_sheet else _PICTURE
        decoded = None
        if self.tokenizer.can_decode:
            rows = torch.from_numpy(tokens.reshape(1, -1)).to(self._device())
            decoded = to_picture(self.tokenizer.decode(rows, (tokens.shape[0], tokens.shape[1]))[0])
        shown = fit_center(image, width, filter=Image.Resampling.LANCZOS)
        return token_panels(shown, tokens, self.colours(), os.path.basename(document["path"]), decoded, width)

    def colours(self) -> np.ndarray:
        """Returns a colour per code, (V, 3) uint8, by what the network knows of their likeness.

        A network without vectors of its codes is asked by what they decode to; without a decoder they are told apart
        alone.
        """
        if self._colours is None:
            vectors = self.tokenizer.model.code_vectors()
            codes = torch.arange(self.tokenizer.vocab_size, device=self._device())
            if vectors is None and self.tokenizer.can_decode:
                vectors = torch.cat([self._decoded(part) for part in codes.split(_DECODED_AT_ONCE)]).flatten(1)
            if vectors is None:
                vectors = torch.stack([codes * step % len(codes) for step in (1, 31, 211)], dim=1)
            looks = None
            if self.tokenizer.can_decode:
                some = codes[torch.linspace(0, len(codes) - 1, min(_LOOKED_AT, len(codes))).round().long()]
                means = self._decoded(some).mean(dim=(2, 3)).clamp(0, 1).mul(255).round()
                looks = (some.cpu().numpy(), means.cpu().numpy().astype(np.uint8))
            self._colours = similarity_colours(vectors.float().cpu().numpy(), looks)
        return self._colours

    def _device(self) -> torch.device:
        return next(self.tokenizer.model.parameters()).device

    @torch.no_grad()
    def _decoded(self, codes: torch.Tensor) -> torch.Tensor:
        """Decodes codes (n,), each between copies of itself, to (n, 3, p, p): decoders look at neighbours too."""
        side = self.tokenizer.model.downsample
        whole = self.tokenizer.decode(codes[:, None].expand(-1, 9).contiguous(), (3, 3))
        return whole[:, :, side : 2 * side, side : 2 * side]

    def draw_codebook(self, counts: torch.Tensor, world: DistributedContext, on_event: OnEvent) -> None:
        """Draws the sheet of the codebook; all ranks must call it.

        Args:
            counts: (V,) int64, tokens of each code over all ranks.
        """
        if not self.config.codebook:
            return
        side, total = self.tokenizer.model.downsample, int(counts.sum())
        sums = self.patches if self.patches is not None else torch.zeros(len(counts), 3, side, side)
        sums = world.all_reduce_sum(sums.to(counts.device))
        if self.codebook is None or not total:
            return
        order = torch.sort(counts, descending=True, stable=True).indices[: self.config.codes]
        codes = order[counts[order] > 0]
        decoded = self._decoded(codes.to(self._device())) if self.tokenizer.can_decode else None
        entries = [
            CodeEntry(
                code=code,
                count=int(counts[code]),
                mean=to_picture(sums[code] / counts[code]),
                decoded=None if decoded is None else to_picture(decoded[place]),
            )
            for place, code in enumerate(codes.tolist())
        ]
        images, used = total // (self.size // side) ** 2, int((counts > 0).sum())
        source = "an image" if images == 1 else f"{images:,} images"
        self.codebook.save_picture(codebook_sheet(entries, total, used, len(counts), source))
        if not is_stdout(self.config.codebook):
            on_event(Note(f"Codebook: {self.codebook.path}"))

    def draw_chart(self, counts: torch.Tensor, summary: dict[str, Any]) -> dict[str, Any]:
        """Draws how codes are used, with `--stats -o`, and returns `{"output"}`; nothing if no image was read."""
        if self.chart is None or not int(counts.sum()):
            return {}
        self.chart.save_picture(usage_chart(counts.cpu().numpy(), summary, summary["reason"]))
        return {"output": str(self.chart.path)}
