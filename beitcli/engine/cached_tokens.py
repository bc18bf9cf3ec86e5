"""Pretraining with `--token-cache`: batches whose tokens are known need no encoder, and the run is the same.

On a CPU an image's tokens do not depend on its batch (`Tokenizer.encode_alike`), so only what is missing is encoded,
and what is kept serves batches of every size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import PIL
import torch

from beitcli import __version__
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.token_cache import TokenCache, view_identity
from beitcli.data.views import TwoSizes
from beitcli.engine.events import OnEvent, Warned
from beitcli.engine.training import Tensors
from beitcli.errors import UsageError
from beitcli.tokenizers import Tokenizer


def open_token_cache(
    folder: str, tokenizer: Tokenizer, source: Source, view: TwoSizes, grid: tuple[int, int], device: str
) -> TokenCache:
    """The cache of one tokenizer, data and view; its key holds all that could change a token.

    Args:
        source: The data, or a part of it: the key is of the whole.
        device: Its type: other processors round otherwise.

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
        "view": view_identity(view),
        "versions": {"beitcli": __version__, "torch": torch.__version__, "pillow": PIL.__version__},
    }
    return TokenCache(Path(folder), identity, grid[0] * grid[1], tokenizer.vocab_size)


def _hardware(device: str) -> list[str | int]:
    """What the last bits of a logit depend on besides: the instructions and threads, or the kind of GPU."""
    if device == "cuda":
        return [torch.cuda.get_device_name()]
    return [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


class CachedTokens:
    """Completes the tokens of batches, and keeps new ones.

    Args:
        encode: (m, N) tokens of a batch with `token_images`.
        at_once: Images to encode together.
    """

    def __init__(
        self, cache: TokenCache, encode: Callable[[Tensors], torch.Tensor], at_once: int, on_event: OnEvent
    ) -> None:
        self.cache, self.encode, self.at_once, self.on_event = cache, encode, at_once, on_event
        self.waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        self.warned = False
        for note in cache.notes:
            on_event(Warned(note))
        self._warn()

    @torch.no_grad()
    def complete(self, batch: Tensors) -> Tensors:
        """The batch with all its `visual_tokens` (B, N), and without what they were made of.

        The new ones are written when the next batch comes, so that this step starts without waiting; on CUDA the next
        one then waits for this one.
        """
        self.flush()
        rest = {name: tensor for name, tensor in batch.items() if name not in ("token_images", "token_place")}
        token_images = batch.get("token_images")
        if token_images is None:
            return rest
        tokens, places = batch["visual_tokens"], batch["token_place"]
        if len(token_images) < len(tokens):
            missing = (tokens[:, 0] < 0).nonzero().squeeze(1)
        else:
            missing = torch.arange(len(tokens), device=tokens.device)
        beside = {name: tensor for name, tensor in rest.items() if name not in ("images", "mask", "visual_tokens")}
        new = []
        for start in range(0, len(missing), self.at_once):
            chosen = slice(start, start + self.at_once)
            part = {name: tensor.index_select(0, missing[chosen]) for name, tensor in beside.items()}
            new.append(self.encode(part | {"token_images": token_images[chosen]}))
        encoded = torch.cat(new)
        self.waiting = places.index_select(0, missing), encoded
        return rest | {"visual_tokens": tokens.index_copy(0, missing, encoded)}

    def flush(self) -> None:
        """Writes what waits."""
        if self.waiting is None:
            return
        places, tokens = (tensor.cpu().numpy() for tensor in self.waiting)
        self.waiting = None
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
