"""The statistics of masks as a picture: where patches are hidden, how many blocks hide them, how large these are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.masking.statistics import MaskStatistics
from beitcli.pictures.canvas import Panel, sheet
from beitcli.pictures.charts import bar_chart, heat_chart

_SIZE = (560, 510)  # of a histogram in pixels, as high as the map beside it


def draw_mask_statistics(statistics: MaskStatistics) -> Image.Image:
    """Draws the charts beside each other."""
    probability = np.array(statistics["position_probability"])
    rows, columns = statistics["grid"]
    hidden = statistics["num_masked"]
    charts = [heat_chart(probability, "Where", f"share of masks that hide a patch; mean {probability.mean():.0%}")]
    blocks, areas = (np.array(statistics["histograms"][name]) for name in ("blocks", "block_area"))
    if blocks[1:].any():  # of a generator that places blocks
        charts.append(_histogram(blocks, "Blocks of a mask", "blocks", "share of masks"))
        charts.append(_histogram(areas, "Size of a block", "patches", "share of blocks"))
    count = f"{hidden['min']:,}" if hidden["min"] == hidden["max"] else f"{hidden['min']:,} to {hidden['max']:,}"
    title = f"{statistics['masks']:,} masks of {rows} x {columns} patches, {count} hidden in each"
    return sheet([Panel(chart) for chart in charts], title=title, gap=24)


def _histogram(counts: np.ndarray, title: str, name: str, what: str) -> Image.Image:
    """Draws shares from the first to the last number that occurs."""
    present = np.flatnonzero(counts)
    first, last = int(present[0]), int(present[-1])
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    shares = counts[first : last + 1] / counts.sum()
    return bar_chart(shares, first, f"{title}: {mean:.1f} on average", (name, what), _SIZE)
