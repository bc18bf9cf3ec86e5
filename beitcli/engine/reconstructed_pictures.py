"""The pictures of `beit tokenize --reconstruct`: the decoded tokens of each image, and the pair with the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from beitcli.config.tokenize import TokenizeConfig
from beitcli.data.sources.base import Source
from beitcli.engine.io.output_paths import make_folder, require_folder
from beitcli.engine.io.outputs import OutputFile, OutputNames, require_writable_outputs, to_picture
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.pictures.reconstruction import reconstruction_pair

if TYPE_CHECKING:
    import torch

_PAIR = "-pair"


@dataclass(frozen=True)
class ReconstructedPictures:
    """Where the pictures go, and which of them a job that ended before its time has left.

    Attributes:
        paths: PNG of the decoded tokens by path of the image.
        log: What this job writes; of several ranks rank 0 keeps it.
    """

    folder: Path
    paths: dict[str, Path]
    log: UnfinishedOutputs

    @classmethod
    def of(cls, config: TokenizeConfig, source: Source) -> ReconstructedPictures | None:
        """Names the pictures of all images; None without `--reconstruct`."""
        if not config.reconstruct:
            return None
        folder = Path(config.reconstruct)
        names = OutputNames(folder, ".png", beside=(_PAIR,))
        paths = {path: names.path(path) for path in (source.path(index) for index in range(len(source)))}
        return cls(folder, paths, UnfinishedOutputs(folder, config))

    def outputs(self, without: Iterable[str] = ()) -> Iterator[Path]:
        """Yields all files, but those of some images."""
        left_out = set(without)
        for path, picture in self.paths.items():
            if path not in left_out:
                yield picture
                yield _pair_path(picture)

    def require_free(self, config: TokenizeConfig, inputs: ProtectedInputs, held: Iterable[str] = ()) -> None:
        """As `require_writable`, but makes nothing."""
        option, overwrite = f"--reconstruct '{config.reconstruct}'", config.overwrite
        require_writable_outputs(self.outputs(held), option, inputs, overwrite=overwrite, own=self.log.holds)
        require_folder(self.folder)

    def require_writable(self, config: TokenizeConfig, inputs: ProtectedInputs, held: Iterable[str] = ()) -> None:
        """Makes the folder.

        Args:
            held: Images whose tokens are there already, so that their pictures stay as they are.

        Raises:
            UsageError: A picture exists, and was not left by this very job when it ended before its time.
        """
        self.require_free(config, inputs, held)
        make_folder(self.folder)
        self.log.begin(self.outputs(held))

    def write(self, path: str, original: torch.Tensor, decoded: torch.Tensor) -> None:
        """Writes the pictures of an image, both (3, H, W) in [0, 1]."""
        picture = self.paths[path]
        pair = reconstruction_pair(to_picture(original), to_picture(decoded))
        OutputFile(picture).save_png(to_picture(decoded))
        OutputFile(_pair_path(picture)).save_png(pair)


def _pair_path(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}{_PAIR}.png")
