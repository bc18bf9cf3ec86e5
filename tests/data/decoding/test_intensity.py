"""`--intensity-range`: which numbers become black and white, in files and in every command that follows a model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.config.intensity import FULL, IntensityRange, parse_intensity
from beitcli.data.decode import decode_index_mask, decode_pixels, decode_rgb
from beitcli.data.image_facts import read_facts, stored_range
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.errors import UsageError
from tests.conftest import Ended

Beit = Callable[..., Ended]
AUTO, TWELVE_BITS = parse_intensity("auto"), parse_intensity("0,4095")


def encoded(values: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def gray(data: bytes, intensity: IntensityRange = FULL) -> list[int]:
    return np.asarray(decode_rgb(data, intensity))[..., 0].ravel().tolist()


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_a_fixed_range_maps_its_numbers_to_black_and_white_and_clips(kind: str):
    data = encoded(np.array([[0, 819, 2048, 4095, 60_000]], np.uint16), kind)
    assert gray(data) == [0, 3, 8, 16, 233]
    assert gray(data, TWELVE_BITS) == [0, 51, 128, 255, 255]
    assert gray(data, parse_intensity("819,4095")) == [0, 0, 96, 255, 255]
    assert np.array_equal(decode_pixels(data, TWELVE_BITS), np.asarray(decode_rgb(data, TWELVE_BITS)))


def test_the_own_range_leaves_out_a_thousandth_at_each_end():
    values = np.linspace(100, 1100, 10_000).round().astype(np.uint16)
    values[[0, -1]] = 0, 65_535  # a dead and a hot pixel
    found = np.array(gray(encoded(values.reshape(100, 100), "TIFF"), AUTO))
    low, high = np.percentile(values, (0.1, 99.9))
    assert (round(low), round(high)) == (101, 1099)
    expected = np.rint(((values - low) * (255 / (high - low))).clip(0, 255))
    assert np.array_equal(found, expected)


def test_a_few_bright_pixels_on_black_are_kept():
    values = np.zeros((100, 100), np.uint16)
    values[3, 4] = 500
    assert max(gray(encoded(values, "TIFF"), AUTO)) == 255


def test_floats_and_white_is_zero_have_ranges_too():
    floats = np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32)
    assert gray(encoded(floats, "TIFF"), parse_intensity("-1,1")) == [0, 128, 255, 128]
    inverted = encoded(np.array([[0, 4095]], np.uint16), "TIFF", tiffinfo={262: 0})
    assert gray(inverted, TWELVE_BITS) == [255, 0]


@pytest.mark.parametrize("intensity", [AUTO, TWELVE_BITS])
def test_eight_bits_and_images_of_one_number_stay(intensity: IntensityRange):
    eight = encoded(np.array([[3, 40, 200]], np.uint8), "PNG")
    assert gray(eight, intensity) == [3, 40, 200]
    flat = encoded(np.full((4, 4), 30_000, np.uint16), "TIFF")
    if intensity == AUTO:
        assert gray(flat, intensity) == gray(flat)


@pytest.mark.parametrize("text", ["", "bright", "5", "9,3", "1,1", "0,inf", "0,1,2", "nan,3"])
def test_a_range_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match="--intensity-range is"):
        parse_intensity(text)


def test_sources_within_sources_have_the_range_and_other_keys_of_caches(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.tif").write_bytes(encoded(np.array([[0, 4095]], np.uint16), "TIFF"))
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    plain, scaled = open_data(both), open_data(both, intensity=TWELVE_BITS)
    assert np.asarray(Subset(scaled, np.array([1])).image(0))[0, 1, 0] == 255
    assert np.asarray(Subset(plain, np.array([1])).image(0))[0, 1, 0] == 16
    assert contents_stamp(plain) != contents_stamp(scaled)
    assert contents_stamp(Subset(plain, np.array([0]))) != contents_stamp(Subset(scaled, np.array([0])))


@pytest.fixture(scope="module")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12-bit images of two classes, in 16-bit files."""
    root = tmp_path_factory.mktemp("micrographs")
    draw = np.random.default_rng(0)
    for number in range(24):
        folder = root / ("fine" if number % 2 else "coarse")
        folder.mkdir(exist_ok=True)
        cells = draw.integers(0, 4096, (32, 32) if number % 2 else (4, 4)).astype(np.uint16)
        values = cells if number % 2 else np.kron(cells, np.ones((8, 8), np.uint16))
        (folder / f"{number}.tif").write_bytes(encoded(values, "TIFF"))
    return root


def test_a_model_keeps_its_range_and_later_commands_follow_it(micrographs: Path, tmp_path: Path, beit: Beit):
    common = ("--recipe", "tiny", "--steps", 2, "--batch-size", 8, "--device", "cpu", "--workers", 0)
    size = ("--image-size", 32, "--num-masked", 6, "--target", "pixels")
    run, classifier = tmp_path / "run", tmp_path / "classifier"
    dark = beit("pretrain", micrographs, *common, *size, "--dry-run", "--json")
    assert "--intensity-range 0,4095 makes all brighter alike" in dark.err
    scaled = beit("pretrain", micrographs, *common, *size, "--out", run, "--intensity-range", "0,4095")
    assert scaled.code == 0, scaled.err
    assert "nearly black" not in scaled.err
    assert "Gray of more than 8 bits is scaled from 0 (black) to 4095 (white)." in scaled.err
    config = next(run.glob("checkpoints/step-*/config.json"))
    assert '"intensity_range": "0,4095"' in config.read_text()

    tuned = beit("finetune", micrographs, "--init", run, *common, "--size", 32, "--out", classifier)
    assert tuned.code == 0, tuned.err
    assert 'intensity_range = "0,4095"' in (classifier / "config.toml").read_text()
    of = ("--device", "cpu", "--workers", 0, "--json")
    image = micrographs / "fine" / "1.tif"
    followed, given, other = (
        beit("predict", classifier, image, "--device", "cpu", "--json", *more).lines[0]["score"]
        for more in ((), ("--intensity-range", "0,4095"), ("--intensity-range", "full"))
    )
    assert followed == given != other
    assert beit("eval", classifier, micrographs, *of).err.count("scaled from 0 (black) to 4095") == 1
    assert "scaled from 0" in beit("attn-map", image, "--model", run, "--device", "cpu").err
    resumed = beit("finetune", "--out", classifier, "--resume")
    assert resumed.code == 0, resumed.err


def test_a_run_does_not_go_on_with_another_range(micrographs: Path, tmp_path: Path, beit: Beit):
    args = ("--recipe", "tiny", "--steps", 2, "--batch-size", 8, "--device", "cpu", "--workers", 0)
    run = tmp_path / "run"
    beit("pretrain", micrographs, *args, "--image-size", 32, "--num-masked", 6, "--target", "pixels", "--out", run)
    ended = beit("pretrain", "--out", run, "--resume", "--intensity-range", "auto")
    assert ended.code == 2
    assert '--intensity-range "auto" is given, and the run began without it.' in " ".join(ended.err.split())


def test_the_doctor_sees_with_the_range_that_is_given(micrographs: Path, beit: Beit):
    dark = json.loads(beit("doctor", micrographs, "--json").out)
    assert [each["images"] for each in dark["findings"] if each["kind"] == "dark"] == [24]
    seen = json.loads(beit("doctor", micrographs, "--json", "--intensity-range", "auto").out)
    assert [each for each in seen["findings"] if each["kind"] == "dark"] == []


def pgm(values: list[int], largest: int, plain: bool) -> bytes:
    header = f"P{2 if plain else 5}\n{len(values)} 1\n{largest}\n".encode()
    return header + (" ".join(map(str, values)).encode() if plain else np.array(values, ">u2").tobytes())


@pytest.mark.parametrize("plain", [False, True], ids=["P5", "P2"])
@pytest.mark.parametrize("largest", [4095, 1000, 65535])
def test_a_range_counts_in_the_numbers_of_a_pgm_whatever_its_largest_value(largest: int, plain: bool):
    data = pgm([0, 100, 301, 500, 900], largest, plain)
    assert gray(data, parse_intensity("100,500")) == [0, 0, 128, 255, 255]
    assert np.array_equal(decode_pixels(data, AUTO), np.asarray(decode_rgb(data, AUTO)))
    assert gray(data, parse_intensity("0,900")) == [0, 28, 85, 142, 255]
    assert gray(data) == [round(value * 255 / largest) for value in (0, 100, 301, 500, 900)]
    assert stored_range(data) == (0, 900)
    assert read_facts(data).bits == largest.bit_length()


def jpeg2000_of_12_bits(values: list[int]) -> bytes:
    """A lossless file of 16 bits whose header is made to say 12; its numbers lie around half of what it says."""
    data = bytearray(encoded(np.array([values] * 64, np.uint16) + 32768 - 2048, "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 12 - 1
    return bytes(data)


def test_a_range_counts_in_the_numbers_of_a_jpeg_2000_of_12_bits():
    values = [0, 1000, 2000, 3000, 4095] * 13
    data = jpeg2000_of_12_bits(values)
    assert gray(data, TWELVE_BITS) == gray(data) == [round(value * 255 / 4095) for value in values] * 64
    assert gray(data, parse_intensity("1000,3000"))[:5] == [0, 0, 128, 255, 255]
    assert stored_range(data) == (0, 4095)
    assert read_facts(data).bits == 12


def test_class_indices_of_a_jpeg_2000_of_few_bits_are_the_stored_numbers():
    data = bytearray(encoded(np.array([[0, 1, 2, 3] * 16] * 64, np.uint8) + 128 - 2, "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 2 - 1
    assert decode_index_mask(bytes(data))[0, :4].tolist() == [0, 1, 2, 3]
