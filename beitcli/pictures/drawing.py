"""A figure of pictures, numbered discs and text, as pixels, SVG or PDF; in the last two, text is text.

Lengths are points (1/72 inch) from the upper left corner. The PDF uses Helvetica, which every reader has.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from beitcli.escaping import html
from beitcli.pictures.lettering import composed, length, spelled, write
from beitcli.pictures.page_file import image_url, jpeg
from beitcli.pictures.panels import INK, WHITE, Colour

DPI = 300
_QUALITY = 92  # of JPEGs within: a quarter of the size of the same pixels without loss
_CIRCLE = 0.5522847  # of a quarter circle as a Bezier curve
_OVERSAMPLING = 4  # Pillow does not antialias shapes


@dataclass(frozen=True)
class Picture:
    """An image in the box (x, y, width, height)."""

    image: Image.Image
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Disc:
    """A numbered disc with a white rim."""

    centre: tuple[float, float]
    radius: float
    colour: Colour
    label: str

    @property
    def ink(self) -> Colour:
        """Of the label: dark on a light disc."""
        red, green, blue = self.colour
        return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else WHITE


@dataclass(frozen=True)
class Text:
    """A line whose middle is at `centre`; with `is_left` its left end is there."""

    text: str
    centre: tuple[float, float]
    size: float
    is_left: bool = False


Item = Picture | Disc | Text


@dataclass(frozen=True)
class Drawing:
    """Items in the order in which they are drawn, on white.

    Attributes:
        title: For the metadata of SVG and PDF; any text.
    """

    size: tuple[float, float]
    items: Sequence[Item]
    title: str = ""


def as_pixels(drawing: Drawing, dpi: int = DPI) -> Image.Image:
    """Returns the drawing as an RGB image."""
    scale = dpi / 72
    picture = Image.new("RGB", (round(drawing.size[0] * scale), round(drawing.size[1] * scale)), WHITE)
    draw = ImageDraw.Draw(picture)
    for item in drawing.items:
        if isinstance(item, Picture):
            left, top, width, height = (round(length * scale) for length in item.box)
            picture.paste(item.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, top))
        elif isinstance(item, Text):
            x, y = item.centre
            font, anchor = ImageFont.load_default(item.size * scale), "lm" if item.is_left else "mm"
            write(draw, (x * scale, y * scale), item.text, INK, font, anchor)
        else:
            _paste_disc(picture, item, scale)
    picture.info["dpi"] = (dpi, dpi)
    return picture


def _paste_disc(picture: Image.Image, disc: Disc, scale: float) -> None:
    radius = round(disc.radius * scale)
    side = (2 * radius + 1) * _OVERSAMPLING
    drawn, rim = Image.new("RGBA", (side, side), (*WHITE, 0)), side * 0.06
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((0, 0, side - 1, side - 1), (*WHITE, 255))
    draw.ellipse((rim, rim, side - 1 - rim, side - 1 - rim), (*disc.colour, 255))
    font = ImageFont.load_default(1.25 * disc.radius * scale * _OVERSAMPLING)
    draw.text((side / 2, side / 2), disc.label, disc.ink, font, anchor="mm")
    drawn = drawn.resize((2 * radius + 1, 2 * radius + 1), Image.Resampling.BOX)
    picture.paste(drawn, (round(disc.centre[0] * scale) - radius, round(disc.centre[1] * scale) - radius), drawn)


def as_svg(drawing: Drawing) -> str:
    """Returns the drawing as an SVG file, pictures inside."""
    width, height = drawing.size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}pt" height="{height:g}pt" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        f"<title>{html(drawing.title)}</title>",
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for item in drawing.items:
        if isinstance(item, Picture):
            x, y, wide, high = item.box
            lines.append(
                f'<image x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" preserveAspectRatio="none" '
                f'href="{image_url(item.image, quality=_QUALITY)}"/>'
            )
        elif isinstance(item, Text):
            lines.append(_svg_text(item.text, item.centre, item.size, INK, is_left=item.is_left))
        else:
            x, y = item.centre
            rim = 0.12 * item.radius
            lines.append(
                f'<circle cx="{x:.6g}" cy="{y:.6g}" r="{item.radius - rim / 2:.4g}" fill="{_hex(item.colour)}" '
                f'stroke="#fff" stroke-width="{rim:.4g}"/>'
            )
            lines.append(_svg_text(item.label, item.centre, 1.25 * item.radius, item.ink))
    return "\n".join([*lines, "</svg>", ""])


def _svg_text(text: str, centre: tuple[float, float], size: float, colour: Colour, *, is_left: bool = False) -> str:
    x, y = centre[0], centre[1] + 0.36 * size  # half the height of a capital below the middle
    anchor = ' text-anchor="start"' if is_left else ""
    return f'<text x="{x:.6g}" y="{y:.6g}" font-size="{size:.4g}" fill="{_hex(colour)}"{anchor}>{html(text)}</text>'


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def as_pdf(drawing: Drawing) -> bytes:
    """Returns the drawing as a PDF file of one page; letters that its font lacks become base letters or codes."""
    width, height = drawing.size
    images = [item.image.convert("RGB") for item in drawing.items if isinstance(item, Picture)]
    names = " ".join(f"/Im{number} {number + 7} 0 R" for number in range(len(images)))
    content = zlib.compress(_pdf_content(drawing).encode("cp1252"))
    title = drawing.title.encode("utf-16-be", errors="replace").hex()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width:g} {height:g}] /Contents 4 0 R "
        f"/Resources << /Font << /F 5 0 R >> /XObject << {names} >> >> >>".encode(),
        _stream("", content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        f"<< /Title <FEFF{title}> >>".encode(),
    ]
    for image in images:
        about = f"/Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} "
        about += "/ColorSpace /DeviceRGB /BitsPerComponent 8"
        objects.append(_stream(about, jpeg(image, _QUALITY), "DCTDecode"))
    file, offsets = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R /Info 6 0 R >>\n"
    return bytes(file) + f"{trailer}startxref\n{len(file)}\n%%EOF\n".encode()


def _stream(about: str, content: bytes, filter: str = "FlateDecode") -> bytes:
    return f"<< {about} /Filter /{filter} /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream"


def _pdf_content(drawing: Drawing) -> str:
    height, lines, number = drawing.size[1], [], 0
    for item in drawing.items:
        if isinstance(item, Picture):
            x, y, wide, high = item.box
            lines.append(f"q {wide:g} 0 0 {high:g} {x:g} {height - y - high:g} cm /Im{number} Do Q")
            number += 1
        elif isinstance(item, Text):
            place = item.centre[0], height - item.centre[1]
            lines.append(_pdf_text(item.text, place, item.size, INK, is_left=item.is_left))
        else:
            x, y, radius = item.centre[0], height - item.centre[1], item.radius
            lines.append(f"{_pdf_colour(WHITE)} {_pdf_circle(x, y, radius)} f")
            lines.append(f"{_pdf_colour(item.colour)} {_pdf_circle(x, y, 0.88 * radius)} f")
            lines.append(_pdf_text(item.label, (x, y), 1.25 * radius, item.ink))
    return "\n".join(lines)


def _pdf_text(text: str, centre: tuple[float, float], size: float, colour: Colour, *, is_left: bool = False) -> str:
    text = spelled(composed(text), _is_in_pdf_font)
    shown = "".join("?" if ord(each) < 32 else "\\" + each if each in "()\\" else each for each in text)
    wide = 0 if is_left else length(text, ImageFont.load_default(20)) / 20 * size  # within a few percent of Helvetica's
    x, y = centre[0] - wide / 2, centre[1] - 0.36 * size
    return f"BT {_pdf_colour(colour)} /F {size:.4g} Tf {x:.2f} {y:.2f} Td ({shown}) Tj ET"


def _is_in_pdf_font(letter: str) -> bool:
    return bool(letter.encode("cp1252", errors="ignore"))


def _pdf_colour(colour: Colour) -> str:
    return " ".join(f"{channel / 255:.4g}" for channel in colour) + " rg"


def _pdf_circle(x: float, y: float, radius: float) -> str:
    near = radius * _CIRCLE
    path, (px, py) = [f"{x + radius:.3f} {y:.3f} m"], (1, 0)
    for qx, qy in ((0, 1), (-1, 0), (0, -1), (1, 0)):
        first = x + px * radius + qx * near, y + py * radius + qy * near
        second = x + qx * radius + px * near, y + qy * radius + py * near
        path.append(" ".join(f"{each:.3f}" for each in (*first, *second, x + qx * radius, y + qy * radius)) + " c")
        px, py = qx, qy
    return " ".join(path)
