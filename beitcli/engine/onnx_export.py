"""Writes a model as an ONNX graph, and opens it with onnxruntime (extra `onnx`).

| kind | input | output |
|---|---|---|
| classifier | `pixel_values` (batch, 3, H, W), normalized | `logits` (batch, classes) |
| pretraining, backbone | the same | `last_hidden_state` (batch, L, D): class token and patches before any head |

The names are those of transformers' exporters. The batch is of any size; H and W are the model's, fp32. Sizes, class
names and preprocessing (timm's names) are in the file's own metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.storage.safe_json import dump_json, parse_json

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"  # beside a model of more bytes than one file can hold
_INPUT = "pixel_values"
_LARGEST = 2**31 - 2**24  # bytes of weights in one file: a protobuf message ends at 2 GiB
_PREPROCESSING = "preprocessing"


class _Features(nn.Module):
    """Gives what a backbone computes before any head, (B, L, D)."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone.forward_features(images)
        return features


def write_onnx(model: nn.Module, checkpoint: CheckpointHandle, path: Path, metadata: dict[str, Any]) -> None:
    """Writes a model, in evaluation mode on the CPU, to `path`; its weights beside it if one file cannot hold them.

    Args:
        model: A `Backbone`.
        metadata: Plain values by name, for the file's own metadata.

    Raises:
        OSError: It cannot be written.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from torch.nn.attention import SDPBackend, sdpa_kernel

    images = torch.zeros(2, 3, *checkpoint.architecture.image_size)  # of one image, the axis would be taken as fixed
    axes = ({0: "batch"},)
    traced = model if checkpoint.kind == "classifier" else _Features(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the strides of a fused kernel cannot be reshaped once traced
        batch = torch.export.Dim("batch")
        program = torch.export.export(traced, (images,), dynamic_shapes=({0: batch},), strict=False)
        made: Any = torch.onnx.export(
            program,
            input_names=[_INPUT],
            output_names=[output_name(checkpoint)],
            dynamic_shapes=axes,
            dynamo=True,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(made.model)  # which names files of this machine
    made.model.metadata_props.update(
        {name: value if isinstance(value, str) else dump_json(value) for name, value in metadata.items()}
    )
    made.save(path, external_data=not fits_one_file(model.state_dict()))


def output_name(checkpoint: CheckpointHandle) -> str:
    """Returns the name of the graph's output."""
    return "logits" if checkpoint.kind == "classifier" else "last_hidden_state"


def fits_one_file(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether these weights lie within the graph's own file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= _LARGEST


def open_onnx(path: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """Opens a written model with onnxruntime, on the CPU.

    Returns:
        Its function from images (B, 3, H, W) to the output, and the name of the reader. Of a batch, the first image
        is computed alone too, so that a fixed batch size cannot pass.
    """
    session = _session(path)
    import onnxruntime

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {_INPUT: images.numpy()})[0])

    def outputs(images: torch.Tensor) -> torch.Tensor:
        return torch.cat((run(images[:1]), run(images)[1:]))

    return outputs, f"onnxruntime {onnxruntime.__version__}"


def stated_preprocessing(path: Path) -> dict[str, Any]:
    """Returns the preprocessing in the file's metadata, by timm's names."""
    stated = parse_json(_session(path).get_modelmeta().custom_metadata_map[_PREPROCESSING])
    assert isinstance(stated, dict)  # as it was written
    return stated


def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # it warns of machines without a GPU
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
