"""Near copies, against a comparison of all pairs."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from beitcli.engine.doctor import copies
from beitcli.engine.doctor.copies import MOST_BITS, Signatures, find_copies
from beitcli.engine.doctor.examine import difference_hashes


def signatures_of(rows: list[int]) -> Signatures:
    """Images that differ in bytes and pixels, with these hashes and equal small pictures."""
    found = Signatures.empty(len(rows), 16, 12)
    found.readable[:] = True
    for index in range(len(rows)):
        found.files[index, :4] = found.pixels[index, :4] = np.frombuffer(np.uint32(index + 1).tobytes(), np.uint8)
    found.rows[:] = rows
    found.small[:] = np.arange(12) * 20
    return found


def test_near_copies_are_those_of_a_comparison_of_all_pairs():
    draw = np.random.default_rng(0)
    rows = [int.from_bytes(draw.bytes(8), "big") for _ in range(60)]
    for one in rows[:30]:
        flipped = one
        for bit in draw.choice(64, int(draw.integers(1, 8)), replace=False).tolist():
            flipped ^= 1 << bit
        rows.append(flipped)
    expected = {
        pair
        for pair in itertools.combinations(range(len(rows)), 2)
        if (rows[pair[0]] ^ rows[pair[1]]).bit_count() <= MOST_BITS
    }
    found = find_copies(signatures_of(rows))
    assert {each.members for each in found} == expected
    assert 5 < len(expected) < 30
    assert {each.kind for each in found} == {"near"}


def test_images_of_like_hashes_and_other_colours_are_no_copies():
    signatures = signatures_of([5, 5, 5])
    signatures.small[1] = signatures.small[1][::-1]
    assert [each.members for each in find_copies(signatures)] == [(0, 2)]
    signatures.small[:] = 9  # without contrast, hashes are noise
    assert find_copies(signatures) == []


def test_equal_bytes_pixels_and_likeness_make_one_group_of_the_least():
    signatures = signatures_of([0xFFFF << 40, 0xFFFF << 40, 3, 3, 3])
    signatures.files[3] = signatures.files[2]
    signatures.pixels[3] = signatures.pixels[2]
    signatures.pixels[4] = signatures.pixels[2]
    signatures.readable[1] = False
    (group,) = find_copies(signatures)
    assert (group.kind, group.members) == ("pixels", (2, 3, 4))


def test_the_hash_of_rows_says_where_the_gray_rises():
    ramp = Image.fromarray(np.tile(np.arange(0, 144, 2, dtype=np.uint8), (64, 1)))
    assert difference_hashes(ramp) == (2**64 - 1, 0)
    assert difference_hashes(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0] == 0
    assert difference_hashes(ramp.transpose(Image.Transpose.TRANSPOSE)) == (0, 2**64 - 1)


def test_the_frames_of_a_film_are_compared_a_few_times_each(monkeypatch):
    """Each frame differs from the one before in at most one bit, so that a chain joins all."""
    draw = np.random.default_rng(0)
    hash_of_frame, rows = int.from_bytes(draw.bytes(8), "big"), []
    for _ in range(3000):
        if draw.random() < 0.05:
            hash_of_frame ^= 1 << int(draw.integers(64))
        rows.append(hash_of_frame)
    compared = 0
    verified = copies._verified

    def counted(signatures, left, right):
        nonlocal compared
        compared += len(left)
        return verified(signatures, left, right)

    monkeypatch.setattr(copies, "_verified", counted)
    (group,) = find_copies(signatures_of(rows))
    assert group.members == tuple(range(3000))
    assert compared < 10 * 3000  # of 4.5 million pairs, each in up to 15 orders


def test_images_of_one_bucket_that_are_not_alike_are_compared_all_the_same():
    """Equal hashes: 90 images in 30 colours, of which each has three, among them one that differs in its hash too."""
    signatures = signatures_of([0] * 60 + [0b1111] * 30)
    signatures.small[:] = np.random.default_rng(0).integers(0, 255, (30, 12))[np.arange(90) % 30]
    assert [each.members for each in find_copies(signatures)] == [(k, k + 30, k + 60) for k in range(30)]
