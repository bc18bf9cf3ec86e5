"""Draws visual tokens: maps in colours of similarity, the sheet of a codebook, and how often codes are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from beitcli.pictures.canvas import RULE, Panel, balanced_columns, enlarged, sheet
from beitcli.pictures.charts import rank_chart
from beitcli.pictures.masks import patch_edges, smooth, spread
from beitcli.pictures.palette import from_oklab, to_oklab
from beitcli.pictures.panels import WHITE, crisp

_LIGHTNESS = (0.38, 0.92)
_CHROMA = 0.14  # largest distance from grey along an axis, which most screens can show
_TILE = 72  # least pixels across of one picture of a code


def similarity_colours(vectors: np.ndarray, looks: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Gives codes colours that are alike where the codes are, (V, 3) uint8.

    The first three principal components, standardised, become OKLab's lightness and its two axes of colour. Where the
    looks of some codes are known, the components are rotated to fit them best (orthogonal Procrustes), so that dark
    codes are dark; else signs are fixed by the largest score of each. So equal codebooks have equal colours.

    Args:
        vectors: (V, D); distances between rows say how alike codes are.
        looks: Some codes, (n,), and the colour that each decodes to, (n, 3) uint8.
    """
    scores = _principal_scores(vectors)
    if looks is not None and len(looks[0]) > 3:
        lab = to_oklab(looks[1])
        lab = (lab - lab.mean(axis=0)) / np.maximum(lab.std(axis=0), 1e-6)
        left, _, right = np.linalg.svd(scores[looks[0]].T @ lab)
        scores = scores @ (left @ right)
    shares = 0.5 + 0.5 * np.tanh(scores / 1.5)
    low, high = _LIGHTNESS
    lightness = low + (high - low) * shares[:, 0]
    return from_oklab(np.column_stack([lightness, _CHROMA * (2 * shares[:, 1:] - 1)]))


def _principal_scores(vectors: np.ndarray) -> np.ndarray:
    """Returns the first three principal components, (V, 3) with deviation 1, the largest score of each positive.

    A component without variance is 0.
    """
    centred = np.asarray(vectors, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    if centred.shape[1] <= len(centred):
        values, axes = np.linalg.eigh(centred.T @ centred)
        components = centred @ axes[:, np.argsort(-values, kind="stable")[:3]]
    else:  # fewer codes than numbers of a code
        values, axes = np.linalg.eigh(centred @ centred.T)
        order = np.argsort(-values, kind="stable")[:3]
        components = axes[:, order] * np.sqrt(values[order].clip(0))
    scores = np.zeros((len(centred), 3))
    for column, component in enumerate(components.T):
        deviation = float(component.std())
        if deviation > 1e-9:
            sign = 1 if component[np.abs(component).argmax()] > 0 else -1
            scores[:, column] = sign * component / deviation
    return scores


def token_map(tokens: np.ndarray, colours: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draws each token as a cell in the colour of its code, with a seam where neighbours differ.

    Args:
        tokens: (h, w) codes.
        colours: (V, 3) uint8.
        size: (width, height) in pixels.
    """
    codes = spread(tokens, size)
    pixels = colours[codes]
    if min(size[0] / tokens.shape[1], size[1] / tokens.shape[0]) >= 8:
        for edge in patch_edges(size[1], tokens.shape[0])[1:-1].tolist():
            pixels[edge, codes[edge] != codes[edge - 1]] = WHITE
        for edge in patch_edges(size[0], tokens.shape[1])[1:-1].tolist():
            pixels[codes[:, edge] != codes[:, edge - 1], edge] = WHITE
    return Image.fromarray(pixels)


def token_panels(
    image: Image.Image,
    tokens: np.ndarray,
    colours: np.ndarray,
    title: str,
    decoded: Image.Image | None = None,
    min_width: int = 448,
) -> list[Panel]:
    """Draws an image, its tokens and, where there is a decoder, what they decode to.

    Args:
        image: What the tokenizer sees of it, at any size.
        tokens: (h, w) codes.
        colours: (V, 3) uint8, from `similarity_colours`.
        title: Name of the image.
    """
    shown = enlarged(image, min_width)
    said = f"{tokens.size:,} tokens, {len(np.unique(tokens)):,} different; like colours are like codes"
    panels = [Panel(shown, title), Panel(token_map(tokens, colours, shown.size), "visual tokens", (said,))]
    return panels if decoded is None else [*panels, Panel(smooth(decoded, shown.size), "decoded from them")]


@dataclass(frozen=True)
class CodeEntry:
    """One code of a codebook sheet.

    Attributes:
        mean: Mean of the patches that got it.
        decoded: What it decodes to between copies of itself; None without a decoder.
    """

    code: int
    count: int
    mean: Image.Image
    decoded: Image.Image | None = None


def codebook_sheet(entries: Sequence[CodeEntry], total: int, used: int, vocab_size: int, source: str) -> Image.Image:
    """Draws codes in the order of their frequency, each as its mean patch beside what it decodes to.

    Args:
        entries: The most frequent codes.
        total: Tokens of all codes.
        used: Codes that occur.
        source: What was tokenized, in words.
    """
    panels = []
    for entry in entries:
        tiles = [crisp(tile, _TILE) for tile in (entry.mean, entry.decoded) if tile is not None]
        picture = Image.new("RGB", (sum(tile.width + 2 for tile in tiles) - 2, tiles[0].height), WHITE)
        draw = ImageDraw.Draw(picture)
        for number, tile in enumerate(tiles):
            left = number * (tile.width + 2)
            picture.paste(tile, (left, 0))
            draw.rectangle((left, 0, left + tile.width - 1, tile.height - 1), outline=RULE)  # of a white one, too
        panels.append(Panel(picture, f"code {entry.code}", (f"{entry.count:,} = {entry.count / total:.2%}",)))
    aspect = (panels[0].picture.height + 50) / panels[0].picture.width
    columns = balanced_columns(len(panels), (1.5 * aspect * len(panels)) ** 0.5)
    right = "; right: what the code decodes to between copies of itself" if entries[0].decoded is not None else ""
    said = f"The {len(panels):,} most frequent codes, with the number and share of the tokens that have each. "
    title = f"{used:,} of {vocab_size:,} codes occur in {source}, {total:,} tokens"
    return sheet(panels, columns, title, (f"{said}Left: mean of their patches{right}.",), gap=14)


def usage_chart(counts: np.ndarray, figures: dict[str, Any], verdict: str) -> Image.Image:
    """Draws how often codes occur by rank, with the perplexity, and beneath it the verdict in words.

    Args:
        counts: (V,) tokens of each code.
        figures: The document of `--stats`.
        verdict: Its reason.
    """
    used = np.sort(counts[counts > 0])[::-1]
    perplexity = figures["perplexity"]
    marks = [(max(1.0, perplexity), f"perplexity {perplexity:,.0f}"), (len(used), f"{len(used):,} codes used")]
    title = f"Codes by rank: {int(counts.sum()):,} tokens"
    chart = rank_chart(used, marks, title, ("rank of the code", "tokens that have it"))
    return sheet([Panel(chart, f"Verdict: {figures['verdict']}", (verdict,))], gap=20, size=19)
