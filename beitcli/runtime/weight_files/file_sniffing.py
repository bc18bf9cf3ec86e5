"""Recognizes files that are not weights by their first bytes: a web page, an error message, an archive, an image.

Dead links and expired logins are the usual cause: the download succeeds, and loading the file fails with a message
about pickles ("invalid load key, '<'").
"""

from __future__ import annotations

import json
import re

from beitcli.runtime.storage.safe_json import parse_json

HEAD_BYTES = 8192
_AGAIN = "Check its address in a browser, then download it again."
_NO_MODEL = "Give a run, a checkpoint or the name of a model."
_OF_IMAGES = "Give a run, a checkpoint or the name of a model; `beit doctor` looks at images."
_UNPACK = "Unpack it and give the weights file in it."
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x89PNG\r\n", "a PNG image", _OF_IMAGES),
    (b"\xff\xd8\xff", "a JPEG image", _OF_IMAGES),
    (b"GIF8", "a GIF image", _OF_IMAGES),
    (b"%PDF", "a PDF document", _NO_MODEL),
    (b"\x89HDF", "an HDF5 file", "Give the weights as safetensors or as a torch file."),
    (b"\x93NUMPY", "a NumPy array", "Give the weights as safetensors or as a torch file."),
    (b"GGUF", "a GGUF file, of llama.cpp", "Give the weights that it was made from (.safetensors, .pth or .bin)."),
)
_SCRIPT = (
    "Where you trust it, take its weights: python -c \"import torch; torch.save(torch.jit.load('FILE', "
    "map_location='cpu').state_dict(), 'weights.pth')\"."
)
_EXPORTED = (
    "Where you trust it, take its weights: python -c \"import torch; torch.save(dict(torch.export.load('FILE')"
    ".state_dict), 'weights.pth')\"."
)
_ARRAYS = (
    'Convert it: python -c "import numpy as np, torch; torch.save({k: torch.from_numpy(v) for k, v in '
    "np.load('FILE').items()}, 'weights.pth')\"."
)
_ONNX = (
    'Give the weights that it was exported from; its own, where their names are kept: python -c "import onnx, torch; '
    "from onnx.numpy_helper import to_array; torch.save({t.name: torch.tensor(to_array(t)) for t in "
    "onnx.load('FILE').graph.initializer}, 'weights.pth')\"."
)
_FLAX = (
    "Convert it with transformers before version 5: BeitForImageClassification.from_pretrained(FOLDER, "
    "from_flax=True).save_pretrained('converted')."
)
_LOG = re.compile(r"\A--\d{4}-\d\d-\d\d \d\d:\d\d:\d\d--|\ASaving to: |\Acurl: \(\d+\)|% Total\s+% Received")


def one_line(text: str, limit: int = 80) -> str:
    """Returns one line of at most `limit` characters, with whitespace collapsed and control characters escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def sniff(head: bytes) -> tuple[str, str] | None:
    """Returns a description of the file and a hint for the user; None if it may hold weights.

    Args:
        head: The first HEAD_BYTES of the file.
    """
    if not head:
        return "is empty", "Download it again, and see that the disk has room."
    if (known := sniff_magic(head)) is not None:
        return known
    if head[257:262] == b"ustar":
        return "is a tar archive", _UNPACK
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model", "Give the weights that it was made from (.safetensors, .pth or .bin)."
    if _is_onnx(head):
        return "is an ONNX model, a graph and not a state dict", _ONNX
    if len(head) > 1 and 0x80 < head[0] < 0x90 and 0xA0 < head[1] < 0xC0:  # a msgpack map with text as first key
        return "is a msgpack file, as Flax saves weights", _FLAX
    text = _text(head)
    return None if text is None else _sniff_text(text)


def sniff_magic(head: bytes) -> tuple[str, str] | None:
    """Does as `sniff` for a file that its very first bytes tell, such as an image: it is neither text nor a pickle."""
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return f"is {what}", hint
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "is a WebP image", _OF_IMAGES
    return None


def _is_onnx(head: bytes) -> bool:
    """Whether it begins as a ModelProto: the version of the format (field 1), then the producer's name (field 2)."""
    if len(head) < 8 or head[0] != 8 or head[1] > 64 or head[2] != 0x12:
        return False
    return head[4 : 4 + head[3]].isascii() and head[4:5].isalnum()


def sniff_zip(names: list[str]) -> tuple[str, str]:
    """Returns what a zip archive is that is no torch file of weights, and a hint for the user.

    Args:
        names: Paths in the archive.
    """
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return "a TorchScript program, not weights", _SCRIPT
    if any(name.startswith("models/") or name == "archive_format" for name in inner):
        return "a program of torch.export (.pt2), not weights", _EXPORTED
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", _ARRAYS
    if any(name.endswith((".keras", "model.weights.h5")) for name in names):
        return "a Keras model", "Give the weights as safetensors or as a torch file."
    return f"a zip archive of {one_line(', '.join(names[:4]) or 'nothing')}", _UNPACK


def _text(head: bytes) -> str | None:
    """Decodes the head as text; None if it is binary."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = head.decode(encoding, errors="replace").strip()
    controls = sum(ord(char) < 32 and char not in "\t\n\r\f\x1b\b" for char in text)
    undecoded = text.count("�")
    return text if text and controls == 0 and undecoded <= max(4, len(text) // 20) else None


def _sniff_text(text: str) -> tuple[str, str]:
    start = text[:2000].lower()
    if start.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,19})$", text, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"is a Git LFS pointer: it only names the file{of}",
            "Run `git lfs install` and `git lfs pull` in its repository, or download the file itself.",
        )
    if "<html" in start or start.startswith("<!doctype html"):
        return _web_page(text)
    if start.startswith(("<?xml", "<error")):
        return _xml(text)
    if start.startswith(("{", "[")):
        return _json(text)
    if _LOG.search(text):
        last = text.splitlines()[-1]
        return f"is the log of a download, not what it fetched; it ends '{one_line(last)}'", _AGAIN
    return f"is text that begins '{one_line(text)}'", _AGAIN


def _web_page(text: str) -> tuple[str, str]:
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    named = f" with the title '{one_line(title[1])}'" if title and title[1].strip() else ""
    return f"is a web page{named}, not weights", "The link is dead or wants a login. " + _AGAIN


def _xml(text: str) -> tuple[str, str]:
    code = re.search(r"<Code>(.*?)</Code>", text, re.IGNORECASE | re.DOTALL)
    message = re.search(r"<Message>(.*?)</Message>", text, re.IGNORECASE | re.DOTALL)
    if code is None:
        return f"is XML that begins '{one_line(text)}'", _AGAIN
    said = f": {one_line(message[1])}" if message else ""
    return (
        f"is a storage server's error '{one_line(code[1])}'{said}",
        "The link is dead or not public any more. Take the weights from another publisher, such as a model hub.",
    )


def _json(text: str) -> tuple[str, str]:
    try:
        document = parse_json(text)
    except ValueError:  # invalid, or longer than the head
        document = None
    if isinstance(document, dict):
        for key in ("error", "message", "detail", "errors"):
            if document.get(key):
                said = document[key] if isinstance(document[key], str) else json.dumps(document[key])
                return f"is a server's error message '{one_line(said)}'", _AGAIN
    return f"is JSON that begins '{one_line(text)}'", "Give the weights file that lies beside it."
