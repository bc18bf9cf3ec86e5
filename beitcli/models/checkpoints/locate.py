"""Locates the files of a MODEL: a run, a checkpoint, any folder or file, a hub repository, timm. Imports no torch.

runs/mine   runs/mine/checkpoints/step-0000500   beit_base.pth   folder/   hf://OWNER/NAME   timm/NAME
beit_base.pth#model_ema   one of several networks in a file, by its key or prefix, or a word of it
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.nearest import nearest, suggestion
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.foreign_folders import newest_weights, other_format, refuse_known
from beitcli.models.checkpoints.key_mapping import KeyMapping
from beitcli.runtime.storage.safe_json import parse_json

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.runtime.weight_files.reader import WeightFile

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors", "model.pth", "checkpoint.pth")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt", ".pth.tar")  # the last of MoCo v3's programs
_FAMILIES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")  # ViT and EVA only

Json = dict[str, Any]
_PUBLISHED = ("beit", "dit_", "microsoft", "facebook")


def split_part(reference: str) -> tuple[str, str]:
    """Splits `MODEL#NAME`, one network of a file that holds several, into MODEL and NAME; NAME is empty without one."""
    base, mark, part = reference.rpartition("#")
    is_name = mark and base and part and "/" not in part
    return (base, part) if is_name and not Path(reference).exists() else (reference, "")


def names_a_model(reference: str) -> bool:
    """Whether a reference is a MODEL, by its form and by file names; opens no file and downloads nothing.

    MODELs are `random`, timm/..., hf://OWNER/NAME, MODEL@random; a weights file; a folder with weights, with
    checkpoints, or with a run's config.toml. A folder of images or of shards is not.
    """
    reference = split_part(reference)[0]
    path = Path(reference)
    if path.is_dir():
        ours = any((path / name).exists() for name in (*WEIGHTS, "checkpoints", "config.toml"))
        return ours or newest_weights(path, WEIGHTS) is not None
    if reference.startswith("hf://"):
        return not reference.startswith("hf://datasets/")
    named = reference == "random" or reference.startswith("timm/") or "@random" in reference
    return path.name.lower().endswith(_SUFFIXES) or (named and not path.exists())


def locate(reference: str, on_progress: OnProgress | None = None) -> tuple[Path, Json, Json]:
    """Finds the files of a MODEL; downloads them if they are on the hub.

    Returns:
        The weights file; contents of config.json and preprocessor_config.json beside it, empty if there is none.

    Raises:
        UsageError: The name is empty, or there are several files of weights.
        StorageError: There is nothing of that name, there are no weights, or they cannot be downloaded.
    """
    reference, _ = split_part(reference)
    if reference.startswith("hf://"):
        repo, _, revision = reference.removeprefix("hf://").partition("@")
        return _on_hub(repo, revision or None, on_progress)
    if not reference:
        raise UsageError("The model's name is empty.", "Give a run, a file or folder of weights, or hf://OWNER/NAME.")
    path = Path(reference)
    if is_timm_name(reference):
        return _on_hub(_timm_repository(reference.removeprefix("timm/")), None, on_progress)
    if not path.exists():
        raise StorageError(f"There is no model at '{reference}'.", _nearest(reference, path))
    return _in_folder(reference, path) if path.is_dir() else read_beside(path)


def is_timm_name(reference: str) -> bool:
    """Whether `timm/NAME` means a timm model, not a folder."""
    return reference.startswith("timm/") and not Path(reference).exists()


def format_of(reference: str, key_mapping: KeyMapping | None, header: WeightFile, config: Json) -> str:
    """Returns the format of a checkpoint. The release's and timm's differ in container and config files.

    Args:
        key_mapping: None for timm models that keep their own keys.
    """
    if "beit" in config:
        return "beit"
    if key_mapping is None:
        return "timm"
    if key_mapping.naming != "beit":
        return key_mapping.naming
    if "architecture" in config or is_timm_name(reference):
        return "timm"
    released = header.container == "torch" or any(part[0].startswith("lm_head.") for part in key_mapping.parts.values())
    return "official" if released else "timm"


def newest_step(run: Path) -> Path | None:
    """Returns the checkpoint folder of a run with the largest step number; not verified."""
    folder = run if run.name == "checkpoints" else run / "checkpoints"
    steps = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and (p / "model.safetensors").is_file()]
    return max(steps, key=lambda p: int(p.name[5:]), default=None)


def read_beside(weights: Path) -> tuple[Path, Json, Json]:
    """Returns a weights file and the config files that belong to it, as `locate` does.

    Raises:
        StorageError: A config file holds no JSON object.
    """
    # With several weights files in the folder, config.json may belong to another one.
    own = weights.name in WEIGHTS or _weights_in(weights.parent) == [weights]
    names = ("config.json", "preprocessor_config.json")
    config, preprocessing = (_read_json(weights.parent / name) if own else {} for name in names)
    return weights, config, preprocessing


def _read_json(path: Path) -> Json:
    """Reads a JSON object; empty if there is no such file.

    Raises:
        StorageError: It cannot be read, or is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"'{path}' cannot be read: {error}.", "Restore it, or download it again.") from None
    if not isinstance(document, dict):
        raise StorageError(f"'{path}' holds no JSON object.", "Restore it, or download it again.")
    return document


def _weights_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name.endswith(_SUFFIXES) and p.is_file()]


def _in_folder(reference: str, path: Path) -> tuple[Path, Json, Json]:
    for name in WEIGHTS:
        if (path / name).is_file():
            return read_beside(path / name)
    step = newest_step(path)
    if step is not None:
        return read_beside(step / "model.safetensors")
    newest = newest_weights(path, WEIGHTS)
    if newest is not None:
        return read_beside(newest)
    refuse_known(path)
    single = _weights_in(path)
    if len(single) == 1:
        return read_beside(single[0])
    if single:
        names = ", ".join(p.name for p in single[:4])
        raise UsageError(f"'{reference}' holds {len(single)} files of weights ({names}).", "Name one of them.")
    if (path / "model.safetensors.index.json").is_file() or (path / "pytorch_model.bin.index.json").is_file():
        raise StorageError(f"'{reference}' is split into several files.", "Save it again as one model.safetensors.")
    if (path / "config.toml").is_file():
        raise StorageError(
            f"'{reference}' holds no checkpoint.",
            "Give a run that has saved one (RUN/checkpoints/step-...), or go on with it by --resume.",
        )
    other = other_format(path)
    if other is not None:
        return read_beside(other)
    raise StorageError(
        f"'{reference}' holds no checkpoint and no weights.", f"Give a run, or a folder with {WEIGHTS[0]}."
    )


def _on_hub(repo: str, revision: str | None, on_progress: OnProgress | None) -> tuple[Path, Json, Json]:
    from beitcli.runtime.hub.client import fetch  # imports the hub's client

    config = fetch(repo, ["config.json"], revision=revision, optional=True)
    preprocessing = fetch(repo, ["preprocessor_config.json"], revision=revision, optional=True)
    weights = fetch(repo, WEIGHTS, on_progress=on_progress, revision=revision)
    assert weights is not None  # not optional
    return weights, _read_json(config) if config else {}, _read_json(preprocessing) if preprocessing else {}


def is_beit_name(name: str) -> bool:
    """Whether a timm model is a BEiT, by its name."""
    return name.startswith(("beit_", "beitv2_"))


def timm_name(name: str) -> str:
    """Returns the name of a timm model without the tag.

    Raises:
        StorageError: timm has no such model.
        UsageError: It is not a supported vision Transformer.
    """
    from timm.models import is_model, list_models, model_entrypoint

    bare = name.split(".")[0]
    if not is_model(bare):
        meant = suggestion(bare, list_models(["beit_*", "beitv2_*", "vit_*", "deit*", "eva*"]), prefix="timm/")
        hint = meant or "`timm.list_models('beit*')` lists them."
        raise StorageError(f"timm has no model '{name}'.", hint)
    if not is_beit_name(bare) and model_entrypoint(bare).__module__ not in _FAMILIES:
        raise UsageError(
            f"timm's '{name}' is no BEiT and no plain vision Transformer.",
            "Give timm/beit_..., timm/beitv2_..., timm/vit_..., timm/deit_... or timm/eva_...",
        )
    return bare


def _timm_repository(name: str) -> str:
    """Returns the hub repository of a timm model; the tag is optional.

    Raises:
        StorageError: timm has no such model or weights.
        UsageError: The model is not supported.
    """
    from timm.models import get_pretrained_cfg, list_models

    bare = timm_name(name)
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # it has no such tag
        cfg = None
    repo = getattr(cfg, "hf_hub_id", None)
    if cfg is None or not repo:
        weights = list_models(f"{bare}.*", pretrained=True)
        hint = f"It has: {', '.join(weights[:4])}." if weights else "Give a model that timm has weights of."
        raise StorageError(f"timm has no weights '{name}'.", hint)
    return repo if not repo.endswith("/") else f"{repo}{cfg.architecture}.{cfg.tag}"


def _nearest(reference: str, path: Path) -> str:
    near = nearest(path.name, [p.name for p in path.parent.glob("*")])
    if near:
        return f"Did you mean '{path.parent / near}'?"
    if reference.count("/") == 1 and path.parts[0] in _PUBLISHED:
        return f"For a model on the hub write hf://{reference}."
    if reference.startswith(("beit_", "beitv2_")):
        return f"For timm's write timm/{reference}."
    return "Give a run, a checkpoint, a file or folder of weights, hf://OWNER/NAME or timm/NAME."
