"""Mutations that get past lengths and checksums, as pure functions of (content, seed)."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from contextlib import suppress

from tests.faults.mutations import mutated, mutated_json


def json_mutation(content: bytes, seed: int) -> bytes:
    """Other valid JSON; raw damage where the content is none."""
    try:
        return mutated_json(content, seed)
    except (ValueError, RecursionError):
        return mutated(content, seed)


def json_lines_mutation(content: bytes, seed: int) -> bytes:
    lines = content.split(b"\n")
    number = seed % len(lines)
    lines[number] = json_mutation(lines[number], seed)
    return b"\n".join(lines)


def png_mutation(content: bytes, seed: int) -> bytes:
    """Damages the content of one chunk, or its kind, and makes all sums right."""
    draw, at, chunks = random.Random(seed), 8, []
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    if not chunks:
        return mutated(content, seed)
    chosen = chunks[draw.randrange(len(chunks))]
    how = draw.random()
    if how < 0.1:
        chunks.insert(draw.randrange(len(chunks)), list(draw.choice(chunks)))
    elif how < 0.2:
        chosen[0] = draw.choice(
            [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"tRNS", b"PLTE", b"IDAT", b"acTL", b"fcTL"]
        )
    elif how < 0.5:
        with suppress(zlib.error):  # pixels, or a text
            start = chosen[1].find(b"\0") + 2 if chosen[0] in (b"iCCP", b"zTXt") else 0
            chosen[1] = chosen[1][:start] + zlib.compress(mutated(zlib.decompress(chosen[1][start:]), seed))
    else:
        chosen[1] = mutated(chosen[1], seed)
    made = content[:8]
    for kind, body in chunks:
        made += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return made


def tar_mutation(content: bytes, seed: int) -> bytes:
    """Damages one block of 512 bytes, with its checksum made right, where it may be a header."""
    blocks = max(1, len(content) // 512)
    start = 512 * random.Random(seed).randrange(blocks)
    header = bytearray(mutated(content[start : start + 512], seed)[:512].ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


def zip_mutation(content: bytes, seed: int) -> bytes:
    """Damages one member, and packs all again."""
    draw = random.Random(seed)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(each.filename, archive.read(each)) for each in archive.infolist()]
        chosen = draw.randrange(len(members))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for number, (name, body) in enumerate(members):
                if number == chosen and draw.random() < 0.1:
                    name = draw.choice(members)[0] + draw.choice(["", "x", "/"])
                archive.writestr(name, mutated(body, seed) if number == chosen else body)
        return file.getvalue()
    except Exception:  # no zip any more
        return mutated(content, seed)


def parquet_mutation(content: bytes, seed: int) -> bytes:
    """Damages the footer: the schema, the places of the columns and their counts; its length is made right."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if len(content) < 12 or start < 4 or seed % 4 == 3:
        return mutated(content, seed)
    footer = mutated(content[start:-8], seed)
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def safetensors_mutation(content: bytes, seed: int) -> bytes:
    """Another header, with its length made right, over the same data."""
    end = 8 + int.from_bytes(content[:8], "little")
    if end > len(content):
        return mutated(content, seed)
    header = json_mutation(content[8:end], seed)
    return len(header).to_bytes(8, "little") + header + content[end:]


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()
