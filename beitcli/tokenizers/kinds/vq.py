"""`--kind vq`: a vector-quantized autoencoder (VQ-VAE, arXiv 1711.00937; its appendix A.1 for the moving averages).

    loss = reconstruction(decoder(z_q), images) + commitment * |z - stop_gradient(e_k)|^2

The codebook starts as the k-means of the first batch and follows by moving averages. `--set codebook=loss` trains it by
|stop_gradient(z) - e_k|^2 instead, the third term of the paper's equation 3. A code that was not used for
`replace_after` steps becomes a vector of the batch: an unused code never learns, which is how such codebooks collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from beitcli.config.fields import option
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.tokenizers.codebook_objective import CodebookObjective
from beitcli.tokenizers.dvae_loss import reconstruction_loss
from beitcli.tokenizers.kind import TokenizerKind, own_settings
from beitcli.tokenizers.quantized import QuantizedVAE, architecture_of, build
from beitcli.tokenizers.vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VQSettings:
    """Settings of the kind, given by `--set`."""

    code_width: int = option(16, "Width of a code.", ge=1)
    codebook: Literal["ema", "loss"] = option("ema", "What the codes follow: moving averages, or a loss.")
    commitment: float = option(0.25, "Weight of the commitment loss.", ge=0)
    decay: float = option(0.99, "Decay of the moving averages of the codebook.", ge=0, lt=1)
    replace_after: int = option(20, "Steps without use after which a code is replaced; 0 = never.", ge=0)


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    own = own_settings(config)
    architecture = architecture_of(config, own.code_width)
    return architecture | ({"codebook": own.codebook} if own.codebook != "ema" else {})  # earlier versions had only ema


def _build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> QuantizedVAE:
    rest = dict(architecture)
    by_loss = rest.pop("codebook", "ema") == "loss"
    return build(rest, stored, lambda shape: VectorQuantizer(shape.vocab_size, shape.code_width, by_loss=by_loss))


class VQObjective(CodebookObjective):
    """Reconstruction, commitment and, for a codebook trained by loss, the distance of the codes."""

    model: QuantizedVAE
    own: VQSettings

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.model.preprocess(images)
        vectors, codes, decoded, distance = forward(pixels)
        self.note(vectors, codes)
        commitment, *of_codes = distance.reshape(-1).unbind()
        reconstruction = reconstruction_loss(pixels, decoded, self.config.reconstruction)
        loss = reconstruction + self.own.commitment * commitment
        for each in of_codes:
            loss = loss + each
        return loss, {"reconstruction": reconstruction.detach(), "commitment": commitment.detach()}


KIND = TokenizerKind("vector-quantized autoencoder", _architecture, _build, VQObjective, settings=VQSettings)
