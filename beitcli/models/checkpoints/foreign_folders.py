"""Finds the newest weights in a folder that another training program wrote. Imports no torch.

| program | its folder | taken |
|---|---|---|
| transformers' Trainer, accelerate | [checkpoints/]checkpoint-N/model.safetensors, checkpoint_N/ | the largest N |
| Lightning | [lightning_logs/version_N/]checkpoints/epoch=E-step=S.ckpt | the newest version, then the largest S |
| the release, timm | checkpoint-N.pth, checkpoint-N.pth.tar | the largest N |
| OpenMMLab, detectron2 | epoch_N.pth, iter_N.pth, model_N.pth, last_checkpoint | what that names, else the largest N |
| DeepSpeed | latest, TAG/mp_rank_00_model_states.pt | TAG; the largest N of TAGs that end with a number |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from beitcli.errors import StorageError
from beitcli.escaping import shell_line
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json

_STEP_FILE = re.compile(
    r"(?:(?:checkpoint|ckpt|epoch|iter|step|model|global_step)[-_=]?\d+|.*step=\d+.*|last(?:-v\d+)?|best|.*[-_]best|"
    r"best[-_].*|latest)\.(?:pth\.tar|pth|pt|ckpt|bin|safetensors)"
)
_STEP_FOLDER = re.compile(r"checkpoint[-_]")
_LONGEST_NAME = 4096
_DEEPSPEED = "mp_rank_00_model_states.pt"
_OTHERS = (".onnx", ".gguf", ".msgpack", ".h5", ".pt2", ".npz", ".pdparams", ".tflite")  # formats the reader names
_JOIN_SHARDS = "zero_to_fp32.py"  # DeepSpeed writes it beside the folders of its tags
_JOIN_DCP = ("python", "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch")


def newest_weights(folder: Path, weights: Iterable[str]) -> Path | None:
    """Returns the newest weights file of another program's run; None if the folder is no such run.

    Args:
        weights: Names of weights files in a checkpoint's folder, the best first.
    """
    names = tuple(weights)
    if any((folder / name).is_file() for name in names):
        return None

    def inside(step: Path) -> Path | None:
        return next((step / name for name in names if (step / name).is_file()), None)

    told = _last_checkpoint(folder)
    if told is not None:
        return told
    top = _listed(folder)  # once: it may be DATA, with a million files
    listings = {folder: top, folder / "checkpoints": _listed(folder / "checkpoints")}
    for entries in listings.values():
        steps = [Path(each.path) for each in entries if _STEP_FOLDER.match(each.name) and each.is_dir()]
        steps = [each for each in steps if inside(each)]
        if steps:
            return inside(max(steps, key=_number))
    for parent in (*listings, *_versions(folder, top)):
        entries = listings[parent] if parent in listings else _listed(parent)
        files = [Path(each.path) for each in entries if _STEP_FILE.fullmatch(each.name) and each.is_file()]
        numbered = [each for each in files if _number(each) >= 0]
        if numbered and (len(files) > 1 or parent != folder):
            return max(numbered, key=_number)
        if len(files) == 1 and parent != folder:
            return files[0]
    return _of_deepspeed(folder, [Path(each.path) for each in top if each.is_dir()])


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def refuse_known(folder: Path) -> None:
    """Raises StorageError if the folder is in a format that is known but holds no weights to be read as they are."""
    if (folder / "adapter_config.json").is_file():
        raise StorageError(f"'{folder}' is an adapter of peft, not a whole model.", _merge(folder))
    if any(folder.glob("*.distcp")):
        command = shell_line((*_JOIN_DCP, folder, "weights.pth"))
        raise StorageError(
            f"'{folder}' is a checkpoint of torch.distributed.checkpoint.",
            f"Join it: `{command}`, and give weights.pth.",
        )
    if any(folder.glob("**/*zero_pp_rank_*_states.pt")):
        raise StorageError(
            f"'{folder}' is a checkpoint of DeepSpeed, whose weights lie in shards.",
            f"Join them: `{_join_shards(folder)}`, and give weights/pytorch_model.bin.",
        )
    if (folder / "saved_model.pb").is_file():
        raise StorageError(f"'{folder}' is a TensorFlow SavedModel.", "Give the weights that it was made from.")


def other_format(folder: Path) -> Path | None:
    """Returns a file of another format in a folder without weights; the reader says what it is."""
    return next((each for each in sorted(folder.iterdir()) if each.suffix in _OTHERS and each.is_file()), None)


def _merge(folder: Path) -> str:
    try:
        base = str(parse_json(read_regular(folder / "adapter_config.json"))["base_model_name_or_path"])
    except (OSError, ValueError, TypeError, KeyError):
        base = "BASE"
    text = partial(json.dumps, ensure_ascii=False)  # Python's strings too
    program = (
        "from peft import PeftModel; from transformers import AutoModelForImageClassification as M; "
        f"PeftModel.from_pretrained(M.from_pretrained({text(base)}), {text(str(folder))})"
        '.merge_and_unload().save_pretrained("merged")'
    )
    return f"Merge it into its base model: {shell_line(('python', '-c', program))}, and give merged/."


def _join_shards(folder: Path) -> str:
    """Returns the command that joins DeepSpeed's shards, of a run's folder or of one of its tags."""
    of_tag = not (folder / _JOIN_SHARDS).is_file() and (folder.parent / _JOIN_SHARDS).is_file()
    run, tag = (folder.parent, ("--tag", folder.name)) if of_tag else (folder, ())
    return shell_line(("python", run / _JOIN_SHARDS, run, "weights", *tag))


def _last_checkpoint(folder: Path) -> Path | None:
    """Returns the file that `last_checkpoint` names, as detectron2 and mmengine write it; they may have moved since."""
    try:
        name = (
            read_regular(folder / "last_checkpoint")[:_LONGEST_NAME]
            .decode()
            .strip()
            .replace("\\", "/")
            .rpartition("/")[2]
        )
        return folder / name if name and (folder / name).is_file() else None
    except (OSError, ValueError):  # of the name too: it may be longer than a file system takes
        return None


def _versions(folder: Path, top: list[os.DirEntry[str]]) -> list[Path]:
    """Returns the checkpoint folders of Lightning's versions, the newest first; `top` is what `folder` holds."""
    found = [
        Path(each.path) for each in (*top, *_listed(folder / "lightning_logs")) if each.name.startswith("version_")
    ]
    return [each / "checkpoints" for each in sorted(found, key=_number, reverse=True)]


def _of_deepspeed(folder: Path, below: list[Path]) -> Path | None:
    """Returns the weights of a folder of DeepSpeed's; `below` are its subfolders."""
    if (folder / _DEEPSPEED).is_file():
        return folder / _DEEPSPEED
    tags = [each for each in below if (each / _DEEPSPEED).is_file()]
    try:
        latest = folder / read_regular(folder / "latest")[:_LONGEST_NAME].decode().strip()
    except (OSError, ValueError):
        latest = folder
    tag = latest if latest in tags else max(tags, key=_number, default=None)
    return tag / _DEEPSPEED if tag else None


def _last_number(name: str) -> int:
    numbers = re.findall(r"\d+", re.sub(r"-v\d+(?=\.)", "", name))
    return int(numbers[-1]) if numbers else -1


def _number(path: Path) -> int:
    """Returns the step or epoch that a name ends with; -1 if there is none.

    Of a `best_acc_0.953.pth` the number is a score, unless a word says otherwise, as in `best_mIoU_iter_8000.pth`.
    """
    step = re.search(r"step=(\d+)", path.name)
    if step is None and re.match(r"best|.*[-_]best\.", path.name):
        step = re.search(r"(?:epoch|iter|step)[-_=]?(\d+)", path.name)
        return int(step[1]) if step else -1
    return int(step[1]) if step else _last_number(path.name)
