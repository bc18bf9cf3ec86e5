"""What a command line cannot do, told before torch is loaded: the kind of a model, data without labels, outputs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import save_picture

FINETUNE = ["--init", "random", "--recipe"]
Line = tuple[list[Any], int, str]

PROGRAM = """
import sys
from beitcli.cli.app import main

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm"):
            raise SystemExit(f"{name} is loaded")

sys.meta_path.insert(0, NoTorch())
for line in LINES:
    print("----", file=sys.stderr, flush=True)
    try:
        code = main(line)
    except SystemExit as ended:
        code = ended.code
    print("code", code, file=sys.stderr, flush=True)
"""


def assert_told(lines: list[Line], folder: Path, without: Sequence[str] = ()) -> None:
    """Runs command lines in one process that cannot import torch; compares codes and the errors' first lines.

    Args:
        without: Packages that the process has not got either.
    """
    argvs = [[str(word) for word in line] for line, _, _ in lines]
    program = PROGRAM.replace("LINES", repr(argvs))
    program = f"import sys\nsys.modules |= dict.fromkeys({list(without)!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    answers = []
    for part in done.stderr.split("----\n")[1:]:
        first, *_, last = part.splitlines()
        answers.append((last, first))
    expected = [(f"code {code}", f"error: {said}") for _, code, said in lines]
    for argv, answer, (code, said) in zip(argvs, answers, expected, strict=True):
        assert answer[0] == code, (argv, answer)
        assert answer[1].startswith(said), (argv, answer)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """4 images without labels, masks and boxes; beside them an empty folder, and files that are there."""
    for number in range(4):
        save_picture(tmp_path / "flat" / f"{number}.png", (90, 40 * number, 20), seed=number)
    for name in ("empty", "there"):
        (tmp_path / name).mkdir()
    for name in ("x.npy", "x.png", "x.jsonl", "x.html", "there/config.json"):
        (tmp_path / name).write_text("kept")
    return tmp_path


def test_data_without_labels_is_told_early(flat: Path, finetuned_run: Path, pretrained_run: Path) -> None:
    none = "'flat' has no labels, and they are needed here."
    lines: list[Line] = [
        (["finetune", "flat", *FINETUNE, "tiny"], 3, none),
        (["finetune", "sample", *FINETUNE, "tiny", "--val", "flat"], 3, none),
        (["finetune", "flat", *FINETUNE, "tiny", "--problem", "multi-label"], 3, "'flat' has no 0/1 columns of labels"),
        (["finetune", "flat", *FINETUNE, "tiny-segment"], 3, "'flat' has no images/ beside masks/ or annotations/."),
        (["finetune", "x.png", *FINETUNE, "tiny-segment"], 3, "'x.png' has no masks."),
        (["finetune", "flat", *FINETUNE, "tiny-detect"], 3, "'flat' has no annotations in COCO's layout."),
        (["eval", finetuned_run, "flat"], 3, none),
        (["eval", pretrained_run, "flat", "--protocol", "knn"], 3, none),
        (["eval", pretrained_run, "sample", "--protocol", "linear", "--train", "flat"], 3, none),
        (["eval", pretrained_run, "there/x", "--protocol", "elbo"], 3, "'there/x' does not exist."),
    ]
    assert_told(lines, flat)


def test_data_of_models_that_take_torch_to_read_is_told_early(flat: Path, pretrained_run: Path) -> None:
    (flat / "pickled.pth").write_bytes(b"PK\3\4" + bytes(100))
    vit = {"cls_token": (1, 1, 8), "patch_embed.proj.weight": (8, 3, 4, 4), "blocks.0.attn.qkv.bias": (24,)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in vit.items()}, flat / "vit.safetensors")
    step = pretrained_run / "checkpoints" / "step-0000004"
    (flat / "timm").mkdir()
    (flat / "timm" / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    shutil.copy(step / "model.safetensors", flat / "timm" / "model.safetensors")
    models = ["pickled.pth", "vit.safetensors", "timm"]
    none = "'flat' has no labels, and they are needed here."
    assert_told([(["eval", model, "flat", "--protocol", "knn"], 3, none) for model in models], flat)


def test_inputs_without_images_are_told_early(
    flat: Path, finetuned_run: Path, pretrained_run: Path, tokenizer_run: Path
) -> None:
    none = "No images below 'empty/'."
    lines: list[Line] = [
        (["pretrain", "empty", "--recipe", "tiny"], 3, none),
        (["train-tokenizer", "empty", "--recipe", "tiny"], 3, none),
        (["embed", pretrained_run, "empty"], 3, none),
        (["embed", pretrained_run, "flat", "--query", "flat"], 2, "--query 'flat' is 4 images."),
        (["predict", finetuned_run, "empty"], 3, none),
        (["predict", finetuned_run, "sample", "--split", "test"], 3, "'sample' has no split 'test'"),
        (["tokenize", "empty", "--tokenizer", tokenizer_run], 3, none),
        (["attn-map", "empty", "--model", pretrained_run], 3, none),
        (["mask-preview", "empty", "--model", pretrained_run], 3, none),
        (["predict", finetuned_run, "flat/*.jpg"], 3, "No file matches 'flat/*.jpg'."),
    ]
    assert_told(lines, flat)


def test_models_of_another_kind_are_told_early(
    flat: Path, finetuned_run: Path, pretrained_run: Path, tokenizer_run: Path
) -> None:
    tokenizer, pretrained = f"'{tokenizer_run}' is a tokenizer.", f"'{pretrained_run}' is a pretrained model, not"
    classifier, no_tokenizer = f"'{finetuned_run}' is a classifier.", f"'{finetuned_run}' is a classifier, not a token"
    lines: list[Line] = [
        (["predict", pretrained_run, "flat"], 4, pretrained),
        (["predict", tokenizer_run, "flat"], 4, tokenizer),
        (["eval", pretrained_run, "flat"], 4, pretrained),
        (["eval", finetuned_run, "flat", "--protocol", "elbo"], 4, classifier),
        (["eval", tokenizer_run, "flat", "--protocol", "knn"], 4, tokenizer),
        (["embed", tokenizer_run, "flat"], 4, tokenizer),
        (["attn-map", "flat", "--model", tokenizer_run], 4, tokenizer),
        (["mask-preview", "flat", "--model", finetuned_run], 4, classifier),
        (["finetune", "sample", "--recipe", "tiny", "--init", tokenizer_run], 4, tokenizer),
        (["export", tokenizer_run, "-o", "new"], 4, tokenizer),
        (["tokenize", "flat", "--tokenizer", finetuned_run], 4, no_tokenizer),
        (["pretrain", "flat", "--recipe", "tiny", "--tokenizer", finetuned_run], 4, no_tokenizer),
        (["mask-preview", "flat", "--model", pretrained_run, "--tokenizer", finetuned_run], 4, no_tokenizer),
        (["eval", pretrained_run, "flat", "--protocol", "elbo", "--tokenizer", finetuned_run], 4, no_tokenizer),
        (["eval", pretrained_run, "flat", "--protocol", "elbo", "--tokenizer", "no/where"], 4, "There is no model at"),
        (["predict", finetuned_run, "flat", "--window", 16], 2, f"--window has no effect on '{finetuned_run}'"),
    ]
    assert_told(lines, flat)


def test_outputs_that_cannot_be_written_are_told_early(
    flat: Path, finetuned_run: Path, pretrained_run: Path, tokenizer_run: Path
) -> None:
    def there(name: str, option: str = "-o") -> str:
        return f"{option} '{name}' exists already."

    no_folder = "Output folder 'x.png' cannot be made: File exists."
    model, tokenizer = ["--model", pretrained_run], ["--tokenizer", tokenizer_run]
    lines: list[Line] = [
        (["embed", pretrained_run, "flat", "-o", "x.npy"], 2, there("x.npy")),
        (["embed", pretrained_run, "flat", "--query", "flat/0.png", "-o", "x.png"], 2, there("x.png")),
        (["embed", pretrained_run, "flat", "-o", "x.npy/y.npy"], 4, f"Output folder '{flat / 'x.npy'}' cannot be made"),
        (["mask-preview", "flat/0.png", *model, "-o", "x.png"], 2, there("x.png")),
        (["mask-preview", "flat", *model, "-o", "x.png"], 2, there("x.png")),
        (["mask-preview", "--stats", 3, *model, "-o", "x.png"], 2, there("x.png")),
        (["mask-preview", "flat/0.png", *model, "-o", "flat/0.png"], 2, "-o 'flat/0.png' would overwrite the image"),
        (["attn-map", "flat/0.png", *model, "-o", "x.png"], 2, there("x.png")),
        (["attn-map", "flat", *model, "-o", "x.html"], 2, there("x.html")),
        (["attn-map", "flat", *model, "-o", "flat"], 2, "-o 'flat' would overwrite the image 'flat/0.png'."),
        (["attn-map", "flat", *model, "--point", "a"], 2, "--point is 'a'."),
        (["tokenize", "flat", *tokenizer, "-o", "x.jsonl"], 2, there("x.jsonl")),
        (["tokenize", "flat", *tokenizer, "--stats", "-o", "x.png"], 2, there("x.png")),
        (["tokenize", "flat", *tokenizer, "--map", "x.png"], 2, there("x.png", "--map")),
        (["tokenize", "flat", *tokenizer, "--codebook", "x.png"], 2, there("x.png", "--codebook")),
        (["tokenize", "flat", *tokenizer, "--reconstruct", "x.png"], 4, no_folder),
        (["tokenize", "--decode", "x.jsonl", *tokenizer, "-o", "x.png"], 4, no_folder),
        (["predict", finetuned_run, "flat", "-o", "x.jsonl"], 2, there("x.jsonl")),
        (
            ["predict", finetuned_run, "flat", "-o", "x.png"],
            2,
            f"'{finetuned_run}' is a classifier, which writes lines of JSON: -o 'x.png' is another",
        ),
        (["export", pretrained_run, "-o", "there"], 2, "-o 'there' is there already."),
        (["pretrain", "sample", "--recipe", "tiny", "--out", "x.png/run"], 4, "Output folder 'x.png/run' cannot be"),
    ]
    before = sorted(path.name for path in flat.rglob("*"))
    assert_told(lines, flat)
    assert sorted(path.name for path in flat.rglob("*")) == before  # nothing was made
    assert (flat / "x.png").read_text() == "kept"


def test_no_folder_is_made_of_the_name_of_a_file(
    flat: Path, finetuned_run: Path, pretrained_run: Path, tokenizer_run: Path
) -> None:
    def refused(name: str, option: str = "-o") -> str:
        return f"{option} '{name}' reads as one file, and a folder is needed."

    model, tokenizer = ["--model", pretrained_run], ["--tokenizer", tokenizer_run]
    lines: list[Line] = [
        (["attn-map", "flat", *model, "-o", "new.npy"], 2, "-o 'new.npy' takes one image, but 4 are given."),
        (["tokenize", "flat", *tokenizer, "--reconstruct", "new.png"], 2, refused("new.png", "--reconstruct")),
        (["tokenize", "--decode", "x.jsonl", *tokenizer, "-o", "new.png"], 2, refused("new.png")),
        (["predict", finetuned_run, "flat", "-o", "new.png"], 2, f"'{finetuned_run}' is a classifier, which writes"),
        (["embed", pretrained_run, "flat", "-o", "new.png"], 2, "-o 'new.png' ends in no format that is known here."),
        (["export", finetuned_run, "--to", "official", "-o", "new.pth"], 2, refused("new.pth")),
        (["pack", "flat", "-o", "new.tar"], 2, refused("new.tar")),
    ]
    assert_told(lines, flat)
    assert not list(flat.glob("new*"))


def test_lists_without_a_file_are_told_early(flat: Path, finetuned_run: Path, pretrained_run: Path) -> None:
    (flat / "notes.txt").write_text("hello\n\nbuy milk\n" + "word " * 100)
    (flat / "one.txt").write_text("hello\n")
    (flat / "many.tsv").write_text("".join(f"{number}.jpg\ta\n" for number in range(2_000)))
    (flat / "table.csv").write_text("path,cat\nno.png,1\n")
    (flat / "good.txt").write_text("flat/7.png\nflat/0.png\n")
    three = "'notes.txt' is read as a list of 3 paths, of which none is a file, the first: 'hello'."
    lines: list[Line] = [
        (["predict", finetuned_run, "notes.txt"], 3, three),
        (["embed", pretrained_run, "notes.txt"], 3, three),
        (["pretrain", "notes.txt", "--recipe", "tiny"], 3, three),
        (["embed", pretrained_run, "one.txt"], 3, "'one.txt' is read as a list of 1 path, 'hello', which is not a"),
        (
            ["embed", pretrained_run, "many.tsv"],
            3,
            "'many.tsv' is read as a list of 2,000 paths, of which none of 1,0",
        ),
        (["embed", pretrained_run, "table.csv"], 3, "'table.csv' is read as a table of 1 path, 'no.png', which is not"),
        (["embed", pretrained_run, "good.txt", "-o", "x.npy"], 2, "-o 'x.npy' exists already."),
    ]
    assert_told(lines, flat)


def test_outputs_of_a_pipe_are_refused_alike_by_the_engine(
    beit: Callable, flat: Path, monkeypatch: pytest.MonkeyPatch, pretrained_run: Path
) -> None:
    """A pipe is left to the engine, which says the same."""
    monkeypatch.chdir(flat)
    ended = beit("embed", pretrained_run, "-", "-o", "x.npy", "--workers", 0, stdin=b"flat/0.png\n")
    assert ended.code == 2
    assert ended.err.startswith("error: -o 'x.npy' exists already.")


def test_an_image_in_the_place_of_a_model_is_told_early(flat: Path) -> None:
    save_picture(flat / "photo.jpg", (90, 40, 20), seed=0)
    said = "'photo.jpg' is a JPEG image."
    assert_told(
        [
            (["inspect", "photo.jpg"], 4, said),
            (["attn-map", "flat/0.png", "--model", "photo.jpg"], 4, said),
            (["tokenize", "flat", "--tokenizer", "photo.jpg"], 4, said),
            (["predict", "flat/0.png", "photo.jpg"], 4, "'flat/0.png' is a PNG image."),
        ],
        flat,
    )


def test_a_missing_package_of_an_export_is_told_early(flat: Path, pretrained_run: Path) -> None:
    packages = ["onnx", "onnxruntime", "onnxscript"]
    said = "--to onnx needs onnx, onnxruntime and onnxscript, which are not installed."
    assert_told([(["export", pretrained_run, "--to", "onnx", "-o", "new"], 2, said)], flat, packages)
