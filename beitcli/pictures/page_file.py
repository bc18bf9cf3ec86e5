"""Assembles an HTML page as one file that makes no request: styles, script, data and pictures are inside.

The parts are files below `pages/`: `base.css` and `base.js` (colours, light and dark, typography, the theme button)
belong to every page; a page adds its own folder with `page.html` (the body), `style.css` and `page.js`.

The data lies in `<script type="application/json" id="data">` and is read with `JSON.parse`; foreign text in it becomes
text of the page through `textContent` alone. A content security policy refuses every load but `data:` pictures.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from beitcli.escaping import html
from beitcli.runtime.storage.safe_json import dump_json

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_IN_JSON = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<title>{{title}}</title>
<style>
{{styles}}</style>
{{plain_style}}</head>
<body>
{{plain}}{{body}}<script type="application/json" id="data">{{data}}</script>
<script>
{{script}}</script>
</body>
</html>
"""
_PLAIN_STYLE = "<noscript><style>body > :not(noscript) { display: none; }</style></noscript>\n"


@dataclass(frozen=True)
class Page:
    """A page before it is assembled.

    Attributes:
        title: Of the browser's tab; any text.
        body: HTML of the body; foreign text in it is escaped already, as `fill` does.
        styles: CSS after that of `base.css`.
        script: JavaScript after that of `base.js`; it finds the data with `pageData()`.
        data: Plain values for JSON.
        plain: HTML that stands in for all of the body where JavaScript is off, from `plain_section`.
    """

    title: str
    body: str
    styles: str = ""
    script: str = ""
    data: Any = field(default_factory=dict)
    plain: str = ""


def page_part(name: str) -> str:
    """Returns the text of a file below `pages/`, such as `attention/page.js`."""
    return files("beitcli.pictures").joinpath("pages", *name.split("/")).read_text(encoding="utf-8")


def assemble(page: Page) -> str:
    """Returns the whole page, to be encoded as UTF-8.

    Raises:
        ValueError: The styles or the script hold a closing tag, which would end their element.
    """
    styles, script = page_part("base.css") + page.styles, page_part("base.js") + page.script
    if re.search(r"</(script|style)", styles + script, re.IGNORECASE):
        raise ValueError("a closing tag inside of the styles or the script")
    return _replaced(
        _FRAME,
        {
            "policy": _POLICY,
            "title": html(page.title),
            "styles": styles,
            "plain_style": _PLAIN_STYLE if page.plain else "",
            "plain": f"<noscript>\n{page.plain}</noscript>\n" if page.plain else "",
            "body": page.body,
            "data": embedded_json(page.data),
            "script": script,
        },
    )


def plain_section(
    title: str, texts: Iterable[str] = (), rows: Iterable[Sequence[str]] = (), pictures: Iterable[tuple[str, str]] = ()
) -> str:
    """Returns a heading with paragraphs, a table and pictures as HTML, for a reader without JavaScript.

    Args:
        title: As all texts, any text.
        rows: Cells; the first of a row is its heading. In the others, what stands in backticks is code.
        pictures: (name, `data:` URL).
    """
    parts = [f"<h2>{html(title)}</h2>", *(f"<p>{html(text)}</p>" for text in texts)]
    lines = [
        f'<tr><th scope="row">{html(first)}</th>' + "".join(f"<td>{_prose(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    ]
    parts += ["<table>", *lines, "</table>"] if lines else []
    parts += [f'<p><img src="{html(url)}" alt="{html(name)}"><br>{html(name)}</p>' for name, url in pictures]
    return "\n".join(["<section>", *parts, "</section>", ""])


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html(text))


def fill(template: str, **texts: str) -> str:
    """Replaces every `{{name}}` of a body by its text, escaped for an element or a quoted attribute."""
    return _replaced(template, {name: html(text) for name, text in texts.items()})


def embedded_json(data: Any) -> str:
    """Returns JSON that no HTML parser mistakes for markup, whatever texts it holds."""
    return re.sub("[<>&\u2028\u2029]", lambda found: _IN_JSON[found[0]], dump_json(data, separators=(",", ":")))


def image_url(image: Image.Image, *, quality: int | None = None) -> str:
    """Returns a picture as a `data:` URL: PNG, or with `quality` (1-95) JPEG without chroma subsampling."""
    if quality is not None:
        return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality)).decode()
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Returns a picture as a JPEG file without chroma subsampling, `quality` 1-95."""
    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


def base64_of(array: np.ndarray) -> str:
    """Returns the bytes of an array in C order as base64; the caller chooses a little-endian type."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _replaced(template: str, values: Mapping[str, str]) -> str:
    """Replaces all placeholders in one pass, so that no value is taken for a placeholder."""
    return re.sub(r"\{\{([a-z_]+)\}\}", lambda found: values[found[1]], template)
