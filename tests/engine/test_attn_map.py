"""attn-map: pixels to patches by hand, the documents, the files, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import PatchEmbed
from torch.nn.modules.module import register_module_forward_pre_hook

from beitcli.config.architecture import Architecture
from beitcli.config.attn_map import AttnMapConfig, parse_point
from beitcli.data.transforms.base import fit_center, normalize, to_array
from beitcli.data.transforms.reference_points import CentralCrop
from beitcli.engine.attn_map import attn_map
from beitcli.engine.events import Note, Progress
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.checkpoints.build import open_backbone
from beitcli.models.networks.attention_maps import attention_rows
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.pictures.panels import caption_size
from beitcli.runtime.storage.checkpoint import save_checkpoint

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
DEPTH, HEADS = 3, 4


def save_run(run: Path, kind: str = "masked-image-model") -> Path:
    torch.manual_seed(5)
    architecture = Architecture(image_size=(64, 64), width=48, depth=DEPTH, heads=HEADS)
    model = MaskedImageModel(architecture, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    config = {"kind": kind, "architecture": architecture.as_dict(), "outputs": 32, "mean": MEAN, "std": STD}
    save_checkpoint(
        run / "checkpoints",
        1,
        model=model.state_dict(),
        config=config,
        trainer_tensors={"none": torch.zeros(1)},
        trainer={},
        keep=1,
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_run(tmp_path_factory.mktemp("run")))


def save_image(path: Path, size: tuple[int, int] = (100, 80), orientation: int = 1) -> Path:
    """An image of `size` as stored; EXIF may turn it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    knots = np.random.default_rng(6).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC).save(path, exif=exif, quality=95)
    return path


@pytest.fixture
def image(tmp_path: Path) -> str:
    return str(save_image(tmp_path / "in" / "a.jpg"))


def look(run: str, *inputs: object, stdin: io.BytesIO | None = None, **settings: object) -> list[dict]:
    config = AttnMapConfig(inputs=tuple(map(str, inputs)), model=run, device="cpu", **settings)
    return list(attn_map(config, stdin=stdin))


def refusal(kind: type, *arguments: object, **settings: object):
    with pytest.raises(kind) as caught:
        look(*arguments, **settings)
    return caught.value


# 200 x 100 pixels to a model of 64: the shorter side 100 -> 64, so 128 x 64, of which columns 32 to 95 are kept. Back
# in the image that is x from 50 to 149, y from 0 to 99, and each of 4 x 4 patches covers 25 pixels.
WIDE = CentralCrop(width=200, height=100, size=(64, 64), grid=(4, 4))


@pytest.mark.parametrize(
    ("point", "patch"),
    [((50, 0), (0, 0)), ((74, 24), (0, 0)), ((75, 25), (1, 1)), ((149, 99), (3, 3)), ((100, 50), (2, 2))],
)
def test_point_lies_in_the_patch_that_shows_it(point, patch):
    assert WIDE.box == (50, 0, 150, 100)
    assert WIDE.patch_of(point) == patch


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (101, 67), (64, 64), (7, 5), (33, 400)])
def test_crop_is_that_of_the_models_view(size):
    """A bright pixel is brightest in the patch it is said to lie in."""
    crop = CentralCrop(*size, size=(64, 64), grid=(4, 4))
    left, upper, right, lower = crop.inside()
    for point in ((left, upper), (right, lower), ((left + right) // 2, (upper + lower) // 2), (left, lower)):
        pixels = np.zeros((size[1], size[0]), np.uint8)
        pixels[point[1], point[0]] = 255
        transform = np.asarray(fit_center(Image.fromarray(pixels).convert("RGB"), 64))[..., 0].astype(float)
        across = np.average(np.arange(64) + 0.5, weights=transform.sum(axis=0))
        down = np.average(np.arange(64) + 0.5, weights=transform.sum(axis=1))
        x, y = crop.to_picture(point, (64, 64))
        assert abs(across - x - 0.5) < 4.5  # one of seven pixels is nine wide, and cut at the edge
        assert abs(down - y - 0.5) < 4.5
        assert crop.patch_of(point) == (int((y + 0.5) // 16), int((x + 0.5) // 16))


def test_reference_points_lie_amid_their_patches():
    assert [WIDE.patch_of(point) for point in WIDE.reference_points()] == [(0, 0), (0, 3), (3, 0), (3, 3)]
    paper = CentralCrop(width=224, height=224, size=(224, 224), grid=(14, 14))
    assert paper.reference_points() == [(56, 56), (168, 56), (56, 168), (168, 168)]
    assert CentralCrop(width=9, height=9, size=(16, 16), grid=(1, 1)).reference_points() == [(4, 4)]


def test_points_count_in_the_upright_image(run, tmp_path):
    """Stored 100 x 200 and turned a quarter by EXIF, the image is 200 x 100."""
    turned = save_image(tmp_path / "turned.jpg", (100, 200), orientation=6)
    (document,) = look(run, turned, point=("149,99", "50,30"))
    assert [entry["patch"] for entry in document["maps"]] == [[3, 3], [1, 0]]
    error = refusal(UsageError, run, turned, point=("99,199",))
    assert "200 x 100 pixels" in error.message


def test_document_has_the_contracts_form(run, image):
    (document,) = look(run, image, point=("50,40",))
    assert list(document) == ["path", "model", "layer", "grid", "output", "maps"]
    assert document | {"maps": 0} == {
        "path": image,
        "model": run,
        "layer": DEPTH - 1,
        "grid": [4, 4],
        "output": None,
        "maps": 0,
    }
    (entry,) = document["maps"]
    assert list(entry) == ["point", "patch", "head", "attention", "cls"]
    assert (entry["point"], entry["patch"], entry["head"]) == ([50, 40], [2, 2], "mean")
    assert np.shape(entry["attention"]) == (4, 4)
    assert abs(np.sum(entry["attention"]) + entry["cls"] - 1) < 1e-6
    assert json.loads(json.dumps(document)) == document


def test_attention_is_the_models_own(run, image):
    (document,) = look(run, image, point=("50,40",), head="all", layer=-2)
    model, _ = open_backbone(run)
    transform = to_array(fit_center(Image.open(image), 64))
    rows = attention_rows(model, normalize(torch.from_numpy(transform)[None], tuple(MEAN), tuple(STD)), 1)
    expected = rows[0, :, 1 + 2 * 4 + 2].numpy()
    assert document["layer"] == 1
    assert [entry["head"] for entry in document["maps"]] == [0, 1, 2, 3]
    for entry, row in zip(document["maps"], expected, strict=True):
        np.testing.assert_allclose(np.ravel(entry["attention"]), row[1:], atol=1e-7)
        assert abs(entry["cls"] - row[0]) < 1e-7


def test_mean_is_the_mean_of_the_heads_and_one_head_is_its_own(run, image):
    everything = np.array([entry["attention"] for entry in look(run, image, head="all")[0]["maps"]])
    mean = np.array([entry["attention"] for entry in look(run, image)[0]["maps"]])
    third = look(run, image, head="2")[0]["maps"]
    np.testing.assert_allclose(mean, everything.reshape(4, HEADS, 4, 4).mean(axis=1), atol=1e-7)
    assert [entry["head"] for entry in third] == [2] * 4
    np.testing.assert_allclose([entry["attention"] for entry in third], everything[2::4], atol=1e-7)


def test_size_changes_the_grid(run, image):
    (document,) = look(run, image, size=(96, 96))
    assert document["grid"] == [6, 6]
    assert np.shape(document["maps"][0]["attention"]) == (6, 6)


def test_unreadable_images_are_told_and_end_in_a_data_error(run, image, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    config = AttnMapConfig(inputs=(str(tmp_path / "bad.jpg"), image), model=run, device="cpu")
    looking = attn_map(config)
    documents = [next(looking), next(looking)]
    with pytest.raises(DataError, match="1 of 2"):
        next(looking)
    assert documents[0] == {"path": str(tmp_path / "bad.jpg"), "error": documents[0]["error"]}
    assert documents[1]["path"] == image


def test_paths_come_from_stdin_and_limit_cuts_them(run, tmp_path):
    paths = [save_image(tmp_path / f"{number}.jpg") for number in range(3)]
    listed = io.BytesIO(b"\0".join(os.fsencode(path) for path in paths))
    assert [document["path"] for document in look(run, "-", stdin=listed, nul=True)] == list(map(str, paths))
    assert len(look(run, *paths, limit=2)) == 2


@pytest.mark.parametrize("suffix", ["npy", "html"])
def test_batch_size_changes_nothing_that_is_told(run, tmp_path, suffix):
    """Images of four shapes, a bad one among them: the reference points of each lie where they lie alone."""
    paths = [save_image(tmp_path / f"{n}.jpg", size) for n, size in enumerate([(100, 80), (64, 64), (33, 90), (9, 9)])]
    paths.insert(2, tmp_path / "bad.jpg")
    paths[2].write_bytes(b"no image")
    told = {}
    for batch_size in (1, 3, 8):
        output = tmp_path / f"{batch_size}.{suffix}"
        output.mkdir()
        looking = attn_map(
            AttnMapConfig(
                inputs=tuple(map(str, paths)), model=run, device="cpu", batch_size=batch_size, output=str(output)
            )
        )
        told[batch_size] = [next(looking) for _ in paths]
        with pytest.raises(DataError, match="1 of 5"):
            next(looking)
        assert len(list(output.iterdir())) == 4
    for one, three, eight in zip(*told.values(), strict=True):
        assert one["path"] == three["path"] == eight["path"]
        assert ("error" in one) == (one["path"] == str(paths[2]))
        for entry, *others in zip(*(document.get("maps", ()) for document in (one, three, eight)), strict=True):
            for other in others:
                assert other["patch"] == entry["patch"]
                np.testing.assert_allclose(other["attention"], entry["attention"], atol=1e-6)


def test_batch_goes_through_the_model_at_once(run, tmp_path):
    paths = [save_image(tmp_path / f"{number}.jpg") for number in range(5)]
    seen = []

    def note(module, inputs):
        if isinstance(module, PatchEmbed):
            seen.append(len(inputs[0]))

    hook = register_module_forward_pre_hook(note)
    try:
        assert len(look(run, *paths, batch_size=2)) == 5
    finally:
        hook.remove()
    assert seen == [2, 2, 1]


@pytest.mark.parametrize(("head", "heads"), [("mean", 1), ("1", 1), ("all", HEADS)])
def test_npy_holds_a_map_a_point_and_head(run, image, tmp_path, head, heads):
    output = tmp_path / "maps.npy"
    (document,) = look(run, image, output=str(output), head=head, point=("50,40", "60,20"))
    maps = np.load(output)
    assert (maps.shape, maps.dtype) == ((2, heads, 4, 4), np.float32)
    said = np.reshape([entry["attention"] for entry in document["maps"]], maps.shape)
    np.testing.assert_allclose(maps, said, atol=1e-7)
    assert document["output"] == str(output)


@pytest.mark.parametrize(("head", "pictures"), [("mean", (3, 1)), ("all", (5, 2))])
def test_png_shows_every_map_large_enough_to_be_seen(run, image, tmp_path, head, pictures):
    output = tmp_path / "new" / "maps.png"
    look(run, image, output=str(output), head=head, point=("50,40", "60,20"), threshold=0.6)
    with Image.open(output) as picture:
        side = 448 if head == "mean" else 256
        assert picture.format == "PNG"
        assert picture.width == pictures[0] * side + 16 * (pictures[0] + 1)
        assert picture.height > pictures[1] * side


def test_html_is_written_for_the_name_and_the_points(run, image, tmp_path):
    output = tmp_path / "page.html"
    (document,) = look(run, image, output=str(output), head="1", point=("50,40",))
    page = output.read_text(encoding="utf-8")
    assert image in page
    assert '"points":[[2,2]]' in page
    assert '"start":{"layer":2,"head":"1"' in page
    (plain,) = look(run, image, head="1", point=("50,40",))
    np.testing.assert_allclose(document["maps"][0]["attention"], plain["maps"][0]["attention"], atol=1e-7)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_several_images_go_into_a_folder_by_their_stems(run, tmp_path):
    paths = [save_image(tmp_path / folder / "a.jpg") for folder in ("one", "two")]
    dots = paths[0].rename(tmp_path / "...jpg")
    documents = look(run, save_image(paths[0]), paths[1], dots, output=str(tmp_path / "maps"))
    written = [document["output"] for document in documents]
    assert written[:2] == [str(tmp_path / "maps" / "a.png"), str(tmp_path / "maps" / "a-2.png")]
    assert sorted(written) == sorted(str(path) for path in (tmp_path / "maps").iterdir())


def test_the_suffix_of_the_folder_chooses_the_format(run, tmp_path):
    paths = [save_image(tmp_path / f"{name}.jpg") for name in "ab"]
    documents = look(run, *paths, output=f"{tmp_path}/maps.npy/")
    assert [document["output"] for document in documents] == [str(tmp_path / "maps.npy" / f"{n}.npy") for n in "ab"]
    error = refusal(UsageError, run, *paths, output=str(tmp_path / "more.npy"))
    assert "takes one image, but 2 are given" in error.message
    assert f"'{tmp_path}/more.npy/' is a folder" in error.hint
    assert not (tmp_path / "more.npy").exists()


def test_several_images_in_one_png_are_a_figure(run, tmp_path):
    paths = [save_image(tmp_path / f"{name}.jpg") for name in "ab"]
    output = tmp_path / "maps.png"
    documents = look(run, *paths, output=str(output))
    assert [document["output"] for document in documents] == [str(output)] * 2
    assert output.is_file()
    look(run, *paths, output=str(tmp_path / "figure.png"), figure=True)
    with Image.open(output) as titled, Image.open(tmp_path / "figure.png") as bare:
        assert (titled.width - 32) / bare.width == pytest.approx(0.5, abs=0.01)  # half the resolution, and a margin
        assert titled.height > bare.height / 2 + 32 + 2 * 2 * 12 * 150 / 72  # two rows, each with its name and scales
        above = np.asarray(titled.convert("L"))[:40]
    assert (above < 128).any()  # the model and the layer


def test_one_image_goes_into_a_folder_that_is_there(run, image, tmp_path):
    (document,) = look(run, image, output=str(tmp_path))
    assert document["output"] == str(tmp_path / "a.png")


def page_data(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def test_page_holds_the_numbers_of_every_layer_and_head(run, image, tmp_path):
    look(run, image, output=str(tmp_path / "page.html"), page_mb=0.1)
    (explored,) = page_data(tmp_path / "page.html")["images"]
    assert len(explored["layers"]) == DEPTH
    for layer, stored in enumerate(explored["layers"]):
        for head in ("mean", "rollout", "0", "3"):
            packed, number = (stored["heads"], int(head)) if head.isdecimal() else (stored[head], 0)
            assert packed["bits"] == 16
            most, cls = (np.frombuffer(base64.b64decode(packed[key]), "<f4").reshape(-1, 17) for key in ("most", "cls"))
            weights = np.frombuffer(base64.b64decode(packed["weights"]), "<u2").reshape(-1, 17, 16)[number]
            for entry in look(run, image, layer=layer, head=head)[0]["maps"]:
                query = 1 + 4 * entry["patch"][0] + entry["patch"][1]
                attention = weights[query] / 65535 * most[number, query]
                np.testing.assert_allclose(attention, np.ravel(entry["attention"]), atol=most.max() / 131070 + 1e-7)
                assert abs(cls[number, query] - entry["cls"]) < 1e-7


def test_page_has_the_command_of_each_image_as_words_of_a_shell(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["it's $HOME.jpg", "-o.jpg"]
    for name in names:
        save_image(Path(name))
    with tarfile.open("t.tar", "w") as archive:
        archive.add(names[0])
    settings = {"size": (48, 64), "normalization": "inception", "intensity_range": "auto"}
    look(run, ".", "t.tar", output="page.html", page_mb=0.1, threshold=0.6, smooth=True, **settings)
    commands = [shlex.split(image["command"]) for image in page_data(Path("page.html"))["images"]]
    given = ["--model", run, "--size", "48,64", "--normalization", "inception", "--intensity-range", "auto"]
    assert commands == [["beit", "attn-map", image, *given] for image in ("./-o.jpg", "./it's $HOME.jpg", "IMAGE")]
    look(run, "-o.jpg", output="plain.html", page_mb=0.1)
    (image,) = page_data(Path("plain.html"))["images"]
    assert shlex.split(image["command"]) == ["beit", "attn-map", "./-o.jpg", "--model", run]


def test_rollout_multiplies_the_layers_up_to_its_own(run, image):
    means = []
    for layer in range(2):
        model, _ = open_backbone(run)
        pixels = to_array(fit_center(Image.open(image), 64))
        rows = attention_rows(model, normalize(torch.from_numpy(pixels)[None], tuple(MEAN), tuple(STD)), layer)
        means.append(0.5 * rows[0].mean(dim=0).double() + 0.5 * torch.eye(17, dtype=torch.float64))
    expected = (means[1] @ means[0])[1 + 2 * 4 + 2].numpy()
    (entry,) = look(run, image, point=("50,40",), head="rollout", layer=1)[0]["maps"]
    assert entry["head"] == "rollout"
    np.testing.assert_allclose(np.ravel(entry["attention"]), expected[1:], atol=1e-6)
    assert abs(entry["cls"] - expected[0]) < 1e-6


def test_several_images_are_one_page_written_before_the_documents(run, tmp_path):
    paths = [save_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    output = tmp_path / "page.html"
    settings = {"model": run, "device": "cpu", "output": str(output)}
    looking = attn_map(AttnMapConfig(inputs=(*map(str, paths), str(tmp_path / "bad.jpg")), **settings))
    first = next(looking)
    assert output.is_file()
    assert [image["name"] for image in page_data(output)["images"]] == list(map(str, paths))
    assert [first["output"], next(looking)["output"]] == [str(output)] * 2
    assert "error" in next(looking)
    with pytest.raises(DataError, match="1 of 3"):
        next(looking)


def test_no_page_is_written_of_images_that_cannot_be_read(run, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    looking = attn_map(AttnMapConfig(inputs=(str(tmp_path),), model=run, device="cpu", output=f"{tmp_path}/p.html"))
    assert all("error" in next(looking) for _ in range(2))
    with pytest.raises(DataError):
        next(looking)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figure_has_a_row_for_each_image(run, tmp_path, suffix):
    paths = [save_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    output = tmp_path / f"figure.{suffix}"
    documents = look(run, *paths, output=str(output), figure=True, point=("50,40", "60,20"))
    assert [document["output"] for document in documents] == [str(output)] * 2
    content = output.read_bytes()
    if suffix == "png":
        with Image.open(output) as picture:  # a photograph and two maps, 96 pt each at 300 dpi, 4 pt between
            assert picture.size == (round((3 * 96 + 8) * 300 / 72), round((2 * 96 + 4) * 300 / 72))
    elif suffix == "svg":
        assert content.count(b"<image ") == 6
    else:
        assert content.count(b"/Subtype /Image") == 6


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_figure_of_one_image_has_the_words_of_that_of_several(run, tmp_path, suffix):
    path, words = save_image(tmp_path / "a.jpg"), {}
    for name, several in (("one", [path]), ("two", [path, save_image(tmp_path / "b.jpg")])):
        output = tmp_path / f"{name}.{suffix}"
        look(run, *several, output=str(output), layer=1, head="2")
        words[name] = words_of(output)
    about = " ".join(words["one"])
    assert f"layer 1 (of 0 to {DEPTH - 1}), head 2" in about
    assert "each map relative to its max; uniform 1/" in about
    assert "a.jpg" in words["one"]
    assert sum(each.startswith("max ") for each in words["one"]) == 4
    assert words["two"][: len(words["one"])] == words["one"]
    look(run, path, output=str(tmp_path / f"bare.{suffix}"), figure=True)
    assert set(words_of(tmp_path / f"bare.{suffix}")) == set("1234")


def words_of(figure: Path) -> list[str]:
    """Returns the texts of an SVG or PDF file in their order."""
    content = figure.read_bytes()
    if figure.suffix == ".svg":
        return re.findall(r"<text [^>]*>([^<]*)</text>", content.decode())
    start = content.index(b"/FlateDecode")
    start = content.index(b"stream\n", start) + 7
    drawn = zlib.decompress(content[start : content.index(b"\nendstream", start)]).decode("cp1252")
    return [each.replace("\\", "") for each in re.findall(r" Td \((.*)\) Tj", drawn)]


def test_titles_count_layers_and_heads_as_the_command_does(run, image, tmp_path):
    look(run, image, output=str(tmp_path / "a.svg"), layer=1, head="2")
    content = (tmp_path / "a.svg").read_text()
    assert f"layer 1 (of 0 to {DEPTH - 1}), head 2" in content


@pytest.mark.parametrize("points", [("50,40",), ("50,40", "60,20", "20,10", "80,70")])
def test_the_heading_of_a_picture_is_a_little_larger_than_its_captions(run, image, tmp_path, points):
    look(run, image, output=str(tmp_path / "a.png"), point=points)
    with Image.open(tmp_path / "a.png") as picture:
        white = (np.asarray(picture.convert("L")) > 250).mean(axis=1)
        cell = (picture.width - 16) // (1 + len(points)) - 16
    size = round(1.2 * caption_size(cell))
    assert np.flatnonzero(white < 0.2)[0] == 2 * round(1.5 * size) + size // 2 + 16  # two lines, and the margin


def test_figure_is_refused_where_there_is_none(run, image, tmp_path):
    for name in ("a.html", "a.npy"):
        assert ".svg" in refusal(UsageError, run, image, output=str(tmp_path / name), figure=True).hint


def test_png_has_a_title_and_smooth_heat_where_it_is_asked_for(run, image, tmp_path):
    pictures = []
    for smooth in (False, True):
        output = tmp_path / f"{smooth}.png"
        look(run, image, output=str(output), point=("50,40",), smooth=smooth)
        with Image.open(output) as picture:
            pictures.append(np.asarray(picture).astype(int))
    blocks, smoothed = pictures
    top = np.flatnonzero((blocks[:, 16:464] != 255).all(axis=(1, 2)))[0]
    assert top > 16 + 13
    assert (blocks[: top - 16] < 128).any()
    assert np.array_equal(blocks[:, :464], smoothed[:, :464])
    edges = 480 + np.array([112, 224, 336])  # between the four columns of patches
    jumps = [np.abs(each[top : top + 448, edges] - each[top : top + 448, edges - 1]).mean() for each in pictures]
    assert jumps[0] > 3 * jumps[1]


@pytest.mark.parametrize("output", ["maps.jpg", "maps.tar.gz", "-"])
def test_an_unknown_format_is_refused(run, image, output):
    error = refusal(UsageError, run, image, output=output)
    assert f"'{output}'" in error.message
    assert ".png, .html, .npy, .svg, .pdf" in error.hint


def test_an_input_is_never_overwritten(run, tmp_path):
    paths = [save_image(tmp_path / name) for name in ("a.jpg", "a.png")]
    before = paths[1].read_bytes()
    for inputs, output in (([paths[1]], paths[1]), (paths, tmp_path)):
        assert "overwrite" in refusal(UsageError, run, *inputs, output=str(output)).message
    assert paths[1].read_bytes() == before


def test_an_output_that_cannot_be_written_is_a_storage_error(run, image, tmp_path):
    (tmp_path / "file").touch()
    for output in ("file/maps.png", "file/maps"):
        assert refusal(StorageError, run, image, output=f"{tmp_path}/{output}").hint
    assert refusal(UsageError, run, image, output=f"{tmp_path}/file/").hint  # a file, and a folder is asked for


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1.5,2", "nan,1", "1;2", "1,", "9" * 12 + ",1"])
def test_a_malformed_point_is_refused(run, image, text):
    error = refusal(UsageError, run, image, point=(text,))
    assert f"'{text}'" in error.message
    assert "X,Y" in error.hint


def test_parse_point_reads_pixels():
    assert parse_point(" 12, 7") == (12, 7)
    assert parse_point("-1,0") == (-1, 0)


@pytest.mark.parametrize("point", ["100,10", "10,80", "-1,5"])
def test_a_point_outside_the_image_is_refused_with_its_size(run, image, point):
    error = refusal(UsageError, run, image, point=(point,))
    assert point in error.message
    assert "100 x 80 pixels" in error.message
    assert "0 to 99" in error.hint


def test_a_point_beside_the_central_square_is_refused_with_the_range(run, image):
    """100 x 80 -> 80 x 64, columns 8 to 71: x from 10 to 89."""
    error = refusal(UsageError, run, image, point=("9,40",))
    assert "central square" in error.message
    assert error.hint == "Give X from 10 to 89 and Y from 0 to 79."
    assert look(run, image, point=("10,79", "89,0"))[0]["maps"][1]["patch"] == [0, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layer": 3}, "3 blocks"),
        ({"layer": -4}, "3 blocks"),
        ({"head": "4"}, "4 heads"),
        ({"threshold": 0.0}, "--threshold 0"),
        ({"size": (70, 70)}, "70"),
    ],
    ids=str,
)
def test_settings_that_the_model_cannot_meet_are_refused(run, image, settings, said):
    assert said in refusal(UsageError, run, image, **settings).message


def test_the_newest_run_is_taken_where_none_is_named(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, (name, kind) in enumerate([("b", "masked-image-model"), ("a", "masked-image-model")]):
        config = save_run(Path("runs") / name, kind) / "checkpoints" / "step-0000001" / "config.json"
        os.utime(config, (1e9 - age, 1e9 - age))
    save_run(Path("runs") / "tokenizer", "tokenizer")
    events: list[object] = []
    (document,) = attn_map(AttnMapConfig(inputs=(image,), device="cpu"), events.append)
    assert document["model"] == "runs/b"
    assert isinstance(events[0], Note)
    assert "runs/b" in events[0].message
    assert isinstance(events[-1], Progress)
    assert (events[-1].done, events[-1].total) == (1, 1)


def test_no_run_at_all_says_how_to_make_one(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        list(attn_map(AttnMapConfig(inputs=(image,), device="cpu")))
    assert "beit pretrain sample --recipe tiny" in caught.value.hint


def test_split_chooses_the_images_of_data_that_has_splits(beit, run):
    for split, words in (("val", ()), ("train", ("--split", "train"))):
        (line,) = beit("attn-map", "sample", "--limit", 1, "--model", run, *words).lines
        assert line["path"].startswith(f"sample/{split}/")
