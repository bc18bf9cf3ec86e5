"""Targets: weights files of every container, the configs beside them, checkpoints and tokenizers."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import suppress
from pathlib import Path

from fuzz_readers.mutators import json_mutation, safetensors_mutation, zip_mutation
from fuzz_readers.target import Place, Prepared, Target


def describe(reference: str) -> None:
    """Reads all that `beit inspect` shows."""
    from beitcli.config.inspect_export import InspectConfig
    from beitcli.engine.inspect import inspect

    inspect(InspectConfig(ref=reference, tensors=True))


def _safetensors(place: Place) -> Prepared:
    import torch
    from safetensors.torch import save

    path = place.folder / "weights.safetensors"
    few = {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2), "cls_token": torch.zeros(1, 1, 4)}
    seeds = [save(few, {"format": "pt"}), save({"x": torch.zeros(2, dtype=torch.bfloat16)})]
    small = (place.models / "hf" / "model.safetensors").read_bytes()
    head = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    names = {name: {"dtype": "F32", "shape": each["shape"]} for name, each in head.items() if name != "__metadata__"}

    def use(data: bytes) -> None:
        from beitcli.errors import BeitError
        from beitcli.runtime.weight_files.reader import read_header, read_tensors

        path.write_bytes(data)
        for read in (read_header, read_tensors):
            with suppress(BeitError):
                read(path)
        describe(str(path))

    shapes = {name: each | {"data_offsets": [0, 0], "shape": [*each["shape"][1:], 0]} for name, each in names.items()}
    empty = json.dumps(shapes).encode()
    return Prepared(use, [*seeds, len(empty).to_bytes(8, "little") + empty], safetensors_mutation)


def _torch_file(place: Place) -> Prepared:
    import argparse
    from collections import OrderedDict

    import numpy as np
    import torch

    path = place.folder / "model.pth"
    tensors = OrderedDict({"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2), "cls_token": torch.zeros(1, 1, 4)})
    contents = [
        {"model": tensors, "epoch": 3, "args": argparse.Namespace(model="beit", drop=0.1)},
        {"state_dict": {f"backbone.{name}": each for name, each in tensors.items()}, "meta": {"config": "x = 1"}},
        {"model": tensors, "best": np.float64(0.5), "place": Path("x")},
        torch.nn.Linear(2, 2),
    ]
    seeds = []
    for content in contents:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            seeds.append(file.getvalue())

    def use(data: bytes) -> None:
        from beitcli.errors import BeitError
        from beitcli.runtime.weight_files.reader import read_header, read_tensors
        from beitcli.tokenizers.legacy_pickle import read_pickled

        path.write_bytes(data)
        for read in (read_header, read_tensors, read_pickled):
            with suppress(BeitError):
                read(path)
        describe(str(path))

    return Prepared(use, seeds, zip_mutation)


def _beside(place: Place, kind: str, name: str) -> Prepared:
    """A config beside the weights of a small model."""
    folder = shutil.copytree(place.models / kind, place.folder / kind)
    path = folder / name

    def use(data: bytes) -> None:
        path.write_bytes(data)
        describe(str(folder))

    return Prepared(use, [(place.models / kind / name).read_bytes()], json_mutation)


def _opened(place: Place, kind: str, name: str) -> Prepared:
    """The same, and the network is built and its weights are loaded."""
    from beitcli.models.checkpoints.build import open_classifier

    prepared = _beside(place, kind, name)

    def use(data: bytes) -> None:
        (place.folder / kind / name).write_bytes(data)
        open_classifier(str(place.folder / kind))

    return Prepared(use, prepared.seeds, json_mutation)


def sign(checkpoint: Path) -> None:
    from beitcli.runtime.storage.hashing import sha256_of

    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "SHA256SUMS")
    (checkpoint / "SHA256SUMS").write_text("".join(f"{sha256_of(checkpoint / name)}  {name}\n" for name in names))


def own_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def _own(place: Place, kind: str) -> Prepared:
    """config.json of a checkpoint of this program, with its hash made right."""
    run = shutil.copytree(place.models / kind, place.folder / kind)
    checkpoint = own_checkpoint(run)
    content = (checkpoint / "config.json").read_bytes()

    def use(data: bytes) -> None:
        from beitcli.errors import BeitError
        from beitcli.models.checkpoints.build import open_classifier, open_masked_image_model
        from beitcli.tokenizers.open import open_tokenizer

        (checkpoint / "config.json").write_bytes(data)
        sign(checkpoint)
        with suppress(BeitError):
            describe(str(run))
        {"pretrained": open_masked_image_model, "finetuned": open_classifier}.get(kind, open_tokenizer)(str(run))

    return Prepared(use, [content], json_mutation)


def _trainer_state(place: Place) -> Prepared:
    from beitcli.engine.trainer.trainer_state import stored_progress
    from beitcli.runtime.storage.checkpoint import CheckpointFolder

    source = own_checkpoint(place.models / "pretrained")
    folder = place.folder / source.name
    folder.mkdir()

    def use(data: bytes) -> None:
        (folder / "trainer.json").write_bytes(data)
        stored_progress(CheckpointFolder(folder))

    return Prepared(use, [(source / "trainer.json").read_bytes()], json_mutation)


def _sums(place: Place) -> Prepared:
    from beitcli.runtime.storage.checkpoint import damage

    source = own_checkpoint(place.models / "pretrained")
    folder = shutil.copytree(source, place.folder / source.name)

    def use(data: bytes) -> None:
        (folder / "SHA256SUMS").write_bytes(data)
        assert isinstance(damage(folder, weights_only=True), str)

    return Prepared(use, [(source / "SHA256SUMS").read_bytes()])


def _foreign_folder(place: Place) -> Prepared:
    """Files by which other programs name their newest weights; the first byte chooses which."""
    folder = place.folder / "foreign"
    folder.mkdir()
    (folder / "checkpoint-5").mkdir()
    names = ("last_checkpoint", "latest", "adapter_config.json")

    def use(data: bytes) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        (folder / names[data[0] % 3 if data else 0]).write_bytes(data[1:])
        describe(str(folder))

    return Prepared(use, [b"\0iter_5.pth\n", b"\1global_step5", b'\2{"base_model_name_or_path": "x"}'])


TARGETS = [
    Target("safetensors", "safetensors: header and tensors", _safetensors),
    Target("torch", "torch zip and legacy files, through the guarded unpickler", _torch_file),
    Target("config hf", "config.json of transformers", lambda place: _beside(place, "hf", "config.json")),
    Target("processor", "preprocessor_config.json", lambda place: _beside(place, "hf", "preprocessor_config.json")),
    Target("config timm", "config.json of timm", lambda place: _beside(place, "timm", "config.json")),
    Target(
        "network hf", "config.json of transformers, network built", lambda place: _opened(place, "hf", "config.json")
    ),
    Target("checkpoint", "config.json of a pretraining run", lambda place: _own(place, "pretrained")),
    Target("classifier", "config.json of a finetuned run", lambda place: _own(place, "finetuned")),
    Target("tokenizer", "config.json of a tokenizer's run", lambda place: _own(place, "tokenizer")),
    Target("trainer.json", "trainer.json of a checkpoint", _trainer_state),
    Target("SHA256SUMS", "hashes of a checkpoint", _sums, 2048),
    Target("foreign folder", "last_checkpoint, latest, adapter_config.json", _foreign_folder, 8192),
]
