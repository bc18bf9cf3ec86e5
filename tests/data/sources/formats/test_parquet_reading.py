"""Parquet files that claim far more than they hold: refused by name, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from beitcli.data.sources.formats import _parquet_reading as reading
from beitcli.data.sources.open_data import open_data
from beitcli.errors import BadImage, DataError

REPEATED = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array([bytes(1_000_000)], pa.binary()))


def write(path: Path, image: Any, **how: Any) -> str:
    parquet.write_table(pa.table({"image": image} | how.pop("more", {})), path, compression="zstd", **how)
    return str(path)


def peak_of(path: str) -> int:
    """Megabytes of memory that a fresh process takes at most to open a file and read two of its rows."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from beitcli.data.sources.open_data import open_data\n"
        "from beitcli.errors import BadImage\n"
        "source = open_data([sys.argv[1]])\n"
        "for index in (0, len(source) - 1):\n"
        "    try: source.read(index)\n"
        "    except BadImage as error: print(error.message, file=sys.stderr)\n"
        "status = Path('/proc/self/status').read_text()\n"  # getrusage counts the parent's, too
        "print(int(status.partition('VmHWM:')[2].split()[0]) // 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "its row group is too large" in done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_value_that_every_row_repeats_is_read_in_bounded_memory(tmp_path):
    path = write(tmp_path / "x.parquet", REPEATED, store_schema=False)  # 3 GB in less than 300 bytes
    assert os.path.getsize(path) < 300
    assert peak_of(path) < 1000


def test_row_group_that_is_too_large_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 5_000_000)
    source = open_data([write(tmp_path / "x.parquet", REPEATED.slice(0, 40), store_schema=False)])
    said = "its row group is too large: .* bytes unpack to more than 5,000,000; write smaller row groups"
    with pytest.raises(BadImage, match=said):
        source.read(0)
    monkeypatch.setattr(reading, "WINDOW_BYTES", 1_000_000_000)
    with pytest.raises(BadImage, match=said):
        source.read(39)
    small = open_data([write(tmp_path / "y.parquet", REPEATED.slice(0, 40), store_schema=False, row_group_size=4)])
    assert len(small.read(39)) == 1_000_000


def test_dictionary_column_holds_a_repeated_value_once(tmp_path):
    source = open_data([write(tmp_path / "x.parquet", REPEATED)])  # its schema says that it is a dictionary
    assert source.read(0) == source.read(2999) == bytes(1_000_000)
    assert source._held[0].size < 2_000_000  # type: ignore[attr-defined]


def test_prefix_that_every_row_shares_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 5_000_000)
    images = pa.array([bytes(1_000_000) + bytes([number]) for number in range(40)], pa.binary())
    path = write(tmp_path / "x.parquet", images, use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"})
    with pytest.raises(BadImage, match="unpack to more than 5,000,000"):
        open_data([path]).read(0)


def test_footer_that_unpacks_to_too_much_is_refused_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 5_000_000)
    images = pa.array([bytes([number]) + bytes(1_000_000) for number in range(40)], pa.binary())
    path = write(tmp_path / "x.parquet", images, use_dictionary=False)
    with pytest.raises(DataError, match=r"x\.parquet' cannot be read .* unpack to 40,0"):
        open_data([path])
    source = open_data([write(tmp_path / "y.parquet", pa.array([[0] * 9_000_000], pa.list_(pa.uint8())))])
    with pytest.raises(BadImage, match="bytes unpack to more than 5,000,000"):
        source.read(0)


def test_images_that_do_not_compress_are_read_whatever_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 100_000)
    images = [np.random.default_rng(number).bytes(50_000) for number in range(12)]
    source = open_data([write(tmp_path / "x.parquet", images)])
    assert [source.read(index) for index in range(12)] == images


def test_more_rows_than_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_ROWS", 1000)
    rows = pa.nulls(20_000, pa.binary())
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=r"x\.parquet' .* claims 20,000 rows in [0-9]+ bytes") as error:
        open_data([path])
    assert error.value.exit_code == 3
    assert len(open_data([write(tmp_path / "y.parquet", rows.slice(0, 1000))])) == 1000


def varint(number: int) -> bytes:
    """A number as the footer has it: zigzag, seven bits a byte."""
    number, made = 2 * number, bytearray()
    while number >= 128:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def test_footer_of_a_billion_rows_is_refused_before_anything_is_made_of_them(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [b"1"] * 77}), path)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8].replace(varint(77), varint(10**9))
    path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet' .* claims 1,000,000,000 rows in [0-9]+ bytes"):
        open_data([str(path)])


@pytest.mark.parametrize("length", [10**9, 2**31, 2**32 - 1, 0])
def test_footer_of_an_absurd_length_is_refused(tmp_path, length):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [b"1"]}), path)
    path.write_bytes(path.read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet' cannot be read as parquet"):
        open_data([str(path)])


def test_long_label_that_every_row_repeats_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 5_000_000)
    label = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array(["x" * 1_000_000]))
    images = pa.array([b"1"] * 3000)
    path = write(tmp_path / "x.parquet", images, more={"label": label}, store_schema=False)
    with pytest.raises(DataError, match=r"x\.parquet' cannot be read .* unpack to more than 5,000,000"):
        open_data([path])
