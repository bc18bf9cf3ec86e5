"""On a terminal the files that were written stand below what is said of the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from beitcli.cli.app import main
from tests.cli.test_contract import at_terminal, screen


def shown_by(*words: object) -> tuple[int, list[str]]:
    code, said = at_terminal(lambda: main(list(map(str, words))))
    return code, [line for line in screen(said) if line]


def names_in(lines: list[str]) -> list[str]:
    """The first word of each line but those that go on with what did not fit."""
    return [line.split()[0] for line in lines if not line.startswith(" ")]


def test_a_sheet_of_several_images_is_named_below_their_lines(picture: Callable, tmp_path: Path) -> None:
    images = [picture(f"{name}.png", seed) for seed, name in enumerate("abc")]
    code, lines = shown_by("mask-preview", *images, "--recipe", "tiny", "-o", tmp_path / "sheet.png")
    assert code == 0
    assert names_in(lines)[-4:] == [str(each) for each in (*images, tmp_path / "sheet.png")]


def test_a_picture_of_each_image_is_named_below_its_line(picture: Callable, tmp_path: Path) -> None:
    images = [picture(f"{name}.png", seed) for seed, name in enumerate("ab")]
    _, lines = shown_by("mask-preview", *images, "--recipe", "tiny", "-o", tmp_path / "out")
    first, a, second, b = names_in(lines)[-4:]
    assert (first, second) == tuple(map(str, images))
    assert (Path(a).parent, Path(b).parent) == (tmp_path / "out", tmp_path / "out")


def test_what_holds_all_images_is_named_though_one_is_damaged(
    picture: Callable, tmp_path: Path, pretrained_run: Path
) -> None:
    good, bad = picture("a.png"), tmp_path / "b.png"
    bad.write_bytes(b"no image")
    for words in (["mask-preview", "--recipe", "tiny"], ["attn-map", "--model", pretrained_run]):
        out = tmp_path / f"{words[0]}.png"
        code, lines = shown_by(words[0], good, bad, *words[1:], "-o", out)
        assert (code, out.exists()) == (3, True)
        names = (str(bad), str(out), "error: 1 of 2 images")
        places = [next(k for k, line in enumerate(lines) if line.startswith(name)) for name in names]
        assert places == sorted(places), lines


def test_the_page_of_doctor_is_named_below_its_table(picture: Callable, tmp_path: Path) -> None:
    picture("photos/a.png")
    out = tmp_path / "page.html"
    code, lines = shown_by("doctor", tmp_path / "photos", "-o", out, "--workers", 0)
    assert code == 0
    assert lines[-1] == f"Page: {out}"
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    code, lines = shown_by("doctor", tmp_path / "photos", "-o", out, "--workers", 0, "--overwrite")
    page, error = (next(k for k, line in enumerate(lines) if word in line) for word in ("Page: ", "error: 1 unread"))
    assert (code, page + 1) == (3, error)


def test_each_of_several_models_is_told_in_a_line_that_needs_none_below(
    labelled_folder: Path, finetuned_run: Path
) -> None:
    """The bar of a model is gone when it is measured."""
    code, lines = shown_by("eval", finetuned_run, finetuned_run, labelled_folder, "--workers", 0, "--device", "cpu")
    assert code == 0
    assert [line for line in lines if line.endswith(":")] == []
    text = "".join(lines)
    assert f"Model 1 of 2: {finetuned_run}" in text
    assert f"Model 2 of 2: {finetuned_run}" in text
