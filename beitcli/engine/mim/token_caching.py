"""Pretraining with `--token-cache`: batches with cached tokens need no encoder, and the run is the same.

On a CPU an image's tokens do not depend on its batch (`Tokenizer.encode_batch_invariant`), so only missing ones are
encoded, and the cache serves any batch size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch

from beitcli import __version__
from beitcli.config.intensity import FULL
from beitcli.data.caches.token_cache import TokenCache, transform_identity
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import TwoCropTransform
from beitcli.engine.events import OnEvent, Warned
from beitcli.engine.trainer.task import Tensors
from beitcli.errors import UsageError
from beitcli.tokenizers.base import Tokenizer

_MOST_LEAVING = 8  # maximum number of batches of tokens in pinned memory


def open_token_cache(
    folder: str, tokenizer: Tokenizer, source: Source, transform: TwoCropTransform, grid: tuple[int, int], device: str
) -> TokenCache:
    """Opens the cache of one tokenizer, data set and transform; its key holds all that could change a token.

    Args:
        source: The data, or a subset of it: the key is that of the whole.
        device: Device type: other processors round differently.

    Raises:
        UsageError: `folder` is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError(f"--token-cache '{folder}' is a file.", "Give a folder, which is made where it is not there.")
    while isinstance(source, Subset):
        source = source.source
    identity = {
        "tokenizer": tokenizer.sha256,
        "precision": tokenizer.precision,
        "compiled": tokenizer.is_compiled,
        "device": device,
        "hardware": _hardware(device),
        "grid": list(grid),
        "data": source.fingerprint(),
        "images": len(source),
        **({} if source.intensity == FULL else {"intensity": str(source.intensity)}),
        "view": transform_identity(transform),
        "versions": {"beitcli": __version__, "torch": torch.__version__, "pillow": PIL.__version__},
    }
    return TokenCache(Path(folder), identity, grid[0] * grid[1], tokenizer.vocab_size)


def _hardware(device: str) -> list[str | int]:
    """What else the last bits of a logit depend on: CPU instruction set and number of threads, or the GPU model."""
    if device == "cuda":
        return [torch.cuda.get_device_name()]
    return [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


@dataclass(frozen=True)
class _PendingTokens:
    """New tokens that are being copied from the device.

    Attributes:
        places: (m, 3) int64 on the CPU: epoch, image index, CRC-32 of its pixels.
        tokens: (m, N) int64 on the CPU.
        left: CUDA event after the copy; None if no copy was needed.
    """

    places: torch.Tensor
    tokens: torch.Tensor
    left: torch.cuda.Event | None

    @staticmethod
    def start(places: torch.Tensor, tokens: torch.Tensor) -> _PendingTokens:
        """Starts an asynchronous copy."""
        if tokens.device.type != "cuda":
            return _PendingTokens(places, tokens, None)
        there = [torch.empty_like(each, device="cpu", pin_memory=True) for each in (places, tokens)]
        for each, to in zip((places, tokens), there, strict=True):
            to.copy_(each, non_blocking=True)
        left = torch.cuda.Event()
        left.record()
        return _PendingTokens(there[0], there[1], left)

    @property
    def has_left(self) -> bool:
        return self.left is None or self.left.query()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns both as arrays; waits for the copy."""
        if self.left is not None:
            self.left.synchronize()
        return self.places.cpu().numpy(), self.tokens.cpu().numpy()  # on MPS they are still on the device


class CachingTokenizer:
    """Adds missing tokens to batches, and caches them.

    Args:
        encode: Maps a batch with `token_images` to (m, N) tokens.
        at_once: Number of images to encode together.
    """

    def __init__(
        self, cache: TokenCache, encode: Callable[[Tensors], torch.Tensor], at_once: int, on_event: OnEvent
    ) -> None:
        self.cache, self.encode, self.at_once, self.on_event = cache, encode, at_once, on_event
        self.waiting: deque[_PendingTokens] = deque()
        self.warned = False
        for note in cache.notes:
            on_event(Warned(note))
        self._warn()

    @torch.no_grad()
    def fill_tokens(self, batch: Tensors) -> Tensors:
        """Returns the batch with all `visual_tokens` (B, N), and without the tensors they are computed from.

        New tokens are written in a later call, once they have left the device: no step waits for them.
        """
        self._write()
        rest = {name: tensor for name, tensor in batch.items() if name not in ("token_images", "token_place")}
        token_images = batch.get("token_images")
        if token_images is None:
            return rest
        tokens, places = batch["visual_tokens"], batch["token_place"]
        if len(token_images) < len(tokens):
            missing = torch.nonzero_static(tokens[:, 0] < 0, size=len(token_images)).squeeze(1)
        else:
            missing = torch.arange(len(tokens), device=tokens.device)
        beside = {name: tensor for name, tensor in rest.items() if name not in ("images", "mask", "visual_tokens")}
        new = []
        for start in range(0, len(missing), self.at_once):
            chosen = slice(start, start + self.at_once)
            part = {name: tensor.index_select(0, missing[chosen]) for name, tensor in beside.items()}
            new.append(self.encode(part | {"token_images": token_images[chosen]}))
        encoded = torch.cat(new)
        self.waiting.append(_PendingTokens.start(places.index_select(0, missing), encoded))
        return rest | {"visual_tokens": tokens.index_copy(0, missing, encoded)}

    def flush(self) -> None:
        """Writes all pending tokens."""
        self._write(at_most=0)

    def _write(self, at_most: int = _MOST_LEAVING) -> None:
        """Writes what has left the device, oldest first; waits for it if more than `at_most` batches are pending."""
        while self.waiting and (self.waiting[0].has_left or len(self.waiting) > at_most):
            places, tokens = self.waiting.popleft().arrays()
            for (epoch, index, pixels), row in zip(places.tolist(), tokens, strict=True):
                self.cache.add(epoch, index, pixels, row)
        self._warn()

    def close(self) -> None:
        self.flush()
        self.cache.close()

    def _warn(self) -> None:
        if self.cache.trouble and not self.warned:
            self.warned = True
            self.on_event(Warned(f"{self.cache.trouble} The run goes on, with those that are there."))
