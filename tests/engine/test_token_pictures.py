"""The pictures of `tokenize`, through the command line: token maps, the codebook's sheet, the chart of --stats."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.config.resolve import resolve
from beitcli.config.tokenize import TokenizeConfig
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.events import Drawn
from beitcli.engine.tokenize import tokenize
from beitcli.tokenizers.kind import untrained
from beitcli.tokenizers.open import open_tokenizer


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_token_map_is_drawn_beside_the_tokens(
    beit: Callable, tokenizer_run: Path, picture: Callable, tmp_path: Path
) -> None:
    image, out = picture("a.png"), tmp_path / "map.webp"
    plain = beit("tokenize", image, "--tokenizer", tokenizer_run)
    mapped = beit("tokenize", image, "--tokenizer", tokenizer_run, "--map", out)
    assert mapped.lines == plain.lines
    assert mapped.err.splitlines()[-1] == f"Map: {out}"
    width, height = size_of(out)
    assert width >= 3 * 448  # image, tokens, what they decode to
    assert height >= 448
    assert beit("tokenize", image, "--tokenizer", tokenizer_run, "--map", out).code == 2
    assert beit("tokenize", image, "--tokenizer", tokenizer_run, "--map", out, "--overwrite").code == 0


def test_pictures_on_a_terminal_are_named_instead_of_their_tokens(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beitcli.cli.console.CommandConsole.wants_json", False)
    argv = ["tokenize", labelled_folder, "--limit", 3, "--tokenizer", tokenizer_run]
    assert len(beit(*argv).out.splitlines()) == 3
    for option, word in (("--map", "Map"), ("--codebook", "Codebook")):
        ended = beit(*argv, option, tmp_path / f"{word}.png")
        assert (ended.code, ended.out) == (0, "")
        assert ended.err.splitlines()[-1] == f"{word}: {tmp_path}/{word}.png"
        assert (tmp_path / f"{word}.png").is_file()
    (tmp_path / "bad.png").write_bytes(b"")
    ended = beit("tokenize", tmp_path / "bad.png", "--tokenizer", tokenizer_run, "--map", tmp_path / "none.png")
    assert ended.out.startswith(f"{tmp_path}/bad.png  error: empty file")
    assert "Map:" not in ended.err


def test_token_maps_of_several_are_a_folder_or_a_sheet(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    argv = ["tokenize", labelled_folder, "--limit", 3, "--tokenizer", tokenizer_run, "--batch-size", 2]
    assert beit(*argv, "--map", tmp_path / "maps").err.splitlines()[-1] == f"Maps: 3 in '{tmp_path}/maps'"
    assert len(list((tmp_path / "maps").iterdir())) == 3
    told = beit(*argv, "--map", tmp_path / "sheet.png", "-o", tmp_path / "tokens.jsonl").err
    assert f"Map: {tmp_path}/sheet.png" in told.splitlines()
    assert size_of(tmp_path / "sheet.png")[1] > 224
    assert len((tmp_path / "tokens.jsonl").read_text().splitlines()) == 3
    assert beit(*argv, "--map", tmp_path / "sheet.tiff").code == 2
    assert beit(*argv, "--decode", "--map", tmp_path / "x.png").code == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["--reconstruct", "out", "--map", "out"],
        ["--reconstruct", "out", "--map", "out/b-pair.png"],
        ["--codebook", "out/a.png", "--map", "out/"],
        ["--stats", "--codebook", "x.png", "-o", "x.png"],
        ["--stats", "--codebook", "x.png", "-o", "link.png"],
        ["--stats", "--codebook", "/dev/stdout", "-o", "/dev/fd/1"],
    ],
    ids=" ".join,
)
def test_outputs_that_would_replace_one_another_are_refused(
    beit: Callable, tokenizer_run: Path, picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list
) -> None:
    picture("in/a.png"), picture("in/b.png")
    (tmp_path / "link.png").symlink_to("x.png")
    monkeypatch.chdir(tmp_path)
    ended = beit("tokenize", "in", "--tokenizer", tokenizer_run, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert "would both write" in ended.err
    assert not [path for path in tmp_path.rglob("*.png") if path.parent.name != "in" and path.exists()]


@pytest.mark.parametrize("argv", [["--map"], ["--codebook"], ["--stats", "-o"]], ids=" ".join)
def test_a_picture_on_stdout_is_alone_there(tokenizer_run: Path, picture: Callable, argv: list[str]) -> None:
    line = ["tokenize", picture("a.png"), "--tokenizer", tokenizer_run, "--device", "cpu", *argv, "/dev/stdout"]
    program = "import sys; from beitcli.cli.app import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", program, *map(str, line)], capture_output=True, check=True)
    with Image.open(io.BytesIO(ended.stdout)) as image:
        image.load()
    assert ended.stdout.endswith(b"IEND\xaeB`\x82")


def test_previews_of_tokens_are_events_with_the_map(tokenizer_run: Path, picture: Callable) -> None:
    config = resolve(
        TokenizeConfig, {"inputs": [str(picture("a.png"))], "tokenizer": str(tokenizer_run), "preview": True}
    ).config
    seen: list[Drawn] = []
    (document,) = tokenize(config, lambda event: seen.append(event) if isinstance(event, Drawn) else None)
    (drawn,) = seen
    assert [panel.title for panel in drawn.panels] == ["a.png", "visual tokens", "decoded from them"]
    different = len(set(document["tokens"]))
    assert drawn.panels[1].notes[0].startswith(f"{len(document['tokens'])} tokens, {different} different")
    cells = np.asarray(drawn.panels[1].picture)
    rows, columns = document["grid"]
    codes = np.array(document["tokens"]).reshape(rows, columns)
    centres = cells[
        cells.shape[0] // rows // 2 :: cells.shape[0] // rows,
        cells.shape[1] // columns // 2 :: cells.shape[1] // columns,
    ]
    colours = {code: {tuple(each) for each in centres[codes == code].tolist()} for code in set(document["tokens"])}
    assert all(len(each) == 1 for each in colours.values())  # one colour a code


def test_codebook_sheet_and_chart_of_stats(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    codes, chart = tmp_path / "codes.png", tmp_path / "usage.jpg"
    argv = ["tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--codebook", codes]
    (document,) = beit(*argv, "--codes", 5, "--stats", "-o", chart).lines
    assert document["output"] == str(chart)
    assert min(*size_of(codes), *size_of(chart)) > 100
    assert beit(*argv).code == 2  # exists
    assert (
        beit("tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--stats", "-o", tmp_path / "a.txt").code == 2
    )
    assert (beit(*argv, "--overwrite").code, size_of(codes)[0] > 100) == (0, True)


def test_codebook_sums_are_the_means_of_the_patches(tokenizer_run: Path) -> None:
    from beitcli.engine.token_pictures import TokenPictures

    tokenizer = open_tokenizer(str(tokenizer_run))
    side = tokenizer.model.downsample
    config = resolve(TokenizeConfig, {"tokenizer": str(tokenizer_run), "codebook": "codes.png"}).config
    drawing = TokenPictures(config, source=None, tokenizer=tokenizer, size=3 * side)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 3 * side, 3 * side, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 1, 2, 2, 2, 3, 3, 0], [1] * 9])
    drawing.count(images, tokens)
    by_hand = torch.zeros(3, side, side)
    for image, row in zip(images, tokens.view(2, 3, 3), strict=True):
        for top, left in (row == 1).nonzero().tolist():
            by_hand += image[:, top * side : (top + 1) * side, left * side : (left + 1) * side]
    assert drawing.patches is not None
    torch.testing.assert_close(drawing.patches[1], by_hand)


@pytest.mark.parametrize("kind", ["dvae", "strided-dvae", "vq", "fsq"])
def test_codes_of_every_kind_have_vectors(kind: str) -> None:
    flags = {"data": ["sample"], "kind": kind, "recipe": "tiny", "vocab_size": 64}
    model = untrained(resolve(TrainTokenizerConfig, flags).config)
    vectors = model.code_vectors()
    assert vectors is not None
    assert len(vectors) == 64
    assert len(vectors.unique(dim=0)) == 64
