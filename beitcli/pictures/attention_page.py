"""Interactive attention map: one HTML file, without network access or libraries.

It shows what the patch under the pointer attends to. It contains every query of every head, one byte per patch relative
to the query's maximum: 0.7 MB for 12 heads and 196 patches. Above MAX_BYTES only the mean over heads is kept, and the
page says so.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from beitcli.escaping import html
from beitcli.pictures import colormap
from beitcli.runtime.storage.safe_json import dump_json

MAX_BYTES = 6_000_000  # of attention, as base64


def attention_page(
    image: Image.Image,
    attention: np.ndarray,
    grid: tuple[int, int],
    *,
    title: str,
    detail: str = "",
    points: Sequence[tuple[int, int]] = (),
    head: int | None = None,
    threshold: float | None = None,
    box: tuple[float, float, float, float] | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Builds the page as HTML, to be encoded as UTF-8.

    Args:
        image: RGB, the crop that the patches cover; displayed at any size.
        attention: (heads, L, L), rows sum to 1, class token first.
        grid: (h, w), L = h * w + 1.
        title: Of the page; any text.
        detail: A line below the title; any text.
        points: (row, column) of reference patches; the page opens on the first.
        head: The head shown first; None for the mean.
        threshold: Fraction of the attention in (0, 1] shown first; None for all.
        box: The crop in the original image, (left, upper, right, lower) in pixels; if given, `--point` is displayed.
        max_bytes: Limit of the attention as base64, above which the heads are left out.

    Raises:
        ValueError: `attention` is not square, or does not fit `grid`.
    """
    heads, length = attention.shape[0], grid[0] * grid[1] + 1
    if attention.shape != (heads, length, length):
        raise ValueError(f"attention of shape {attention.shape} does not fit a grid of {grid}")
    patches = attention[:, 1:]
    layers = [("mean", patches.mean(axis=0))]
    bytes_a_map = 4 * -(-((length - 1) * (length + 7)) // 3)
    complete = (heads + 1) * bytes_a_map <= max_bytes
    if complete:
        layers += [(str(number), patches[number]) for number in range(heads)]
    data = {
        "grid": grid,
        "maps": [{"name": name, **_packed(rows)} for name, rows in layers],
        "palette": _base64(colormap.apply(np.linspace(0, 1, 256)[None])),
        "points": [list(point) for point in points],
        "start": "mean" if head is None or not complete else str(head),
        "share": 1 if threshold is None else threshold,
        "box": box,
    }
    left_out = f"The {heads} heads are left out: with them this page would be too large. This is their mean."
    file = BytesIO()
    image.convert("RGB").save(file, "PNG")
    return _filled(
        TITLE=html(title),
        DETAIL=html(detail),
        NOTE="" if complete else f'<p class="note">{left_out}</p>',
        IMAGE="data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        SHAPE=f"{image.width} / {image.height}",
        ROWS=str(grid[0]),
        COLUMNS=str(grid[1]),
        DATA=dump_json(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _packed(rows: np.ndarray) -> dict[str, str]:
    """Encodes one head: bytes relative to each query's maximum, that maximum, and the weight of the class token.

    Args:
        rows: (N, L), class token first.
    """
    strongest = rows[:, 1:].max(axis=1)
    relative = rows[:, 1:] / np.where(strongest > 0, strongest, 1)[:, None]
    return {
        "weights": _base64(np.rint(relative * 255).astype(np.uint8)),
        "strongest": _base64(strongest.astype("<f4")),
        "cls": _base64(rows[:, 0].astype("<f4")),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _filled(**values: str) -> str:
    """Replaces all placeholders in one pass, so that no value is taken for a placeholder."""
    return re.sub(r"@@([A-Z]+)@@", lambda found: values[found[1]], _PAGE)


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #28282c; --faint: #6a6a72; --line: #d8d8de; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --ink: #ececf0; --faint: #a0a0aa; --line: #3a3a42; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; padding: 1.25rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { display: flex; flex-wrap: wrap; gap: 1.5rem; max-width: 76rem; margin: 0 auto; }
header { flex: 1 0 100%; }
h1 { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
header p, .help { margin: 0; color: var(--faint); overflow-wrap: anywhere; }
.note { border-left: 3px solid #d55e00; padding-left: .6rem; }
#stage { position: relative; flex: 0 0 auto; width: min(100%, 44rem, 82vh * @@SHAPE@@); align-self: flex-start;
  aspect-ratio: @@SHAPE@@; cursor: crosshair; touch-action: none; user-select: none; }
#stage > * { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
#stage img { filter: grayscale(1) brightness(.5); }
#stage:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
canvas { image-rendering: pixelated; }
#lines { background-image: linear-gradient(to right, #fff3 1px, #0000 1px), linear-gradient(#fff3 1px, #0000 1px);
  background-size: calc(100% / @@COLUMNS@@) calc(100% / @@ROWS@@); }
#stage #query { inset: auto; width: calc(100% / @@COLUMNS@@); height: calc(100% / @@ROWS@@); border: 2px solid #fff;
  outline: 2px solid #0072b2; }
aside { flex: 1 1 18rem; min-width: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: 0 0 1rem; }
dt { color: var(--faint); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .8rem; margin: 0 0 1rem; }
.row input[type=range] { flex: 1 1 8rem; accent-color: var(--accent); }
#share { min-width: 3em; text-align: right; font-variant-numeric: tabular-nums; }
button { font: inherit; color: inherit; background: none; border: 2px solid var(--line); border-radius: 6px;
  padding: .1rem .6rem; cursor: pointer; }
button:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
button[aria-pressed=true] { border-color: var(--accent); font-weight: 600; }
#scale { position: relative; margin: 0 0 1rem; font-variant-numeric: tabular-nums; }
#bar { display: block; width: 100%; height: .8rem; border-radius: 3px; image-rendering: auto; }
#mark { position: absolute; top: -.2rem; height: 1.2rem; width: 4px; margin-left: -2px; background: var(--ink);
  border: 1px solid var(--paper); }
#scale p { display: flex; justify-content: space-between; gap: .6rem; margin: .15rem 0 0; color: var(--faint); }
#heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); gap: .5rem; margin: 0 0 1rem; }
#heads button { padding: .25rem; }
#heads canvas { display: block; width: 100%; aspect-ratio: @@SHAPE@@; border-radius: 3px; }
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [rows, columns] = data.grid, patches = rows * columns;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const palette = bytes(data.palette);
const maps = data.maps.map((map) => ({
  name: map.name, weights: bytes(map.weights), strongest: floats(map.strongest), cls: floats(map.cls) }));
const part = (id) => document.getElementById(id);
const stage = part("stage"), percent = (share) => (100 * share).toFixed(share < 0.1 ? 2 : 1) + " %";
let [row, column] = data.points[0] || [rows >> 1, columns >> 1];
let shown = Math.max(0, maps.findIndex((map) => map.name === data.start)), share = data.share;

// The fewest patches that hold the share, as in the pictures of `beit attn-map --threshold`.
function keptOf(weights) {
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
  const kept = new Uint8Array(patches), total = weights.reduce((sum, weight) => sum + weight, 0);
  let before = 0;
  for (const patch of order) {
    if (before >= (share - 1e-9) * total || weights[patch] === 0) break;
    kept[patch] = 1;
    before += weights[patch];
  }
  return kept;
}

function paint(canvas, map, overImage) {
  const query = row * columns + column, weights = map.weights.subarray(query * patches, (query + 1) * patches);
  const kept = share < 1 ? keptOf(weights) : null;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  weights.forEach((weight, patch) => {
    const relative = weight / 255;
    const opacity = kept ? kept[patch] * (0.6 + 0.3 * relative) : 0.35 + 0.55 * relative;
    const drawn = kept && !kept[patch] ? 0 : weight;
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * patch + channel] = palette[3 * drawn + channel];
    pixels.data[4 * patch + 3] = overImage ? 255 * opacity : 255;
  });
  context.putImageData(pixels, 0, 0);
}

// The colours of the map, from a share of 0 to the strongest patch's, and where attention spread evenly would lie.
function drawScale(strongest, least) {
  const bar = part("bar"), even = 1 / patches;
  bar.width = 256;
  bar.height = 1;
  const context = bar.getContext("2d"), pixels = context.createImageData(256, 1);
  for (let step = 0; step < 256; step++) {
    const opacity = least === null ? 0.35 + 0.55 * step / 255 : (step >= least) * (0.6 + 0.3 * step / 255);
    for (let channel = 0; channel < 3; channel++)
      pixels.data[4 * step + channel] = palette[3 * step + channel] * opacity + 64 * (1 - opacity);
    pixels.data[4 * step + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  part("mark").hidden = even > strongest;
  part("mark").style.left = (100 * even) / strongest + "%";
  part("even").textContent = `uniform 1/${patches} = ${percent(even)}` + (even > strongest ? ", off this scale" : "");
  part("most").textContent = `max ${percent(strongest)}`;
}

function update() {
  const map = maps[shown], query = row * columns + column;
  paint(part("heat"), map, true);
  maps.forEach((each, number) => {
    paint(each.canvas, each, false);
    each.button.setAttribute("aria-pressed", number === shown);
  });
  const mark = part("query");
  mark.style.left = (100 * column) / columns + "%";
  mark.style.top = (100 * row) / rows + "%";
  const weights = map.weights.subarray(query * patches, (query + 1) * patches), best = weights.indexOf(255);
  const kept = share < 1 ? keptOf(weights) : null;
  drawScale(map.strongest[query], kept && weights.reduce((least, weight, patch) =>
    kept[patch] ? Math.min(least, weight) : least, 256));
  part("patch").textContent = `row ${row}, column ${column}`;
  part("cls").textContent = percent(map.cls[query]);
  part("best").textContent = best < 0 ? "none" :
    `${percent(map.strongest[query])} at row ${Math.floor(best / columns)}, column ${best % columns}`;
  part("share").textContent = Math.round(100 * share) + " %";
  if (data.box) {
    const [left, upper, right, lower] = data.box;
    const x = Math.floor(left + ((column + 0.5) / columns) * (right - left));
    const y = Math.floor(upper + ((row + 0.5) / rows) * (lower - upper));
    part("option").textContent = `--point ${x},${y}` + (map.name === "mean" ? "" : ` --head ${map.name}`);
  }
}

function move(toRow, toColumn) {
  const before = row * columns + column;
  row = Math.min(rows - 1, Math.max(0, toRow));
  column = Math.min(columns - 1, Math.max(0, toColumn));
  if (row * columns + column !== before) update();
}

function follow(event) {
  const box = stage.getBoundingClientRect();
  move(Math.floor(((event.clientY - box.top) / box.height) * rows),
    Math.floor(((event.clientX - box.left) / box.width) * columns));
}

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
stage.addEventListener("pointermove", follow);
stage.addEventListener("pointerdown", follow);
stage.addEventListener("keydown", (event) => {
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  move(row + step[0], column + step[1]);
});
part("range").value = 100 * share;
part("range").addEventListener("input", (event) => { share = event.target.value / 100; update(); });
part("grid").addEventListener("change", (event) => { part("lines").hidden = !event.target.checked; });
maps.forEach((map, number) => {
  map.button = document.createElement("button");
  map.canvas = document.createElement("canvas");
  map.button.append(map.canvas, map.name === "mean" ? "mean" : `head ${map.name}`);
  map.button.addEventListener("click", () => { shown = number; update(); });
  part("heads").append(map.button);
});
data.points.forEach((point, number) => {
  const button = document.createElement("button");
  button.textContent = number + 1;
  button.addEventListener("click", () => move(...point));
  part("points").append(button);
});
part("points").hidden = !data.points.length;
part("optionrow").hidden = !data.box;
update();
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@@TITLE@@: attention</title>
<style>{_STYLE}</style></head>
<body><main>
<header><h1>@@TITLE@@</h1><p>@@DETAIL@@</p>@@NOTE@@<noscript>This page needs JavaScript.</noscript></header>
<div id="stage" tabindex="0" role="application" aria-describedby="facts"
aria-label="Image in patches; arrow keys choose one">
<img src="@@IMAGE@@" alt=""><canvas id="heat"></canvas><div id="lines"></div><div id="query"></div>
</div>
<aside>
<dl id="facts">
<dt>from patch</dt><dd id="patch"></dd>
<dt>to the class token</dt><dd id="cls"></dd>
<dt>to the strongest patch</dt><dd id="best"></dd>
</dl>
<div id="scale"><canvas id="bar"></canvas><div id="mark"></div>
<p><span>0</span><span id="even"></span><span id="most"></span></p></div>
<p class="row" id="points">Reference points</p>
<p class="row"><label for="range">Show the strongest</label>
<input id="range" type="range" min="1" max="100" step="1"><output id="share" for="range"></output>
<label><input id="grid" type="checkbox" checked> grid</label></p>
<div id="heads" role="group" aria-label="Heads"></div>
<p class="help">Move the pointer over the image, touch it, or focus it and press the arrow keys: it shows what the patch
attends to. Colours are relative to the strongest patch of each map: the scale says what they stand for.</p>
<p class="help" id="optionrow">As a picture: <code id="option"></code></p>
</aside></main>
<script type="application/json" id="data">@@DATA@@</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
