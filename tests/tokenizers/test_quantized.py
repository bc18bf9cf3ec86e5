"""Tokenizers of each further kind, through the command line: runs, resumed runs, several processes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from beitcli.cli.app import main
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.runtime.compute.optimizer import parameter_groups
from beitcli.runtime.distributed.world import SINGLE_PROCESS, join, shutdown
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.weight_files.reader import read_tensors
from beitcli.tokenizers.kind import kind_of, untrained
from beitcli.tokenizers.open import open_tokenizer
from beitcli.tokenizers.vector_quantizer import VectorQuantizer
from tests.helpers.processes import in_group, in_processes

# A strided dVAE halves in its first stage too; the third term of its loss is of the micro-batch, not of the batch.
OWN = {"vq": [], "fsq": [], "strided-dvae": ["--groups", 1, "--set", "code_width=16", "--usage-weight", 0]}
KINDS = list(OWN)
RUNS = {"vq by loss": ("vq", "--set", "codebook=loss")} | {kind: (kind,) for kind in KINDS}


def training(kind: str, out: Path, steps: int = 6, *more: object) -> list[str]:
    words = [
        "train-tokenizer", "sample", "--kind", kind, "--recipe", "tiny", "--limit", 120, "--vocab-size", 64,
        "--width", 8, "--size", 16, "--groups", 2, "--steps", steps, "--batch-size", 12, "--save-every", 3,
        "--log-every", 1, "--workers", 0, "--device", "cpu", "--quiet", "--out", out, *OWN[kind], *more,
    ]  # fmt: skip
    return list(map(str, words))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(run)
    assert newest is not None
    return read_tensors(newest.path / "model.safetensors")


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param.replace(" ", "-")) / "run"
    kind, *more = RUNS[request.param]
    assert main(training(kind, out, 6, *more)) == 0
    return request.param, out


def test_a_run_opens_encodes_and_decodes(run):
    (kind, *_), out = RUNS[run[0]], run[1]
    tokenizer = open_tokenizer(str(out))
    images = torch.rand(3, 3, 16, 16)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 64)
    assert (tokenizer.vocab_size, int(tokens.min()) >= 0, int(tokens.max()) < 64) == (64, True, True)
    pictures = tokenizer.decode(tokens, (8, 8))
    assert pictures.shape == images.shape
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    assert json.loads((newest_checkpoint(out).path / "config.json").read_text())["beit"]["tokenizer_kind"] == kind


def test_images_alone_and_together_have_the_same_tokens(run):
    tokenizer = open_tokenizer(str(run[1]))
    images = torch.rand(11, 3, 16, 16)
    together = tokenizer.encode_batch_invariant(images)
    alone = torch.cat([tokenizer.encode_batch_invariant(image[None]) for image in images])
    assert torch.equal(together, alone)


def test_a_resumed_run_equals_one_that_was_never_stopped(run, tmp_path):
    _, out = run
    copied = shutil.copytree(out, tmp_path / "run")
    shutil.rmtree(copied / "checkpoints/step-0000006")
    assert main(["train-tokenizer", "--out", str(copied), "--resume", "--quiet"]) == 0
    resumed, whole = weights_of(copied), weights_of(out)
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_and_micro_batches_learn_the_same_codes(run, tmp_path, size):
    (kind, *more), out = RUNS[run[0]], run[1]
    for ended in in_processes(size, training(kind, tmp_path / "run", 6, *more, "--micro-batch", 2)):
        assert ended.code == 0, ended.err
    alone, shared = weights_of(out), weights_of(tmp_path / "run")
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=2e-3, atol=2e-4, msg=name)


def test_codes_that_no_patch_finds_are_replaced_and_counted(tmp_path):
    assert main(training("vq", tmp_path / "run", 12, "--set", "replace_after=2")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(line["codes_replaced"] for line in lines) > 0
    assert max(line["held_out_codes_used"] for line in lines if "held_out_codes_used" in line) > 16


@pytest.mark.parametrize("how", [(), ("codebook=loss",)])
def test_all_processes_start_from_the_first_one_s_codebook(monkeypatch, how):
    """Each computes k-means; a GPU adds up in any order, so that the bits of the second process's sums are others."""
    flags = {"data": ["sample"], "kind": "vq", "recipe": "tiny", "vocab_size": 64, "width": 8, "size": 16, "groups": 2}
    config = resolve(TrainTokenizerConfig, flags | {"kind_settings": list(how)}).config

    exact = VectorQuantizer._tally

    def rounded_otherwise(self, *given):
        count, total = exact(self, *given)
        return count, total * (1 + 1e-6)

    def work(rank: int) -> None:
        torch.manual_seed(0)
        model, images = untrained(config), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
        if rank:
            monkeypatch.setattr(VectorQuantizer, "_tally", rounded_otherwise)
        world = join(torch.device("cpu"), 1, 30)
        objective = kind_of(config).objective(model, config, 10, world)
        places = torch.tensor([0, 3] if rank == 0 else [1, 2])
        objective.before_step(0, images[places], places)
        kept = model.quantizer.state_dict()
        print(*(hashlib.sha256(kept[name].numpy().tobytes()).hexdigest() for name in sorted(kept)))
        world.gather(None)  # none leaves before the other
        shutdown()

    ended = in_group(2, work)
    assert [each.code for each in ended] == [0, 0], ended
    assert ended[0].out == ended[1].out


def test_a_codebook_trained_by_loss_moves_its_codes_and_is_not_decayed():
    flags = {"data": ["sample"], "kind": "vq", "recipe": "tiny", "vocab_size": 64, "width": 8, "size": 16, "groups": 2}
    config = resolve(TrainTokenizerConfig, flags | {"kind_settings": ["codebook=loss"]}).config
    torch.manual_seed(0)
    model = untrained(config)
    groups = parameter_groups(model, 0.1)
    assert id(model.quantizer.codebook) not in {
        id(each) for group in groups if group["weight_decay"] for each in group["params"]
    }
    objective = kind_of(config).objective(model, config, 10, SINGLE_PROCESS)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    objective.before_step(0, images, torch.arange(4))
    loss, parts = objective.loss(model, images, None)
    torch.testing.assert_close(loss.detach(), parts["reconstruction"] + 1.25 * parts["commitment"])
    loss.backward()
    moved = model.quantizer.codebook.grad.abs().sum(1).nonzero().squeeze(1)
    used = model.encode(model.preprocess(images)).unique()
    assert 0 < len(moved) <= len(used)
    assert set(moved.tolist()) <= set(used.tolist())


@pytest.mark.parametrize("kind", ["vq"])
def test_unused_codes_are_looked_for_when_one_can_be_due_and_no_later(kind):
    """As if `unused` were read after every step."""
    flags = {"data": ["sample"], "kind": kind, "recipe": "tiny", "vocab_size": 64, "width": 8, "size": 16, "groups": 2}
    config = resolve(TrainTokenizerConfig, flags | {"kind_settings": ["replace_after=3"]}).config
    torch.manual_seed(0)
    model = untrained(config)
    objective = kind_of(config).objective(model, config, 40, SINGLE_PROCESS)
    replaced = 0
    for step in range(30):
        images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        objective.before_step(step, images, torch.arange(2))
        objective.loss(model, images, None)
        objective.after_step(step)
        assert int(model.quantizer.unused.max()) < 3
        replaced += objective.replaced
    assert replaced > 0


def test_a_vocabulary_that_no_grid_has_is_refused(tmp_path, capsys):
    words = training("fsq", tmp_path / "run")
    words[words.index("--vocab-size") + 1] = "1021"
    assert main(words) == 2
    assert "--vocab-size 1021" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_a_loss_that_is_only_tried_leaves_no_trace_in_the_codebook(kind):
    flags = {"data": ["sample"], "kind": kind, "recipe": "tiny", "vocab_size": 64, "width": 8, "size": 16, "groups": 2}
    config = resolve(TrainTokenizerConfig, flags).config
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    states = []
    for tries in (0, 2):
        torch.manual_seed(0)
        model = untrained(config)
        objective = kind_of(config).objective(model, config, 10, SINGLE_PROCESS)
        objective.before_step(0, images, torch.arange(4))
        for _ in range(tries):
            with objective.trial():
                objective.loss(model, images, None)
        objective.loss(model, images, None)
        objective.after_step(0)
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
