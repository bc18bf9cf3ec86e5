"""What of a command line cannot do, told before torch is loaded, which takes seconds.

First paths that are not there and formats of `-o`, by names alone; then the kind of MODEL by its header
(`model_checks.py`), DATA by listing it (`data_checks.py`), and what outputs would replace (`output_checks.py`). Only
certain failures are looked for. The errors come from the functions that the engine calls later.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.cli.model_checks import check_models, model_words
from beitcli.config.data_formats import is_data_word
from beitcli.config.fields import settings_of
from beitcli.config.nearest import suggestion
from beitcli.errors import BeitError, StorageError, UsageError
from beitcli.tokenizers.pretrained import words

if TYPE_CHECKING:
    from beitcli.engine.events import OnEvent

_LOAD_TORCH = {
    *("pretrain", "finetune", "train-tokenizer", "eval", "export"),
    *("attn-map", "embed", "mask-preview", "predict", "tokenize"),
}
_KINDS = {"DATA": "data", "INPUT": "data", "IMAGE": "data", "MODEL": "model", "REF": "model", "TOKENIZER": "model"}


def check_command(config: Any, on_event: OnEvent) -> None:
    """Raises the engine's error for what cannot do: a path, a model of another kind, data without labels, an output.

    Args:
        config: Of any command.
        on_event: Receives the progress of listing DATA.
    """
    _require_model_first(config)
    _check_names(config)
    if config.command not in _LOAD_TORCH or _is_light(config):
        return
    from beitcli.cli.data_checks import check_data
    from beitcli.cli.output_checks import check_outputs

    model = check_models(config)
    check_outputs(config, check_data(config, model, on_event))


def hold_resumed(config: Any) -> object:
    """Locks the run that a command goes on with, and returns the lock: while torch is loaded the run is `running`.

    Raises:
        UsageError: Another process works on it.
    """
    out = getattr(config, "out", None)  # of a training
    if not out or not config.resume or config.dry_run or not os.path.isfile(os.path.join(out, "config.toml")):
        return None
    from beitcli.runtime.storage.run_dir import hold_run

    return hold_run(Path(out))


def _require_model_first(config: Any) -> None:
    """Raises UsageError where MODEL is data that is there, and the only DATA is a run."""
    arguments = [setting for setting in settings_of(type(config)).values() if setting.option.argument]
    if len(arguments) != 2 or arguments[0].option.metavar != "MODEL":
        return
    model, data = (getattr(config, setting.name) for setting in arguments)
    if len(data) != 1 or not os.path.isdir(os.path.join(data[0], "checkpoints")):
        return
    if model in model_words() or not (os.path.exists(model) or is_data_word(model)):
        return
    from beitcli.models.checkpoints.locate import names_a_model

    if not names_a_model(model):
        raise UsageError(f"'{model}' is no MODEL, and '{data[0]}' is a run.", "MODEL comes first: swap the two.")


def _is_light(config: Any) -> bool:
    """Whether it is `mask-preview` without a model: it starts as fast as what is looked at here."""
    return config.command == "mask-preview" and config.model is None and config.tokenizer is None


def _check_names(config: Any) -> None:
    """Raises the error for a missing model or data, an unknown format of -o, or a run folder that is in use."""
    named: dict[str, list[str]] = {"model": [], "data": []}
    for setting in settings_of(type(config)).values():
        kind = _KINDS.get(setting.option.metavar or "")
        value = getattr(config, setting.name)
        if kind and value:
            named[kind] += [value] if isinstance(value, str) else value
    if not (config.command == "finetune" and config.resume):  # a resumed run needs no --init
        _require_model(config, named)
        if config.command != "eval":  # whose MODELs may be DATA
            _refuse_images(named["model"])
    _require_format(config)
    if config.command == "attn-map" and config.model is None:
        from beitcli.engine.newest_run import newest_run

        newest_run()
    if getattr(config, "out", None) and not config.dry_run:  # of a training
        _require_out(Path(config.out), config.resume)
    if _reads_data(config):
        _require(named["data"], _look_for_data)


def _reads_data(config: Any) -> bool:
    """Whether the data of a command are images: to decode they are tokens, and statistics of masks need none."""
    decodes = config.command == "tokenize" and config.decode
    return not decodes and not (config.command == "mask-preview" and config.stats)


def _require_model(config: Any, named: dict[str, list[str]]) -> None:
    """Raises the error for a missing model; where the data is missing too, one that says both."""
    try:
        _require(named["model"], _look_for_model)
    except BeitError as error:
        try:
            if _reads_data(config):
                _require(named["data"], _look_for_data)
        except BeitError as other:
            hint = "\n  ".join(filter(None, dict.fromkeys((error.hint, other.hint))))
            raise type(error)(f"{error.message} And: {other.message}", hint) from None
        raise


def _require_format(config: Any) -> None:
    setting, output = settings_of(type(config)).get("output"), getattr(config, "output", None)
    suffixes = setting.option.suffixes if setting is not None else ()
    if config.command == "mask-preview" and not config.animate:
        suffixes = tuple(suffix for suffix in suffixes if suffix != ".gif")
    if not output or not suffixes or output.lower().endswith(suffixes) or config.command == "embed":
        return
    if config.command == "tokenize":
        if output != "-" and not config.decode and not config.stats:
            from beitcli.engine.io.token_files import require_known_suffix

            require_known_suffix(Path(output))
    elif output != "-" or config.command == "attn-map":
        from beitcli.engine.io.outputs import require_known_format

        require_known_format(output, suffixes)


def _require(references: Iterable[str], look: Callable[[str], object]) -> None:
    reserved = model_words()
    for reference in (each.partition("@random")[0] or each for each in references):
        remote = reference.startswith(("hf://", "timm/", "~"))
        several = glob.has_magic(reference) or "{" in reference
        if remote or several or reference in reserved or os.path.exists(reference) or is_data_word(reference):
            continue
        look(reference)


def _refuse_images(models: Iterable[str]) -> None:
    """Raises StorageError, as the reader of weights does, for an image in the place of a model."""
    for reference in filter(os.path.isfile, models):
        from beitcli.runtime.weight_files.file_sniffing import HEAD_BYTES, sniff_magic

        with suppress(OSError), open(reference, "rb") as file:
            known = sniff_magic(file.read(HEAD_BYTES))
            if known is not None and known[0].endswith(" image"):
                raise StorageError(f"'{reference}' {known[0]}.", known[1])


def _look_for_model(reference: str) -> None:
    from beitcli.models.checkpoints.locate import locate

    is_of_word = any(reference.startswith(word) for word in words())  # its tokenizer knows, once torch is imported
    if not is_of_word and not suggestion(reference.lower(), model_words()):
        locate(reference)


def _look_for_data(reference: str) -> None:
    from beitcli.data.sources.open_data import open_data
    from beitcli.models.checkpoints.locate import locate, names_a_model

    if names_a_model(reference):  # `eval` takes several MODELs
        locate(reference)
    open_data([reference])


def _require_out(path: Path, resume: bool) -> None:
    entries: list[str] = []
    with suppress(OSError):  # missing, or a file
        entries = os.listdir(path)
    occupied = any(not name.startswith(".") for name in entries)
    if os.path.isfile(path) or (occupied and not (resume and "config.toml" in entries)):
        from beitcli.runtime.storage.run_dir import RunFolder

        RunFolder.create(path, resume=resume)
    if not path.parent.is_dir():
        from beitcli.engine.io.output_paths import require_folder

        require_folder(path)
