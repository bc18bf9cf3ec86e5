"""Every command of the README and the guides runs as it stands, on small data and with small settings."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

from tests.documents.reading import GUIDES, ROOT, blocks, inline
from tests.documents.workplace import copy, make, run

NOT_HERE = {  # what a line needs that tests cannot have; such lines are parsed (test_documents.py)
    "hf://": "a network", "timm/": "a network", "pip install": "a network", "mkdocs": "a server",
    "--logdir": "a server", "#!/bin": "Slurm", "srun": "Slurm",
    "scontrol": "Slurm", "#SBATCH": "Slurm", "code=$?": "Slurm", "exit $code": "Slurm",
    "--gpus": "GPUs", " /scratch": "a cluster's storage", "tail -f": "no end", "pytest": "itself",
    "-newer": "newer photos",
    "beit_base_patch16_224.pth": "a published file", "--recipe base-coco": "a GPU: it makes images of 1,024 pixels",
    "--recipe base --tokenizer runs/tokenizer --epochs": "a GPU", "beit help --man": "a pager",
    "beit help COMMAND": "a reader's choice", "beit recipes NAME": "a reader's choice",
    "--recipe base --dry-run": "a network: it asks for DALL-E's weights", "--init MODEL": "a reader's own model",
    "--protocol elbo": "the size of pretraining, in place of which the small settings give another",
}  # fmt: skip


def scripts() -> list[str]:
    """The shell blocks, and each command by itself that stands in a table or paragraph, without what NOT_HERE names."""
    found = [code for document in GUIDES for code in blocks(document, "sh")]
    found += [line for document in GUIDES for line in inline(document) if re.match(r"beit [a-z-]+ .*[/.\w]", line)]
    kept = []
    for script in found:
        lines = [line for line in script.strip().splitlines() if not any(word in line for word in NOT_HERE)]
        if lines and not any("\n".join(lines) in other for other in kept):
            kept.append("\n".join(lines))
    return kept


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("workplace")
    make(root, labelled_folder)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts())
def test_the_lines_of_the_guides_run(script: str, workplace: Path, tmp_path: Path) -> None:
    if "jq" in script and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    copy(workplace, tmp_path, script)
    ended = run(script, tmp_path)
    assert ended.returncode == 0, f"{script}\n{ended.stderr[-3000:]}"


def test_most_lines_are_run() -> None:
    assert sum(script.count("beit ") for script in scripts()) > 80


DOCUMENTED = runpy.run_path(str(ROOT / "docs/hooks/json_documents.py"))["LINES"]
WRITTEN = {  # the command of each kind of document, in the order of the reference
    "tokenize": ("photo.jpg --tokenizer runs/tokenizer", "", "photos --tokenizer runs/tokenizer --stats"),
    "predict": ("runs/classifier photo.jpg", "runs/segmenter photo.jpg -o masks --overlay", "runs/detector photo.jpg"),
    "embed": ("runs/mine photo.jpg", "runs/mine photos --query photo.jpg"),
    "mask-preview": (
        "photo.jpg --model runs/mine -o rebuilt.png",
        "--stats 20 --num-masked 6",
        "--animate runs/mine -o learning.gif",
    ),
    "attn-map": ("photo.jpg --model runs/mine",),
    "report": ("runs/mine -o page.html",),
    "env": ("",),
}


def test_every_documented_json_is_compared() -> None:
    assert {name: len(kinds) for name, kinds in DOCUMENTED.items()} == {n: len(c) for n, c in WRITTEN.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [(name, k) for name, each in WRITTEN.items() for k in range(len(each))])
def test_json_has_the_documented_fields(name: str, number: int, workplace: Path, tmp_path: Path) -> None:
    line = f"beit {name} {WRITTEN[name][number]} --json"
    if (name, number) == ("tokenize", 1):  # reads what the first kind wrote
        line = "beit tokenize photo.jpg --tokenizer runs/tokenizer --json | "
        line += "beit tokenize --decode - --tokenizer runs/tokenizer -o pictures --json"
    copy(workplace, tmp_path, line)
    ended = run(line, tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = json.loads(ended.stdout.splitlines()[0]) if "\n{" in ended.stdout else json.loads(ended.stdout)
    expected = DOCUMENTED[name][number]
    names = {field for field, _, _ in expected.fields}
    assert set(written) <= names
    assert names - expected.optional <= set(written)
