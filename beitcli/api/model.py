"""`Model`: an opened MODEL with its preprocessing, for images that a Python program holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from beitcli.api.call import hints_as_notes, resolve_call
from beitcli.config.attn_map import AttnMapConfig
from beitcli.config.embed import EmbedConfig
from beitcli.config.predict import PredictConfig
from beitcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from beitcli.data.sources.memory import MemorySource
    from beitcli.models.checkpoints.handle import CheckpointHandle
    from beitcli.models.networks.beit import MaskedImageModel
    from beitcli.models.networks.classifier import ImageClassifier
    from beitcli.models.networks.timm_dense import AnyDetector, AnySegmenter
    from beitcli.runtime.compute.device import Compute

    Network = MaskedImageModel | ImageClassifier | AnySegmenter | AnyDetector

Images = Any
"""A path, a Pillow image, an array (H, W, 3), a tensor (3, H, W), a batch of one of these, or a list of any of these.

Arrays and tensors are uint8, or floats in [0, 1]; normalization is the model's own matter."""


class Model:
    """A model in evaluation mode: `embed`, `predict` and `attention` take images, a call takes prepared tensors.

    The three do what `beit embed`, `predict` and `attn-map` do, with the same crop, resampling and normalization, and
    give the same numbers as their `--json`. Anything else is asked of `network`: `model(images)`, `model.parameters()`
    and `model.architecture` are those of the module.

    Attributes:
        network: The torch module, whose class follows from the checkpoint.
        reference: The MODEL that it was opened from.
    """

    def __init__(self, network: Network, checkpoint: CheckpointHandle, compute: Compute) -> None:
        self.network, self.reference = network, checkpoint.reference
        self._checkpoint, self._compute = checkpoint, compute

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls the network: (B, 3, H, W) floats of `architecture.image_size`, normalized by `normalization`.

        A pretrained model takes a `mask` besides, (B, N) bool, True where a patch is hidden; without one nothing is.
        """
        return self.network(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("network", "_checkpoint", "_compute"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.network, name)

    def __repr__(self) -> str:
        return f"Model({self.reference!r}, {type(self.network).__name__}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._compute.device

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels, of images in [0, 1]."""
        return self._checkpoint.normalization

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty for a model that was not finetuned."""
        return self._checkpoint.classes

    def to(self, device: str | torch.device) -> Model:
        """Moves the weights, in place."""
        from dataclasses import replace

        import torch

        self._compute = replace(self._compute, device=torch.device(device))
        self.network.to(self._compute.device)
        if "_backbone" in self.__dict__:
            self._backbone.to(self._compute.device)
        return self

    def eval(self) -> Model:
        """Sets evaluation mode, in which it is opened."""
        self.network.eval()
        return self

    def train(self, mode: bool = True) -> Model:
        """Sets the network's training mode; `embed`, `predict` and `attention` are of use in evaluation mode."""
        self.network.train(mode)
        return self

    @cached_property
    def _backbone(self) -> ImageClassifier:
        """The network in the layout that features and attention are read from, with its own weights if it is another.

        Only a classifier has it already.
        """
        from beitcli.models.checkpoints.build import backbone_of
        from beitcli.models.networks.classifier import Classifier
        from beitcli.models.networks.timm_vit import TimmViT

        if isinstance(self.network, Classifier | TimmViT):
            return self.network
        return backbone_of(self._checkpoint)[0].to(self.device)

    def _source(self, images: Images) -> MemorySource:
        """Returns the images, gray of more than 8 bits in the range that the model was trained with."""
        from beitcli.config.intensity import parse_intensity
        from beitcli.data.sources.memory import MemorySource

        source, stored = MemorySource(images), self._checkpoint.settings.get("intensity_range")
        source.use_intensity(parse_intensity(stored if isinstance(stored, str) else None))
        return source

    def embed(
        self,
        images: Images,
        *,
        layer: int = -1,
        pool: Literal["mean", "cls", "cls+mean", "none"] = "mean",
        feature_norm: bool = True,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Computes features: `beit embed`.

        Args:
            images: n images.
            layer: Block, from 1; -1 is the last. `attention` counts from 0.
            pool: `none` gives a feature of each patch.
            feature_norm: Whether each token is normed before pooling.
            batch_size: Images at once.

        Returns:
            (n, D) float32, (n, 2 D) for `cls+mean`, (n, N, D) for `none`.

        Raises:
            UsageError: The layer or the class token does not exist, or something is no image.
            DataError: An image cannot be read.
        """
        with hints_as_notes():
            import numpy as np

            from beitcli.engine.embed import documents, extractor_of
            from beitcli.models.checkpoints.build import preprocessing

            settings = {"layer": layer, "pool": pool, "feature_norm": feature_norm, "batch_size": batch_size}
            config = resolve_call(EmbedConfig, "inputs", ["-"], settings | {"workers": 0}, self.reference).config
            source, backbone = self._source(images), self._backbone
            extractor = extractor_of(config, backbone, preprocessing(self._checkpoint, backbone), self._compute)
            found = [_readable(document) for document in documents(extractor, source)]
            return np.stack([document["features"] for document in found])

    def predict(
        self, images: Images, *, top: int = 5, score_threshold: float = 0.5, batch_size: int = 64
    ) -> list[dict[str, Any]]:
        """Predicts with a finetuned model: `beit predict`.

        Args:
            images: n images.
            top: Best classes to list.
            score_threshold: Least score of a detector's boxes, and of a multi-label classifier's labels.
            batch_size: Images at once.

        Returns:
            n documents as of `beit predict --json`; that of a segmenter has the `mask`, (H, W) uint8, and no file. The
            `path` of what is no file is image-0, image-1, ...

        Raises:
            StorageError: The model is not finetuned.
            UsageError: Something is no image.
            DataError: An image cannot be read.
        """
        with hints_as_notes():
            from beitcli.engine.predict import predict_images

            settings = {"top": top, "score_threshold": score_threshold, "batch_size": batch_size, "workers": 0}
            config = resolve_call(PredictConfig, "inputs", ["-"], settings, self.reference).config
            source = self._source(images)
            found = predict_images(config, self._checkpoint, self.network, self._compute, source)
            return [_readable(document) for document in found]

    def attention(
        self, image: Images, *, points: Sequence[tuple[int, int]] = (), layer: int = -1, head: str | int = "mean"
    ) -> dict[str, Any]:
        """Computes attention maps of reference points: `beit attn-map`.

        Args:
            image: One image.
            points: (x, y) in pixels of the upright image; default a 2 x 2 set.
            layer: Block, from 0; -1 is the last. `embed` counts from 1.
            head: `mean`, `all` or a number.

        Returns:
            The document of `beit attn-map --json`.

        Raises:
            UsageError: The block, head or point does not exist, or it is not one image.
            DataError: The image cannot be read.
        """
        with hints_as_notes():
            from beitcli.engine.image_attention import attention_document

            settings = {"model": self.reference, "layer": layer, "head": str(head)}
            config = resolve_call(AttnMapConfig, "inputs", ["-"], settings).config
            source = self._source(image)
            if len(source) != 1:
                raise UsageError(f"{len(source)} images are given.", "Give one image at a time.")
            pixels = [(int(x), int(y)) for x, y in points]
            return attention_document(config, self._backbone, self._checkpoint, self._compute, pixels, source)


def _readable(document: dict[str, Any]) -> dict[str, Any]:
    """Raises DataError for the document of an image that cannot be read."""
    if "error" in document:
        raise DataError(f"'{document['path']}' cannot be read: {document['error']}.", "Leave it out.")
    return document
