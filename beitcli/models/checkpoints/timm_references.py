"""MODELs that are no BEiT, and shapes without weights: how they are named, recognised and described.

timm/NAME[.TAG]                    weights of timm's hub repositories, or a folder as timm writes it
timm/NAME@random[,KEY=VALUE...]    timm's model, nothing learned; arguments of timm.create_model; needs no network
MODEL@random                       the shape of any other MODEL, nothing learned
random                             BEiT-B/16 at 224 pixels, nothing learned
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.normalization import IMAGENET
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.config_readers import stated_in
from beitcli.models.checkpoints.key_mapping import read_layout
from beitcli.models.checkpoints.locate import is_beit_name, timm_name
from beitcli.models.checkpoints.metadata import IMAGENETS, Description, describe

Shapes = Mapping[str, tuple[int, ...]]


def unlearned(reference: str) -> str | None:
    """The MODEL whose shape `reference` asks for without its weights; None where it asks for weights."""
    base, mark, _ = reference.rpartition("@random")
    return base if mark and base and reference[len(base) :].split(",")[0] == "@random" else None


def arguments_in(reference: str) -> dict[str, Any]:
    """`KEY=VALUE` behind `@random`, values as JSON has them, other words as text.

    Raises:
        UsageError: Something else stands there.
    """
    found: dict[str, Any] = {}
    for part in reference.rpartition("@random")[2].split(",")[1:]:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"'{part}' in '{reference}' is no argument.", "Write it as timm/NAME@random,patch_size=8,depth=6."
            )
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return found


def shape_only(description: Description) -> Description:
    """The same shape, nothing learned: no head and no classes."""
    plain = {name: getattr(description, name) for name in ("architecture", "parameters", "pooling", "normalization")}
    return Description(
        kind="backbone", outputs=0, classes=(), names_classes=True, crop_share=description.crop_share, **plain
    )


def describe_random() -> Description:
    """`random`."""
    return Description(
        kind="backbone",
        architecture=Architecture(),
        parameters=0,
        outputs=0,
        classes=(),
        names_classes=True,
        pooling="mean",
        normalization=IMAGENET,
        crop_share=None,
    )


def describe_timm_random(reference: str) -> Description:
    """`timm/NAME@random`; timm's BEiTs are ours.

    Raises:
        UsageError: timm has no such model or argument.
    """
    from timm import create_model
    from timm.models import get_pretrained_cfg
    from torch import device

    base = unlearned(reference) or ""
    name, arguments = timm_name(base.removeprefix("timm/")), arguments_in(reference)
    cfg = get_pretrained_cfg(name)
    plain = {"mean": cfg.mean, "std": cfg.std, "crop_pct": cfg.crop_pct} if cfg else {}
    settings = {"architecture": name, "model_args": arguments, "pretrained_cfg": plain}
    if not is_beit_name(name):
        return shape_only(describe_foreign(settings, {}, reference))
    with device("meta"):
        model = create_model(name, **arguments)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return shape_only(describe(read_layout(shapes, reference), shapes, stated_in(settings, {}, {}), reference))


def is_foreign(settings: Mapping[str, Any]) -> bool:
    """Whether timm's config.json is of a vision Transformer that is no BEiT."""
    name = settings.get("architecture")
    return isinstance(name, str) and not is_beit_name(name)


def describe_foreign(settings: Mapping[str, Any], shapes: Shapes, reference: str) -> Description:
    """A timm model by its config.json, and by its tensors where there are any.

    Args:
        settings: timm's: architecture, model_args, pretrained_cfg, num_classes, label_names.

    Raises:
        StorageError: The settings cannot be read.
        UsageError: It is no plain vision Transformer of timm's.
    """
    from beitcli.models.networks.timm_vit import architecture_of

    name = timm_name(settings["architecture"])
    try:
        arguments = dict(settings.get("model_args") or {})
        stated = stated_in(settings, {}, {})
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"The config.json of '{reference}' cannot be read ({error}).", "Download it again."
        ) from None
    size = arguments.get("img_size")
    pair = None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    architecture = architecture_of(name, arguments, pair or stated.image_size)
    outputs = shapes["head.weight"][0] if "head.weight" in shapes else 0
    classes = stated.classes if len(stated.classes) == outputs else ()
    assumed = [] if stated.normalization else ["images normalised by ImageNet mean and std"]
    if outputs and not classes:
        known = IMAGENETS.get(outputs)
        assumed.append(f"the classes of {known}, in its order" if known else "classes are named by their numbers")
    return Description(
        kind="classifier" if outputs else "backbone",
        architecture=architecture,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        outputs=outputs,
        classes=classes or tuple(map(str, range(outputs))),
        names_classes=bool(classes) or not outputs,
        pooling="token" if arguments.get("global_pool", "token") == "token" else "mean",
        normalization=stated.normalization or IMAGENET,
        crop_share=stated.crop_share,
        assumed=tuple(assumed),
    )
