"""HEIC: read where pillow-heif is installed, and named with the way out where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decode import decode_rgb
from beitcli.data.decoding import heif
from beitcli.errors import BadImage

_WITHOUT = "import sys; sys.modules['pillow_heif'] = None; from beitcli.cli.app import main; sys.exit(main({!r}))"
_HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def without_the_library(*argv: object) -> subprocess.CompletedProcess[str]:
    """`beit` in a process in which pillow-heif cannot be imported."""
    script = _WITHOUT.format([str(argument) for argument in argv])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_without_the_library_they_are_counted_and_the_way_out_is_named(tmp_path: Path):
    for name in ("a.heic", "b.HEIC"):
        (tmp_path / name).write_bytes(_HEADER)
    ended = without_the_library("doctor", tmp_path)
    assert ended.returncode == 3
    assert "it holds 2 .heic" in ended.stderr
    assert "HEIC is read with: pip install 'pillow-heif>=0.16'" in ended.stderr
    Image.new("RGB", (40, 40), "red").save(tmp_path / "c.png")
    ended = without_the_library("doctor", tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "2 files not read (.heic). HEIC is read with: pip install 'pillow-heif>=0.16'" in ended.stderr
    assert json.loads(ended.stdout)["images"] == 1


def test_one_that_a_list_names_is_told_with_the_way_out(tmp_path: Path):
    (tmp_path / "a.heic").write_bytes(_HEADER)
    (tmp_path / "list.txt").write_text("a.heic\n")
    ended = without_the_library("doctor", tmp_path / "list.txt", "--json")
    (finding,) = [each for each in json.loads(ended.stdout)["findings"] if each["kind"] == "unreadable"]
    assert (
        finding["examples"][0]["why"] == "a HEIC image, for which a library is missing: pip install 'pillow-heif>=0.16'"
    )


def test_avif_is_left_to_pillow():
    assert heif.is_heif(_HEADER)
    assert not heif.is_heif(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1")
    assert not heif.is_heif(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf")
    assert not heif.is_heif(b"\xff\xd8\xff\xe0")


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A photograph with its left half bright, stored turned by its EXIF."""
    library = pytest.importorskip("pillow_heif")
    library.register_heif_opener()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 220
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "IMG_0001.HEIC", exif=exif.tobytes())
    return tmp_path


def test_with_the_library_it_is_read_upright(phone: Path):
    image = decode_rgb((phone / "IMG_0001.HEIC").read_bytes())
    assert image.size == (64, 96)
    values = np.asarray(image)[..., 0].astype(int)
    assert values[:40].mean() > 200
    assert values[56:].mean() < 20
    with pytest.raises(BadImage):
        decode_rgb((phone / "IMG_0001.HEIC").read_bytes()[:200])


def test_with_the_library_a_folder_has_it(phone: Path):
    done = subprocess.run(
        [sys.executable, "-m", "beitcli", "doctor", str(phone), "--json"], capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    assert (document["images"], document["formats"]) == (1, {"HEIF": 1})
    assert "misnamed" not in {each["kind"] for each in document["findings"]}
