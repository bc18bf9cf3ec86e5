"""Where a MODEL's files are: a run, a checkpoint, a folder or file of anyone's, the hub, timm. Needs no torch.

runs/mine   runs/mine/checkpoints/step-0000500   beit_base.pth   folder/   hf://OWNER/NAME   timm/NAME
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.key_mapping import Layout
from beitcli.runtime.storage.safe_json import parse_json

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.runtime.weight_files.reader import WeightFile

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors", "model.pth", "checkpoint.pth")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt")
_FAMILIES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")  # of ViT and EVA alone
_PUBLISHED = ("beit", "dit_", "microsoft", "facebook")


@dataclass(frozen=True)
class Located:
    """The files of a model.

    Attributes:
        weights: The file of tensors.
        settings: config.json beside it, or nothing.
        preprocessing: Hugging Face's preprocessor_config.json beside it, or nothing.
        source: What kind of thing the reference named.
    """

    reference: str
    weights: Path
    source: Literal["path", "hub", "timm"]
    settings: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether this program wrote the folder."""
        return "beit" in self.settings


def names_a_model(reference: str) -> bool:
    """Whether a reference is a MODEL by its form or by what lies there; no file is opened, nothing downloaded.

    `random`, timm/..., hf://OWNER/NAME, MODEL@random; a file of weights; a folder with weights, with checkpoints, or
    with a run's config.toml. A folder of images or of shards is none.
    """
    path = Path(reference)
    if path.is_dir():
        return any((path / name).exists() for name in (*WEIGHTS, "checkpoints", "config.toml"))
    if reference.startswith("hf://"):
        return not reference.startswith("hf://datasets/")
    named = reference == "random" or reference.startswith("timm/") or "@random" in reference
    return path.suffix.lower() in _SUFFIXES or (named and not path.exists())


def locate(reference: str, on_progress: OnProgress | None = None) -> Located:
    """Finds, and downloads where it must.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: What is there holds no weights, or cannot be had.
    """
    if reference.startswith("hf://"):
        repo, _, revision = reference.removeprefix("hf://").partition("@")
        return _on_hub(reference, repo, revision or None, "hub", on_progress)
    if not reference:
        raise UsageError("The model's name is empty.", "Give a run, a file or folder of weights, or hf://OWNER/NAME.")
    path = Path(reference)
    if reference.startswith("timm/") and not path.exists():
        return _on_hub(reference, _timm_repository(reference.removeprefix("timm/")), None, "timm", on_progress)
    if not path.exists():
        raise UsageError(f"There is no model at '{reference}'.", _nearest(reference, path))
    return _in_folder(reference, path) if path.is_dir() else _file(reference, path)


def format_of(layout: Layout, header: WeightFile, located: Located) -> str:
    """Whose layout it is; the release's and timm's differ in their container and what lies beside."""
    if located.is_ours:
        return "beit"
    if layout.naming != "beit":
        return layout.naming
    if "architecture" in located.settings or located.source == "timm":
        return "timm"
    released = header.container == "torch" or any(part[0].startswith("lm_head.") for part in layout.parts.values())
    return "official" if released else "timm"


def newest_step(run: Path) -> Path | None:
    """The newest checkpoint folder of a run, by its number; not verified."""
    folder = run if run.name == "checkpoints" else run / "checkpoints"
    steps = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and (p / "model.safetensors").is_file()]
    return max(steps, key=lambda p: int(p.name[5:]), default=None)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no such file.

    Raises:
        StorageError: It is something else.
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


def _file(reference: str, path: Path) -> Located:
    # A file of another name may lie among others, and the config.json be theirs.
    own = path.name in WEIGHTS or _weights_in(path.parent) == [path]
    settings = read_settings(path.parent / "config.json") if own else {}
    preprocessing = read_settings(path.parent / "preprocessor_config.json") if own else {}
    return Located(reference, path, "path", settings, preprocessing)


def _weights_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix in _SUFFIXES and p.is_file()]


def _in_folder(reference: str, path: Path) -> Located:
    for name in WEIGHTS:
        if (path / name).is_file():
            return _file(reference, path / name)
    step = newest_step(path)
    if step is not None:
        return _file(reference, step / "model.safetensors")
    single = _weights_in(path)
    if len(single) == 1:
        return _file(reference, single[0])
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
    raise StorageError(
        f"'{reference}' holds no checkpoint and no weights.", f"Give a run, or a folder with {WEIGHTS[0]}."
    )


def _on_hub(
    reference: str, repo: str, revision: str | None, source: Literal["hub", "timm"], on_progress: OnProgress | None
) -> Located:
    from beitcli.runtime.hub.client import fetch  # imports the hub's client

    config = fetch(repo, ["config.json"], revision=revision, optional=True)
    preprocessing = fetch(repo, ["preprocessor_config.json"], revision=revision, optional=True)
    weights = fetch(repo, WEIGHTS, on_progress=on_progress, revision=revision)
    assert weights is not None  # not optional
    return Located(
        reference,
        weights,
        source,
        read_settings(config) if config else {},
        read_settings(preprocessing) if preprocessing else {},
    )


def is_beit_name(name: str) -> bool:
    """Whether a timm model is a BEiT by its name."""
    return name.startswith(("beit_", "beitv2_"))


def timm_name(name: str) -> str:
    """The architecture of a timm model, its tag off.

    Raises:
        UsageError: timm has no such model, or it is no vision Transformer that opens here.
    """
    from timm.models import is_model, list_models, model_entrypoint

    bare = name.split(".")[0]
    if not is_model(bare):
        near = difflib.get_close_matches(bare, list_models(["beit_*", "beitv2_*", "vit_*", "deit*", "eva*"]), n=1)
        hint = f"Did you mean 'timm/{near[0]}'?" if near else "`timm.list_models('beit*')` lists them."
        raise UsageError(f"timm has no model '{name}'.", hint)
    if not is_beit_name(bare) and model_entrypoint(bare).__module__ not in _FAMILIES:
        raise UsageError(
            f"timm's '{name}' is no BEiT and no plain vision Transformer.",
            "Give timm/beit_..., timm/beitv2_..., timm/vit_..., timm/deit_... or timm/eva_...",
        )
    return bare


def _timm_repository(name: str) -> str:
    """The hub repository of a timm model; its tag may be left out.

    Raises:
        UsageError: timm has no such weights, or they are none that open here.
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
        raise UsageError(f"timm has no weights '{name}'.", hint)
    return repo if not repo.endswith("/") else f"{repo}{cfg.architecture}.{cfg.tag}"


def _nearest(reference: str, path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
    if near:
        return f"Did you mean '{path.parent / near[0]}'?"
    if reference.count("/") == 1 and path.parts[0] in _PUBLISHED:
        return f"For a model on the hub write hf://{reference}."
    if reference.startswith(("beit_", "beitv2_")):
        return f"For timm's write timm/{reference}."
    return "Give a run, a checkpoint, a file or folder of weights, hf://OWNER/NAME or timm/NAME."
