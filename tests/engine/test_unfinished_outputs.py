"""Pictures in a folder that a command left when it was stopped: the same command goes over them, no other one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.engine.mask_preview import mask_preview
from beitcli.errors import UsageError

MARK = ".beit-unfinished"


@pytest.fixture
def config(tmp_path: Path) -> MaskPreviewConfig:
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number * 80, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    return MaskPreviewConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "out"))


def stopped_after(config: MaskPreviewConfig, pictures: int) -> None:
    previews = mask_preview(config)
    for _ in range(pictures):
        next(previews)
    previews.close()


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_stopped_command_is_given_again_without_overwrite(config: MaskPreviewConfig) -> None:
    assert config.output is not None
    stopped_after(config, 2)
    assert names(config.output) == [MARK, "0.png", "1.png"]
    stopped_after(config, 1)  # and once more
    assert len(list(mask_preview(config))) == 3
    assert names(config.output) == ["0.png", "1.png", "2.png"]
    with pytest.raises(UsageError, match="exist already"):
        list(mask_preview(config))
    assert len(list(mask_preview(replace(config, overwrite=True)))) == 3
    assert names(config.output) == ["0.png", "1.png", "2.png"]


def test_any_number_of_outputs_is_remembered(config: MaskPreviewConfig) -> None:
    """`tokenize --reconstruct` writes two pictures an image, of a million images as well."""
    assert config.output is not None
    folder = Path(config.output)
    folder.mkdir()
    UnfinishedOutputs(folder, config).begin(folder / f"{number}.png" for number in range(1))
    with (folder / MARK).open("a") as file:
        file.writelines(f"absent {number}.png\n" for number in range(1, 1_200_000))
    log = UnfinishedOutputs(folder, config)
    assert log.holds(folder / "1199999.png")
    assert not log.holds(folder / "1200000.png")


def test_another_command_and_changed_pictures_are_refused(config: MaskPreviewConfig) -> None:
    assert config.output is not None
    stopped_after(config, 2)
    with pytest.raises(UsageError, match=r"0\.png' and 1 more exist already"):
        list(mask_preview(replace(config, epoch=1)))
    picture = Path(config.output, "1.png")
    picture.write_bytes(b"the user's own")
    with pytest.raises(UsageError, match=r"1\.png' exists already"):
        list(mask_preview(config))
    assert picture.read_bytes() == b"the user's own"


def test_a_link_in_place_of_the_notes_is_neither_read_nor_written(config: MaskPreviewConfig, tmp_path: Path) -> None:
    assert config.output is not None
    Path(config.output).mkdir()
    (tmp_path / "precious").write_text("x")
    Path(config.output, MARK).symlink_to(tmp_path / "precious")
    stopped_after(config, 1)
    assert (tmp_path / "precious").read_text() == "x"
    assert Path(config.output, "0.png").is_file()
