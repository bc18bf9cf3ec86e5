"""Reads the config of a checkpoint: ours, Hugging Face's, timm's, or the `args` and `meta` inside a `.pth` file.

Imports no torch. The kind of a checkpoint is derived from its tensors (`key_mapping.py`, `metadata.py`), not from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from beitcli.config.architecture import Pooling
from beitcli.config.eval_crop import RELEASED_CROP, EvalCrop, crop_of
from beitcli.config.normalization import IMAGENET, INCEPTION, Normalization
from beitcli.config.problem import Problem, problem_named
from beitcli.config.resizing import Resizing
from beitcli.errors import StorageError
from beitcli.models.checkpoints.hf_preprocessing import hf_crop, hf_normalization
from beitcli.models.checkpoints.mmseg_config import of_mmseg
from beitcli.models.checkpoints.segmenter_settings import NOTHING_DECLARED, DeclaredSegmenter, of_run, of_transformers
from beitcli.runtime.weight_files.file_sniffing import one_line

HF_NORM_EPS = 1e-12  # of the norms of transformers' BEiT, where its config does not say it
_NAMED_HEADS = {"beit_base": 12, "beit_large": 16, "beitv2_base": 12, "beitv2_large": 16}  # by prefix of the model name
_CHOICES = {"token_filter": ("lanczos", "bicubic"), "resize_positions": get_args(Resizing)}  # values in our section


@dataclass(frozen=True, kw_only=True)
class DeclaredConfig:
    """Values declared by the config files; None if not declared.

    Attributes:
        image_size: (H, W) in pixels.
        classes: Class names in the order of the outputs.
        norm_eps: Epsilon of every LayerNorm.
        problem: What the outputs of a classifier mean.
        head: Name of the segmentation or detection head.
        normalization: Mean and standard deviation, three channels each, of images in [0, 1].
        default_normalization: What the library takes for such a model where its config does not say it.
        crop: Resizing and cropping in evaluation.
        aggregate_after: Number of the block, from 1, whose patches are aggregated.
        segmenter: What only segmenters have.
    """

    heads: int | None = None
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    normalization: Normalization | None = None
    default_normalization: Normalization | None = None
    crop: EvalCrop = RELEASED_CROP
    pooling: Pooling | None = None
    norm_eps: float | None = None
    layer_scale: float | None = None
    problem: Problem | None = None
    head: str | None = None
    aggregate_after: int | None = None
    segmenter: DeclaredSegmenter = NOTHING_DECLARED


def read_config(
    config: Mapping[str, Any], preprocessing: Mapping[str, Any], about: Mapping[str, Any]
) -> DeclaredConfig:
    """Reads the config in whichever format it is.

    Args:
        config: config.json; empty if there is none.
        preprocessing: Hugging Face's preprocessor_config.json; empty if there is none.
        about: Plain values inside the weights file, such as `args` and `meta`.

    Raises:
        StorageError: A value is invalid or not supported.
    """
    try:
        if "beit" in config:
            return _checked(_ours(config["beit"]))
        if "architecture" in config:
            return _checked(_timm(config))
        config = _of_backbone(config)
        if "model_type" in config or "hidden_size" in config:
            return _checked(_hf(config, preprocessing))
        return _checked(_official(about))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StorageError(
            f"The settings beside the weights cannot be read ({type(error).__name__}: {one_line(str(error))}).",
            "Download config.json again, or give the weights file by itself.",
        ) from None


def _of_backbone(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a config of transformers that is the backbone's, as in DPT, ZoeDepth and encoder-decoders."""
    for part in ("backbone_config", "encoder", "vision_config"):
        inner = config.get(part)
        if isinstance(inner, Mapping) and inner.get("model_type") in ("beit", "data2vec-vision"):
            return inner
    return config


def _checked(declared: DeclaredConfig) -> DeclaredConfig:
    """Returns `declared` if all values are in range. Raises ValueError."""
    channels = [value for values in declared.normalization or () for value in values]
    if declared.normalization and [len(values) for values in declared.normalization] != [3, 3]:
        raise ValueError("a mean and a standard deviation of three channels are needed")
    for name, value, least, greatest in (
        *(("image size", side, 1, 100_000) for side in declared.image_size or ()),
        *(("mean or standard deviation", value, -1e3, 1e3) for value in channels),
        *(("standard deviation", value, 1e-6, 1e3) for value in (declared.normalization or ((), ()))[1]),
        ("share of the crop", declared.crop.crop_pct, 0.01, 1),
        ("epsilon of the norms", declared.norm_eps, 0, 1),
        ("LayerScale", declared.layer_scale, -1e6, 1e6),
        ("block of patch aggregation", declared.aggregate_after, 1, 100_000),
    ):
        if value is not None and (isinstance(value, bool) or not least <= value <= greatest):
            raise ValueError(f"{name} {value!r}")
    if not all(isinstance(name, str) for name in declared.classes):
        raise ValueError("names of classes that are no text")
    if declared.pooling not in (None, "mean", "token"):
        raise ValueError(f"pooling {declared.pooling!r}")
    if not isinstance(declared.head, str | None):
        raise ValueError(f"head {declared.head!r}")
    return declared


def check_section(section: Mapping[str, Any], origin: str) -> None:
    """Checks the types of the values in the `beit` section of this program's config.json.

    Raises:
        StorageError: A value has the wrong type, as after editing by hand.
    """
    if not isinstance(section, Mapping):
        raise _edited(origin, "beit", section)
    masking, tokenizer = (section.get(name) or {} for name in ("masking", "tokenizer"))
    kinds: list[tuple[str, Any, type | tuple[type, ...]]] = [
        ("architecture", section.get("architecture"), Mapping),
        ("masking", masking, Mapping),
        ("tokenizer", tokenizer, Mapping),
        *((name, section.get(name, ""), str) for name in ("device", "precision", "target")),
    ]
    if isinstance(masking, Mapping) and masking:
        kinds += [(name, masking.get(name), int) for name in ("num_masked", "min_block", "seed")]
        kinds += [("name", masking.get("name"), str)]
    if isinstance(tokenizer, Mapping) and tokenizer:
        kinds += [(name, tokenizer.get(name), str) for name in ("reference", "sha256")]
    for name, value, kind in kinds:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _edited(origin, name, value)
    for name, values in _CHOICES.items():
        if name in section and section[name] not in values:
            raise _edited(origin, name, section[name])


def _edited(origin: str, name: str, value: Any) -> StorageError:
    return StorageError(
        f"config.json of '{origin}' has {one_line(repr(value))} for {name}.", "Take another checkpoint of the run."
    )


def _heads(value: Any, model: str = "") -> int | None:
    if value is None:
        return next((heads for name, heads in _NAMED_HEADS.items() if model.startswith(name)), None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} heads")
    return value


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int | float) else (int(size[0]), int(size[1]))


def _ours(settings: Mapping[str, Any]) -> DeclaredConfig:
    shape = settings["architecture"]
    return DeclaredConfig(
        heads=_heads(shape["heads"]),
        image_size=_pair(shape["image_size"]),
        classes=tuple(settings.get("classes", ())),
        normalization=(tuple(settings["mean"]), tuple(settings["std"])),
        crop=crop_of(settings, "crop_share"),
        pooling=settings.get("pooling"),
        norm_eps=shape["norm_eps"],
        layer_scale=shape["layer_scale"],
        problem=problem_named(settings.get("problem")),
        head=settings.get("head"),
        aggregate_after=(settings.get("aggregation") or {}).get("after"),
        segmenter=of_run(settings),
    )


def _hf(settings: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> DeclaredConfig:
    if settings.get("hidden_act", "gelu") != "gelu":
        raise StorageError(f"The model uses {settings['hidden_act']}, BEiT GELU.", "Give a BEiT.")
    labels = {int(number): str(label) for number, label in (settings.get("id2label") or {}).items()}
    names = tuple(labels[number] for number in sorted(labels))
    return DeclaredConfig(
        heads=_heads(settings.get("num_attention_heads")),
        image_size=_pair(settings["image_size"]) if "image_size" in settings else None,
        classes=() if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names,
        normalization=hf_normalization(preprocessing),
        crop=hf_crop(preprocessing),
        pooling="mean" if settings.get("use_mean_pooling", True) else "token",
        norm_eps=float(settings.get("layer_norm_eps", HF_NORM_EPS)),
        layer_scale=settings.get("layer_scale_init_value"),
        problem=problem_named(settings.get("problem_type")),
        segmenter=of_transformers(settings, preprocessing),
    )


def _timm(settings: Mapping[str, Any]) -> DeclaredConfig:
    cfg = settings.get("pretrained_cfg") or settings
    arguments = settings.get("model_args") or {}
    size = arguments.get("img_size") or (cfg["input_size"][1:] if "input_size" in cfg else None)
    pool = arguments.get("global_pool") or settings.get("global_pool") or "avg"
    poolings: dict[str, Pooling] = {"avg": "mean", "token": "token"}
    return DeclaredConfig(
        heads=_heads(arguments.get("num_heads"), settings["architecture"]),
        image_size=_pair(size) if size else None,
        classes=tuple(map(str, settings.get("label_names") or cfg.get("label_names") or ())),
        normalization=(tuple(cfg["mean"]), tuple(cfg["std"])) if "mean" in cfg and "std" in cfg else None,
        default_normalization=_of_timm_beit(settings["architecture"]),
        crop=crop_of(cfg),
        pooling=poolings.get(pool),
        layer_scale=arguments.get("init_values") or None,
        problem=problem_named(settings.get("problem_type")),
    )


def _of_timm_beit(name: str) -> Normalization | None:
    """Returns the normalization of timm's weights of a BEiT, by its name; None for other models."""
    return IMAGENET if name.startswith("beitv2_") else INCEPTION if name.startswith("beit_") else None


def _official(about: Mapping[str, Any]) -> DeclaredConfig:
    args, written_by_mmseg = about.get("args") or {}, of_mmseg(about.get("meta") or {})
    default = args.get("imagenet_default_mean_and_std")
    normalization = written_by_mmseg.normalization
    if default is not None:
        normalization = IMAGENET if default else INCEPTION
    if "mean" in args and "std" in args:
        normalization = (tuple(args["mean"]), tuple(args["std"]))
    return DeclaredConfig(
        heads=_heads(args.get("num_heads"), str(args.get("model", ""))),
        image_size=_pair(args["input_size"]) if args.get("input_size") else None,
        classes=tuple(args.get("class_names") or written_by_mmseg.classes),
        normalization=normalization,
        crop=_crop_of_arguments(args),
        norm_eps=args.get("layer_norm_eps"),
        layer_scale=args.get("layer_scale_init_value"),
        problem=_problem_or_none(args.get("problem_type")),
        aggregate_after=args.get("early_layers"),
        segmenter=written_by_mmseg.segmenter,
    )


def _crop_of_arguments(args: Mapping[str, Any]) -> EvalCrop:
    """The crop of a training program's arguments, which may mean something else by these names."""
    try:
        return crop_of(args, "crop_share")
    except (ValueError, TypeError):
        return RELEASED_CROP


def _problem_or_none(name: object) -> Problem | None:
    try:
        return problem_named(name)
    except ValueError:
        return None
