"""The settings of the tokenizer that pretraining trains for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.toml_text import dump_toml
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.own_tokenizer import own_tokenizer_config


def begun(folder: Path, kind: str | None) -> None:
    """Writes the config.toml of a tokenizer in a run; None: as before there were kinds."""
    written = dump_toml(resolve(TrainTokenizerConfig, {"data": ["sample"], "recipe": "tiny", "kind": "fsq"}).config)
    assert 'kind = "fsq"\n' in written
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(written.replace('kind = "fsq"\n', "" if kind is None else f'kind = "{kind}"\n'))


def test_it_is_the_recipe_s_and_as_large_as_the_grid():
    config = resolve(PretrainConfig, {"data": ["sample"], "recipe": "small", "seed": 3}).config
    own = own_tokenizer_config(config)
    assert (own.kind, own.vocab_size, own.size, own.seed) == ("vq", 1024, 32, 3)


@pytest.mark.parametrize(("stored", "kept"), [(None, "dvae"), ("dvae", "dvae"), ("fsq", "fsq")])
def test_a_resumed_run_keeps_the_settings_it_began_with(tmp_path, stored, kept):
    begun(tmp_path / "run" / "tokenizer", stored)
    config = resolve(PretrainConfig, {"data": ["sample"], "recipe": "small", "out": str(tmp_path / "run")}).config
    assert own_tokenizer_config(config).kind == "vq"
    resumed = own_tokenizer_config(replace(config, resume=True, device="cpu"))
    of_tiny = resolve(TrainTokenizerConfig, {"data": ["sample"], "recipe": "tiny"}).config
    assert (resumed.kind, resumed.device) == (kept, "cpu")
    assert (resumed.vocab_size, resumed.steps, resumed.lr) == (of_tiny.vocab_size, of_tiny.steps, of_tiny.lr)
    assert resumed.vocab_size != own_tokenizer_config(config).vocab_size
