"""Resolves references to timm models, and to architectures with random weights (`@random`).

timm/NAME[.TAG]                    weights from timm's hub repositories, or a folder in timm's format
timm/NAME@random[,KEY=VALUE...]    a timm model, random weights; arguments of timm.create_model; works offline
MODEL@random                       the architecture of any other MODEL, random weights
random                             BEiT-B/16 at 224 pixels, random weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beitcli.config.architecture import Architecture, Pooling
from beitcli.config.normalization import Normalization
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.config_readers import DeclaredConfig
from beitcli.models.checkpoints.locate import is_beit_name, timm_name
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.runtime.storage.safe_json import parse_json

Shapes = Mapping[str, tuple[int, ...]]


def random_init_base(reference: str) -> str | None:
    """Returns MODEL of a reference `MODEL@random...`; None for other references."""
    base, mark, _ = reference.rpartition("@random")
    return base if mark and base and reference[len(base) :].split(",")[0] == "@random" else None


def arguments_in(reference: str) -> dict[str, Any]:
    """Parses the `KEY=VALUE` list after `@random`; values are JSON, anything else is a string.

    Raises:
        UsageError: The list has another form.
    """
    found: dict[str, Any] = {}
    for part in reference.rpartition("@random")[2].split(",")[1:]:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"'{part}' in '{reference}' is no argument.", "Write it as timm/NAME@random,patch_size=8,depth=6."
            )
        try:
            found[key] = parse_json(value)
        except ValueError:
            found[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return found


def timm_random_config(reference: str, base: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Returns a config.json as timm writes it for `timm/NAME@random`, and, for a BEiT, the shapes of the state dict.

    Args:
        base: `timm/NAME`.

    Raises:
        UsageError: timm has no such model or argument.
    """
    from timm import create_model
    from timm.models import get_pretrained_cfg

    name, arguments = timm_name(base.removeprefix("timm/")), arguments_in(reference)
    cfg = get_pretrained_cfg(name)
    names = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    plain = {name: getattr(cfg, name) for name in names} if cfg else {}
    config = {"architecture": name, "model_args": arguments, "pretrained_cfg": plain}
    if not is_beit_name(name):
        return config, {}
    with meta_device():
        model = create_model(name, **arguments)
    return config, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def timm_model_of(config: Mapping[str, Any], reference: str) -> tuple[str, dict[str, Any]] | None:
    """Returns name and arguments of the model in timm's config.json, or in this program's for a task's head over it.

    None for a BEiT and for other config files.

    Raises:
        StorageError: The arguments cannot be read.
        UsageError: It is not a plain vision Transformer of timm.
    """
    stated = _stated_model(config)
    if stated is None:
        return None
    name, arguments = timm_name(stated[0]), stated[1]
    try:
        return name, dict(arguments or {})
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"The config.json of '{reference}' cannot be read ({error}).", "Download it again."
        ) from None


def names_timm_model(config: Mapping[str, Any]) -> bool:
    """Whether config.json names a model of timm that is no BEiT, so that `timm_model_of` imports timm."""
    return _stated_model(config) is not None


def _stated_model(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    name, arguments = config.get("architecture"), config.get("model_args")
    ours = config.get("beit")
    shape = ours.get("architecture") if isinstance(ours, Mapping) and ours.get("kind") != "tokenizer" else None
    if name is None and isinstance(shape, Mapping):
        name, arguments = shape.get("name"), shape.get("arguments")
    return None if not isinstance(name, str) or is_beit_name(name) else (name, arguments)


def timm_normalization(name: str) -> Normalization | None:
    """Returns the normalization of timm's default weights of a model; None if timm has none."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    return (tuple(cfg.mean), tuple(cfg.std)) if cfg else None


def timm_architecture(name: str, arguments: dict[str, Any], declared: DeclaredConfig) -> tuple[Architecture, Pooling]:
    """Returns architecture and pooling of a timm model.

    Raises:
        UsageError: timm has no such model or argument.
    """
    from beitcli.models.networks.timm_vit import architecture_of

    size = arguments.get("img_size")
    pair = None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pooling: Pooling = "token" if arguments.get("global_pool", "token") == "token" else "mean"
    return architecture_of(name, arguments, pair or declared.image_size), pooling


def heads_of_timm_model(name: str, width: int) -> int | None:
    """Returns the number of heads of a vision Transformer of timm; None if there is none of this name and width."""
    try:
        architecture, _ = timm_architecture(timm_name(name), {}, DeclaredConfig())
    except (StorageError, UsageError):
        return None
    return architecture.heads if architecture.width == width else None


def check_vit_shapes(
    architecture: Architecture, outputs: int, shapes: Shapes, origin: str, *, has_task_head: bool
) -> None:
    """Compares the tensors of a vision Transformer with those of timm's.

    Args:
        outputs: Number of classes; 0 without a head.
        shapes: Shapes by timm's keys.
        has_task_head: Whether a segmentation or detection head takes the place of what timm has after the blocks.

    Raises:
        StorageError: A tensor is missing, has another shape, or no place.
    """

    from beitcli.models.networks.timm_vit import AFTER_BLOCKS, TimmArchitecture, create_of

    assert isinstance(architecture, TimmArchitecture)
    with meta_device():
        model = create_of(architecture, outputs)
    due = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if has_task_head:
        due = {name: shape for name, shape in due.items() if name in shapes or not name.startswith(AFTER_BLOCKS)}
    faults = [f"lacks {name}" for name in due if name not in shapes]
    faults += [f"has {name}, which has no place there" for name in shapes if name not in due]
    faults += [
        f"has {name} of {' x '.join(map(str, shapes[name]))}, where {' x '.join(map(str, shape))} is due"
        for name, shape in due.items()
        if shapes.get(name, shape) != shape
    ]
    if faults:
        more = f" ({len(faults)} such faults in all)" if len(faults) > 1 else ""
        raise StorageError(
            f"'{origin}' {faults[0]}{more}.", "Check that it is a whole vision Transformer; download it again."
        )
