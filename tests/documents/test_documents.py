"""The documents hold: what they tell people to type parses and installs, and their Python and links are right."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import beitcli
from beitcli.cli.command_table import COMMANDS
from beitcli.config.resolve import resolve
from beitcli.config.toml_text import dump_toml
from beitcli.runtime.metric_text import metric_label
from tests.documents.reading import DOCUMENTS, GUIDES, ROOT, blocks, commands, flags_of, typed

ENVIRONMENT = "python3 -m venv .venv && . .venv/bin/activate && "
INSTALLING = ("README.md", "CONTRIBUTING.md", "docs/guides/first-run.md")
GUIDED = {line for document in GUIDES for line in commands(document)}
EXAMPLES = sorted({line for document in DOCUMENTS for line in commands(document)})


def test_the_documents_show_every_command() -> None:
    assert {shlex.split(line)[1] for line in EXAMPLES} >= {command.name for command in COMMANDS}
    assert len(EXAMPLES) > 100


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_command_line_parses_and_its_settings_are_valid(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the guides a line may leave out what does not matter there, so only its options are checked."""
    monkeypatch.chdir(tmp_path)
    saved = dump_toml(resolve(beitcli.PretrainConfig, {"data": ["photos/"], "recipe": "small"}).config)
    config, flags = flags_of(line)
    if line not in GUIDED or "SEED" in line:  # of xargs
        return
    runs = [str(flags.get("out", "")) if flags.get("resume") else "", str(Path(flags.get("config", "")).parent)]
    for run in (name for name in runs if name and not name.startswith("/")):  # what --resume and --config read
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / run / "config.toml").write_text(saved)
    assert resolve(config, flags).config


def test_a_wrong_command_line_would_be_noticed() -> None:
    with pytest.raises(typer.TyperException, match="No such option"):
        flags_of("beit pretrain photos/ --recipes small")
    with pytest.raises(beitcli.UsageError, match="no pretrain recipe"):
        resolve(*flags_of("beit pretrain photos/ --recipe smal"))


@pytest.mark.parametrize("document", INSTALLING)
def test_whatever_is_installed_goes_into_an_environment_made_in_the_same_line(document: str) -> None:
    lines = [line for line in typed(document) if re.search(r"\bpip install .", line)]
    assert lines
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        assert line.startswith(f"{ENVIRONMENT}pip install -e "), line
        named = re.search(r"'\.\[([\w,]+)\]'", line)
        assert set(named[1].split(",") if named else []) <= set(extras), line


def test_the_python_examples_run(
    labelled_folder: Path, tokenizer_run: Path, finetuned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the data, the model and settings that make them small."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Image.open(labelled_folder / "red" / "00.jpg").save(tmp_path / f"{name}.jpg")
    example = "\n".join(blocks("docs/python.md", "python"))
    small = f'"tiny", image_size=32, num_masked=6, tokenizer={str(tokenizer_run)!r}, device="cpu", workers=0'
    for shown, used in (
        ('"photos/"', repr(str(labelled_folder))), ('"runs/classifier"', repr(str(finetuned_run))), ('"small"', small),
        ("steps=100", "steps=2"), ("(120, 80)", "(20, 10)"),
    ):  # fmt: skip
        assert shown in example
        example = example.replace(shown, used)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/python.md", "exec"), names)
    assert isinstance(names["report"], beitcli.PretrainReport)
    assert [len(tokens) for tokens in names["tokens"]] == [16] * 24
    assert not names["model"].network.training
    assert names["features"].shape[0] == 2
    assert names["answers"][0]["label"] in ("blue", "green", "red")
    assert names["seen"]["maps"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_file_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    files = set(re.findall(r"`((?:beitcli|tests|docs|benchmarks)/[\w./-]+)`", text))
    beside = (ROOT / document).parent
    of_the_site = {link for link in links if link.rpartition("reference/")[1]}  # made when the site is built
    assert [link for link in links - of_the_site if not (beside / link).exists()] == []
    assert [name for name in files if not (ROOT / name).exists()] == []


FOLLOWED = [name for name in DOCUMENTS if name == "README.md" or "guides/" in name] + [
    f"docs/{name}.md" for name in ("attention", "data", "detection", "segmentation", "weights")
]  # in one folder, from the first line to the last; docs/index.md and the gallery have single lines
WRITING = ("out", "output", "map", "codebook", "reconstruct")


def written_by(document: str) -> list[str]:
    """The names that the commands of a page give to what they write, but for runs that go on."""
    found = []
    for line in commands(document):
        _, given = flags_of(line)
        names = [given[name] for name in WRITING if name in given and not given.get("resume")]
        found += [each for name in names for each in (name if isinstance(name, list) else [name])]
    return [name.rstrip("/") for name in found if name not in ("-", "DIR", "NEW") and not name.startswith("/scratch")]


def test_the_pages_can_be_followed_in_one_folder() -> None:
    """A command refuses to write over what another page's has written."""
    pages: dict[str, list[str]] = {}
    for document in FOLLOWED:
        for name in written_by(document):
            pages.setdefault(name, []).append(document)
    assert {name: each for name, each in pages.items() if len(each) > 1} == {}
    assert {"runs/mine", "rebuilt.png", "attention.html"} <= {
        name for name, each in pages.items() if "README.md" in each
    }
    assert len(pages) > 30


def test_figures_on_a_line_of_progress_are_explained() -> None:
    names = ["gradient_norm", "lr", "reconstruction", "kl", "usage_kl", "kl_weight", "temperature", "commitment"]
    names += ["codes_replaced", "main_loss", "psnr_patch_mean", "entropy_share", "loss_lead_std_error"]
    explained = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "guides" / "metrics.md").read_text()))
    assert [name for name in names if not {name, metric_label(name)} & explained] == []
