import argparse
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.runtime.weight_files.reader import read_header, read_tensors
from beitcli.runtime.weight_files.safe_unpickling import guarded_load

STATE = {"cls_token": torch.arange(6.0).reshape(1, 1, 6), "head.weight": torch.ones(3, 6, dtype=torch.float16)}
SHAPES = {"cls_token": (1, 1, 6), "head.weight": (3, 6)}


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(path: Path, content: bytes | None = None) -> StorageError:
    """What read_header and read_tensors say of a file; the same, both times."""
    if content is not None:
        path.write_bytes(content)
    failures = []
    for read in (read_header, read_tensors, read_header):
        with pytest.raises(StorageError) as failure:
            read(path)
        failures.append(failure.value)
    assert failures[0].message == failures[1].message == failures[2].message
    assert str(path) in failures[0].message
    assert failures[0].hint
    assert failures[0].message.isprintable()
    return failures[0]


# --- the containers


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
def test_every_container_gives_shapes_and_tensors(tmp_path, container):
    path = tmp_path / "weights"
    if container == "safetensors":
        save_file(STATE, path, metadata={"format": "pt"})
    else:
        save(path, STATE, legacy=container == "legacy")
    header = read_header(path)
    assert header.shapes == SHAPES
    assert header.container == ("safetensors" if container == "safetensors" else "torch")
    assert header.about == ({"format": "pt"} if container == "safetensors" else {})
    assert header.size == path.stat().st_size
    tensors = read_tensors(path)
    assert set(tensors) == set(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) and tensors[name].dtype == STATE[name].dtype for name in STATE)
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_legacy_file_that_is_cut_within_its_tensors_is_told_from_its_header(tmp_path, share):
    shared = torch.randn(64, 64)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(64, 64), "view": shared[:32], "steps": [torch.ones(3)]}}}
    content = {"model": {"a": shared, "tied": shared, "empty": torch.zeros(0), "b": torch.ones(5000)}, "o": optimizer}
    path = save(tmp_path / "weights.pth", content, legacy=True)
    assert read_header(path).shapes["tied"] == (64, 64)
    whole = path.read_bytes()
    said = refused(path, whole[: int(len(whole) * share)])
    assert f"is cut short: {int(len(whole) * share):,} bytes of at least 53," in said.message


def test_the_name_of_a_file_says_nothing_about_it(tmp_path):
    assert read_header(save(tmp_path / "torch.safetensors", STATE)).container == "torch"
    assert read_tensors(tmp_path / "torch.safetensors").keys() == STATE.keys()
    save_file(STATE, tmp_path / "safe.pth")
    assert read_header(tmp_path / "safe.pth").container == "safetensors"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_gives_its_model_and_settings(tmp_path, legacy):
    args = argparse.Namespace(model="beit_base_patch16_224", input_size=224, lr=5e-4, resume=None, betas=[0.9, 0.98])
    optimizer = {"state": {0: {"exp_avg": torch.zeros(6)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"model": STATE, "optimizer": optimizer, "epoch": 799, "scaler": {"scale": 65536.0}, "args": args}
    path = save(tmp_path / "beit.pth", content, legacy)
    header = read_header(path)
    assert header.shapes == SHAPES
    settings = {"model": "beit_base_patch16_224", "input_size": 224, "lr": 5e-4, "resume": None, "betas": [0.9, 0.98]}
    assert header.about == {"epoch": 799, "args": settings}
    assert torch.equal(read_tensors(path)["cls_token"], STATE["cls_token"])


@pytest.mark.parametrize("key", ["model", "module", "state_dict", "model_ema"])
def test_a_state_dict_is_found_under_each_name(tmp_path, key):
    path = save(tmp_path / "a.pt", {key: OrderedDict(STATE), "args": {"depth": 12, "names": ["a"]}, "best": True})
    assert read_header(path).shapes == SHAPES
    assert read_header(path).about == {"args": {"depth": 12, "names": ["a"]}, "best": True}


def test_the_model_comes_before_its_average(tmp_path):
    path = save(tmp_path / "a.pt", {"model_ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(2)}})
    assert torch.equal(read_tensors(path)["a"], torch.ones(2))


@pytest.mark.parametrize("container", ["safetensors", "zip"])
def test_the_prefix_of_distributed_training_goes_only_where_all_have_it(tmp_path, container):
    def shapes(*names: str) -> set[str]:
        state = {name: torch.zeros(2) for name in names}
        path = tmp_path / "a"
        save_file(state, path) if container == "safetensors" else save(path, {"model": state})
        assert set(read_tensors(path)) == set(read_header(path).shapes)
        return set(read_header(path).shapes)

    assert shapes("module.a", "module.b.module.c") == {"a", "b.module.c"}
    assert shapes("module.a", "b") == {"module.a", "b"}


def test_entries_beside_tensors_are_no_error(tmp_path):
    path = save(tmp_path / "a.pt", {"model": {"a": torch.zeros(2), "version": 3, "extra": None}})
    assert read_header(path).shapes == {"a": (2,)}


@pytest.mark.parametrize("content", [{"epoch": 3, "model": {}}, [torch.zeros(2)], {}, 7])
def test_a_torch_file_without_a_state_dict_says_what_it_holds(tmp_path, content):
    failure = refused(save(tmp_path / "a.pt", content))
    assert "holds no state dict" in failure.message


def test_headers_of_enormous_files_are_read(tmp_path):
    entry = {"dtype": "F32", "shape": [250, 10**9], "data_offsets": [0, 10**12]}
    path = safetensors(tmp_path / "sparse", {"a": entry})
    os.truncate(path, path.stat().st_size + 10**12)  # a hole: it takes no room on the disk
    assert read_header(path).shapes == {"a": (250, 10**9)}


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_tensors_outlive_their_file(tmp_path, container):
    path = tmp_path / "a"
    save_file(STATE, path) if container == "safetensors" else save(path, {"model": STATE}, container == "legacy")
    tensors = read_tensors(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["cls_token"], STATE["cls_token"])


# --- pickles that ask for more


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("container", ["zip", "legacy", *(f"pickle-{protocol}" for protocol in range(6))])
def test_a_pickle_that_runs_a_command_does_not(tmp_path, container):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    content = {"model": STATE, "extra": Command(canary)}
    if container.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Command(canary)}, protocol=int(container[-1])))
    else:
        save(path, content, legacy=container == "legacy")
    failure = refused(path)
    assert f"asks for `{os.system.__module__}.system`" in failure.message
    assert "not loaded" in failure.message
    assert "safetensors" in failure.hint
    assert failure.exit_code == 4
    assert not canary.exists()
    pickle.loads(pickle.dumps(Command(canary)))
    assert canary.exists()  # so the command works


@pytest.mark.parametrize("legacy", [False, True])
def test_other_classes_are_named(tmp_path, legacy):
    failure = refused(save(tmp_path / "a.pth", {"model": STATE, "path": io.StringIO("x")}, legacy))
    assert "`_io.StringIO`" in failure.message


class StandIn:
    def __setstate__(self, state: dict[str, object]) -> None:
        self.state = state


def test_guarded_load_builds_a_stand_in_and_forgets_it(tmp_path):
    path = save(tmp_path / "a.pth", {"module": torch.nn.Linear(2, 3)})
    before = set(torch.serialization.get_safe_globals())
    loaded = guarded_load(path, [(StandIn, "torch.nn.modules.linear.Linear")])["module"]
    assert type(loaded) is StandIn
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(StorageError, match=r"torch\.nn\.modules\.linear\.Linear"):
        guarded_load(path)


def test_guarded_load_leaves_what_the_program_allowed(tmp_path):
    path = save(tmp_path / "a.pth", {"args": argparse.Namespace(a=1)})
    entry = (argparse.Namespace, "argparse.Namespace")
    with torch.serialization.safe_globals([entry]):
        assert guarded_load(path, [entry])["args"].a == 1
        assert entry in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("legacy", [False, True])
def test_guarded_load_of_shapes(tmp_path, legacy):
    loaded = guarded_load(save(tmp_path / "a.pth", STATE, legacy), meta=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == SHAPES


def test_a_damaged_checkpoint_is_not_blamed_on_its_settings(tmp_path):
    path = save(tmp_path / "a.pth", {"model": {"a": torch.rand(1000)}, "args": argparse.Namespace(a=1)}, legacy=True)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(StorageError, match="is cut short") as failure:
        read_tensors(path)
    assert "Namespace" not in failure.value.message


# --- files that are something else

HTML = "<!DOCTYPE html>\n<html><head><title>\n Sign in\x1b[31m to\n GitHub </title></head><body>…</body></html>"
DENIED = (
    '<?xml version="1.0" encoding="utf-8"?><Error><Code>PublicAccessNotPermitted</Code>'
    "<Message>Public access is not permitted on this storage account.\nRequestId:1</Message></Error>"
)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 352000000\n"
WGET = "--2024-03-01 10:00:00--  https://host/a.pth\nResolving host... failed: Name or service not known.\n"
CURL = "  % Total    % Received % Xferd  Average Speed\ncurl: (22) The requested URL returned error: 404\n"


@pytest.mark.parametrize(
    ("content", "said", "way"),
    [
        (HTML, r"web page with the title 'Sign in\x1b[31m to GitHub'", "login"),
        ("\ufeff  <html><body>404</body></html>", "is a web page, not weights", "download it again"),
        (DENIED, "error 'PublicAccessNotPermitted': Public access is not permitted", "another publisher"),
        ("<Error><Code>AccessDenied</Code></Error>", "error 'AccessDenied'", "another publisher"),
        ('<?xml version="1.0"?><rss/>', "is XML that begins", "download it again"),
        (LFS, "Git LFS pointer: it only names the file of 352,000,000 bytes", "git lfs pull"),
        (WGET, "log of a download, not what it fetched; it ends 'Resolving host... failed", "download it again"),
        (CURL, "it ends 'curl: (22) The requested URL returned error: 404'", "download it again"),
        ('{"error": "Repository not found"}', "error message 'Repository not found'", "download it again"),
        ('{"detail": {"code": 7}}', """error message '{"code": 7}'""", "download it again"),
        ('{"weight_map": {"a": "b"}}', "is JSON that begins", "beside"),
        ("Not Found", "is text that begins 'Not Found'", "download it again"),
        ("", "is empty", "Download it again"),
    ],
)
def test_text_in_the_place_of_weights_says_what_it_is(tmp_path, content, said, way):
    failure = refused(tmp_path / "a.pth", content.encode())
    assert said in failure.message
    assert way in failure.hint


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"weights"), "is a gzip archive"),
        (tar(), "is a tar archive"),
        (image("PNG"), "is a PNG image"),
        (image("JPEG"), "is a JPEG image"),
        (image("WEBP"), "is a WebP image"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "is damaged or no torch file"),
        (b"\x80\x02}q\x00", "is cut short"),
        (pickle.dumps({"a": [1.0]}, protocol=2), "is a Python pickle, but none that torch.save wrote"),
        (b"\xff" * 100, "is damaged or no torch file"),
    ],
    ids=["gzip", "tar", "png", "jpeg", "webp", "elf", "cut pickle", "pickle", "0xff"],  # gzip's bytes hold the time
)
def test_other_files_in_the_place_of_weights_say_what_they_are(tmp_path, content, said):
    assert said in refused(tmp_path / "a.pth", content).message


def test_the_way_out_of_an_image_speaks_of_no_download(tmp_path):
    hint = refused(tmp_path / "photo.jpg", image("JPEG")).hint
    assert hint == "Give a run, a checkpoint or the name of a model; `beit doctor` looks at images."


@pytest.mark.parametrize("kept", [0.2, 0.9])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path, container, kept):
    path = tmp_path / "a"
    state = {"a": torch.rand(1000), "b": torch.rand(1000)}
    save_file(state, path) if container == "safetensors" else save(path, state, container == "legacy")
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(StorageError) as failure:
        read_tensors(path)
    if container != "legacy":
        assert "cut short" in failure.value.message
        refused(path)


def test_zip_archives_of_other_things_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/beit.pth", "x")
    assert "is a zip archive of weights/beit.pth" in refused(path).message
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", "x")
        archive.writestr("model/constants.pkl", "x")
    assert "TorchScript" in refused(path).message


def test_a_torch_file_that_was_compressed_again_is_refused(tmp_path):
    path = save(tmp_path / "a.pth", STATE)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "compressed again" in refused(path).message


# --- damaged safetensors


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 15, "is cut short: "),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 20, "4 bytes more"),
        ({"a": {"dtype": "F32", "shape": [4]}}, b"", "damaged safetensors header"),
        ({"a": 3}, b"", "damaged safetensors header"),
        ({"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}, b"", "damaged safetensors header"),
        ({"__metadata__": {"format": "pt"}}, b"", "holds no tensors"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, data, said):
    assert said in refused(safetensors(tmp_path / "a.safetensors", header, data)).message


def test_safetensors_whose_header_is_cut_say_how_much_is_there(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    os.truncate(path, 40)
    assert "cut short: 40 bytes" in refused(path).message


def test_safetensors_that_overlap_are_refused_when_read(tmp_path):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    path = safetensors(tmp_path / "a.safetensors", {"a": entry, "b": entry}, b"\0" * 16)
    with pytest.raises(StorageError, match="cannot be read"):
        read_tensors(path)


# --- paths


def test_a_missing_file_is_named_with_what_lies_near(tmp_path):
    save(tmp_path / "beit_base.pth", STATE)
    with pytest.raises(StorageError, match="no file") as failure:
        read_header(tmp_path / "beit_bsae.pth")
    assert "beit_base.pth" in failure.value.hint


def test_a_folder_names_the_weights_in_it(tmp_path):
    save(tmp_path / "beit.pth", STATE)
    with pytest.raises(UsageError, match="is a folder") as failure:
        read_tensors(tmp_path)
    assert "beit.pth" in failure.value.hint


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        read_header(tmp_path / "pipe")


def test_a_path_that_cannot_be_opened_says_why(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="cannot be read: Too many levels of symbolic links"):
        read_header(tmp_path / "loop")
    save(tmp_path / "file", STATE)
    with pytest.raises(StorageError, match="cannot be read: Not a directory"):
        read_header(tmp_path / "file" / "weights.pth")


def test_quotes_are_one_short_printable_line():
    assert one_line("a\n\t b\x07\x1b[0m") == r"a b\x07\x1b[0m"
    assert one_line("x" * 90) == "x" * 79 + "…"
    assert one_line("naïve") == "naïve"
