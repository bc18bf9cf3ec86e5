"""`eval --protocol elbo` from end to end, against `pretrain`'s own metrics and against terms by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from beitcli.cli.tables import comparison_table, rows_table
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CenterTwoCropTransform, fit_center, normalize, to_array
from beitcli.engine.mim.bound_measurement import BoundMeter
from beitcli.engine.mim.task import transform_and_masking
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer
from beitcli.engine.trainer.data import hold_out
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.masking import keyed_mask, make_masking
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.runtime.compute.device import Compute
from beitcli.tokenizers.open import open_tokenizer, open_tokenizer_of
from tests.helpers.processes import in_processes

WORDS = ("--protocol", "elbo", "--workers", 0, "--device", "cpu")
CPU = Batching(Compute(torch.device("cpu"), "fp32"), 7, 0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def bound(beit, labelled_folder):
    """`bound(RUN, *flags)`: the JSON for the labelled folder, which is the training data, too."""

    def run(model, *flags, data=labelled_folder, train=labelled_folder, code=0):
        trained = () if train is None else ("--train", train)
        ended = beit("eval", model, data, *trained, *WORDS, *flags)
        assert ended.code == code, ended.err
        run.err = ended.err
        return json.loads(ended.out) if ended.out else None

    return run


def _common(data: Path, run: Path) -> dict[str, object]:
    return {"data": [str(data)], "out": str(run), "device": "cpu", "workers": 0, "steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory, labelled_folder) -> dict[str, Path]:
    """Two steps of `pretrain` with a logit-Laplace dVAE, and with vector quantization."""
    root, runs = tmp_path_factory.mktemp("runs"), {}
    tokenizer = {"recipe": "tiny", "vocab_size": 16, "size": 16, "width": 8}
    for name, more in (("laplace", {"reconstruction": "logit-laplace"}), ("vq", {"kind": "vq"})):
        place = root / f"tokenizer-{name}"
        train_tokenizer(resolve(TrainTokenizerConfig, tokenizer | more | _common(labelled_folder, place)).config)
        flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(place)}
        pretrain(resolve(PretrainConfig, flags | _common(labelled_folder, root / name)).config)
        runs[name] = root / name
    return runs


def row(document: dict, prior: str, z: str) -> dict:
    return next(each for each in document["stage2"] if (each["prior"], each["z"]) == (prior, z))


def test_one_point_over_hidden_positions_is_the_held_out_loss_of_pretrain(labelled_folder, tokenizer_run, tmp_path):
    """The protocol's meter, with the views of pretraining on the images that it measured on."""
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer_run)}
    config = resolve(PretrainConfig, flags | _common(labelled_folder, tmp_path / "run")).config
    report = pretrain(config)
    model, checkpoint = open_masked_image_model(str(tmp_path / "run"))
    tokenizer, masking = open_tokenizer_of(checkpoint), make_masking("blockwise", (4, 4), 6, config.min_block)
    transform, masks = transform_and_masking(config, tokenizer, masking)
    meter = BoundMeter(
        model=model,
        tokenizer=tokenizer,
        normalization=checkpoint.normalization,
        batching=CPU,
        all_positions=False,
        samples=0,
        seed=0,
        deviation=0.1,
    )
    held = hold_out(open_data([str(labelled_folder)]), config.holdout, config.seed)
    terms, bad = meter.measure(held.measured, transform, masks)
    assert (len(terms["point model"]), bad) == (len(held.measured), [])
    assert float(terms["point model"].mean()) == pytest.approx(report.loss * 6, rel=1e-5)


def test_every_figure_equals_one_by_hand(bound, pretrained_run, labelled_folder):
    document = bound(pretrained_run, "--positions", "all", "--samples", 3)
    model, checkpoint = open_masked_image_model(str(pretrained_run))
    tokenizer, source = open_tokenizer_of(checkpoint), open_data([str(labelled_folder)])
    transform = CenterTwoCropTransform(image_size=(32, 32), token_size=(16, 16))
    masking = make_masking("blockwise", (4, 4), 6, 4)
    views = [{n: torch.from_numpy(v)[None] for n, v in transform(source.image(i)).items()} for i in range(24)]
    decoded, point, kls = [], [], []
    with torch.no_grad():
        for index, view in enumerate(views):
            logits = tokenizer.model.token_logits(view["token_images"].float() / 255).flatten(2)[0].T
            tokens = logits.argmax(dim=1)
            mask = torch.from_numpy(keyed_mask(masking, 0, 0, index)).reshape(1, -1)
            outputs = model(normalize(view["images"], MEAN, STD), mask, torch.arange(16)[None])
            p, q = (torch.distributions.Categorical(logits=each.double()) for each in (outputs, logits))
            point.append(float(-p.log_prob(tokens).sum()))
            kls.append(float(torch.distributions.kl_divergence(q, p).sum()))
            decoded.append(tokenizer.decode(tokens[None], (4, 4)))
    levels = np.stack([view["token_images"][0].numpy() for view in views]).astype(np.float64)
    means = torch.cat(decoded).double().numpy()
    deviation = math.sqrt(np.mean((means - levels / 255) ** 2))
    assert document["deviation"] == pytest.approx(255 * deviation, rel=1e-5)
    theirs = scipy.stats.norm(means, deviation)
    upper = np.where(levels == 255, 1.0, theirs.cdf((levels + 0.5) / 255))
    lower = np.where(levels == 0, 0.0, theirs.cdf((levels - 0.5) / 255))
    likelihood = np.log(upper - lower).sum(axis=(1, 2, 3))
    argmax, posterior = document["stage1"]
    assert argmax["nats"] == pytest.approx(likelihood.mean(), rel=1e-5)
    assert argmax["se"] == pytest.approx(likelihood.std(ddof=1) / math.sqrt(24), rel=1e-4)
    assert argmax["bits_per_dim"] == pytest.approx(-likelihood.mean() / (768 * math.log(2)), rel=1e-5)
    assert argmax["density"] == pytest.approx(argmax["nats"], rel=0.01)  # 1/255 is small beside the deviation
    ours = row(document, "model", "argmax")
    assert ours["nats"] == pytest.approx(np.mean(point), rel=1e-5)
    assert ours["bound"] == pytest.approx((likelihood - point).mean(), rel=1e-5)
    assert ours["bound_se"] == pytest.approx((likelihood - point).std(ddof=1) / math.sqrt(24), rel=1e-4)
    assert row(document, "model", "posterior")["nats"] == pytest.approx(np.mean(kls), rel=1e-5)
    assert row(document, "uniform", "argmax")["nats"] == pytest.approx(16 * math.log(16))
    entropy = 16 * math.log(16) - row(document, "uniform", "posterior")["nats"]
    assert document["posterior_entropy"] == pytest.approx(entropy)
    assert document["bound"] == row(document, "model", "posterior")["bound"]
    assert document["bound"] == pytest.approx(posterior["nats"] - np.mean(kls), rel=1e-6)
    expected = {"images": 24, "bad": 0, "num_positions": 16, "dimensions": 768, "likelihood": "gaussian"}
    assert {name: document[name] for name in expected} == expected


def test_unigrams_are_the_run_s_own_counts_or_those_of_train(bound, pretrained_run, tmp_path, labelled_folder):
    document = bound(pretrained_run)
    assert (document["unigram_counts"], document["num_positions"]) == ("run", 6)
    shutil.copytree(pretrained_run, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (folder / "trainer.safetensors").unlink()
    counted = bound(tmp_path / "run")
    assert counted["unigram_counts"] == "train"
    tokenizer, source = open_tokenizer(str(pretrained_run)), open_data([str(labelled_folder)])
    transform = CenterTwoCropTransform(image_size=(32, 32), token_size=(16, 16))
    views = torch.stack([torch.from_numpy(transform(source.image(i))["token_images"]) for i in range(24)])
    tokens = tokenizer.encode(views)
    frequencies = (torch.bincount(tokens.flatten(), minlength=16) + 1.0) / (24 * 16 + 16)
    masks = np.stack([keyed_mask(make_masking("blockwise", (4, 4), 6, 4), 0, 0, i).reshape(-1) for i in range(24)])
    by_hand = -frequencies.log()[tokens[torch.from_numpy(masks)]].sum() / 24
    assert row(counted, "unigram", "argmax")["nats"] == pytest.approx(float(by_hand), rel=1e-5)
    assert row(counted, "model", "argmax") == row(document, "model", "argmax")


def test_samples_follow_the_seed_and_have_an_error(bound, pretrained_run):
    first, again = bound(pretrained_run, "--samples", 2), bound(pretrained_run, "--samples", 2)
    assert first == again
    other = bound(pretrained_run, "--samples", 2, "--seed", 1)
    assert other["stage1"][0] == first["stage1"][0]
    assert other["stage1"][1] != first["stage1"][1]
    apart = abs(other["stage1"][1]["nats"] - first["stage1"][1]["nats"])
    assert 0 < apart < 6 * first["stage1"][1]["sampling_se"]
    none = bound(pretrained_run, "--samples", 0)
    assert [each["z"] for each in none["stage1"]] == ["argmax"]
    assert none["bound"] == row(none, "model", "argmax")["bound"]
    assert row(none, "model", "posterior")["bound"] is None
    assert bound(pretrained_run, "--samples", 1)["stage1"][1]["sampling_se"] is None


def test_logit_laplace_needs_no_training_images(bound, other_runs, labelled_folder):
    document = bound(other_runs["laplace"], train=None)
    assert (document["likelihood"], document["deviation"], document["train"]) == ("logit-laplace", None, None)
    assert document["stage1"][0]["nats"] < 0
    assert [each["prior"] for each in document["stage2"][::2]] == ["model", "uniform", "unigram"]


def test_a_quantizer_s_posterior_is_a_point(bound, other_runs):
    document = bound(other_runs["vq"])
    argmax, posterior = document["stage1"]
    assert (document["posterior_entropy"], posterior["sampling_se"]) == (0.0, 0.0)
    assert posterior["nats"] == pytest.approx(argmax["nats"])
    for prior in ("model", "uniform", "unigram"):
        assert row(document, prior, "argmax")["nats"] == row(document, prior, "posterior")["nats"]


def test_a_tokenizer_without_a_decoder_gives_stage_2_alone(bound, pretrained_run, tmp_path):
    encoder = open_tokenizer(str(pretrained_run)).model.encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    document = bound(pretrained_run, "--tokenizer", tmp_path, train=None)
    assert "no decoder: stage 2 alone" in bound.err
    assert [document[name] for name in ("stage1", "likelihood", "dimensions", "bound")] == [[], None, None, None]
    whole = bound(pretrained_run)
    for ours, theirs in zip(document["stage2"], whole["stage2"], strict=True):
        assert ours == theirs | {"bound": None, "bound_se": None, "bits_per_dim": None}


def test_unreadable_images_are_left_out_and_counted(bound, pretrained_run, labelled_folder, tmp_path):
    shutil.copytree(labelled_folder, tmp_path / "data")
    (tmp_path / "data" / "red" / "01.png").write_bytes(b"broken")
    document = bound(pretrained_run, data=tmp_path / "data", train=tmp_path / "data")
    assert (document["images"], document["bad"], document["train_images"]) == (23, 1, 23)
    bound(pretrained_run, "--max-bad", 0, data=tmp_path / "data", code=3)


def test_splits_of_the_data_are_used_where_no_train_is_given(bound, pretrained_run, labelled_folder):
    document = bound(pretrained_run, "--limit", 12, data="sample", train=None)
    assert (document["images"], document["train_images"], document["train"]) == (12, 12, "sample, split train")
    bound(pretrained_run, train=None, code=2)
    assert "--protocol elbo fits the variance" in bound.err
    assert "--train DATA" in bound.err


def test_what_has_no_bound_is_refused(bound, beit, pretrained_run, finetuned_run, labelled_folder, tmp_path):
    bound(finetuned_run, code=4)
    assert "is a classifier" in bound.err
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "target": "pixels"}
    pretrain(resolve(PretrainConfig, flags | _common(labelled_folder, tmp_path / "pixels")).config)
    bound(tmp_path / "pixels", code=4)
    assert "learned from pixels" in bound.err
    bound(pretrained_run, "--size", 64, code=2)
    assert "--size" in bound.err
    ended = beit("eval", finetuned_run, labelled_folder, "--samples", 2)
    assert (ended.code, "--samples is for --protocol elbo" in ended.err) == (2, True)


def test_the_tokenizer_s_image_is_resized_as_in_training(bound, tokenizer_run, labelled_folder, tmp_path):
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer_run)}
    flags |= {"token_filter": "bicubic"} | _common(labelled_folder, tmp_path / "run")
    pretrain(resolve(PretrainConfig, flags).config)
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (folder / "trainer.safetensors").unlink()  # so that tokens are counted here
    document = bound(tmp_path / "run", "--positions", "all", "--samples", 0)
    tokenizer, source = open_tokenizer(str(tokenizer_run)), open_data([str(labelled_folder)])

    def unigram(kind: int) -> float:
        views = np.stack([to_array(fit_center(source.image(i), (16, 16), filter=kind)) for i in range(24)])
        counts = torch.bincount(tokenizer.encode(torch.from_numpy(views)).flatten(), minlength=16).double()
        return -float((counts * ((counts + 1) / (24 * 16 + 16)).log()).sum()) / 24

    bicubic, lanczos = unigram(Image.Resampling.BICUBIC), unigram(Image.Resampling.LANCZOS)
    assert bicubic != pytest.approx(lanczos, rel=1e-4)
    assert row(document, "unigram", "argmax")["nats"] == pytest.approx(bicubic, rel=1e-6)


def test_a_run_that_hid_nothing_has_all_positions_only(bound, tokenizer_run, labelled_folder, tmp_path):
    flags = {"recipe": "tiny", "image_size": 32, "mask": False, "predict": "all", "num_masked": None}
    flags |= {"tokenizer": str(tokenizer_run)}
    pretrain(resolve(PretrainConfig, flags | _common(labelled_folder, tmp_path / "run")).config)
    bound(tmp_path / "run", code=2)
    assert "hid no patches" in bound.err
    assert bound(tmp_path / "run", "--positions", "all")["num_positions"] == 16


def test_another_tokenizer_is_refused_where_its_codes_differ(
    bound, pretrained_run, other_runs, tokenizer_run, tmp_path
):
    assert bound(pretrained_run, "--tokenizer", tokenizer_run)["tokenizer"] == str(tokenizer_run)
    assert "SHA-256" not in bound.err
    earlier = sorted((tokenizer_run / "checkpoints").glob("step-*"))[0]
    assert bound(pretrained_run, "--tokenizer", earlier)["tokenizer"] == str(earlier)
    assert "is not that of the tokenizer that" in bound.err
    flags = {"recipe": "tiny", "vocab_size": 8, "size": 16, "width": 8}
    train_tokenizer(resolve(TrainTokenizerConfig, flags | _common(Path("sample"), tmp_path / "eight")).config)
    bound(pretrained_run, "--tokenizer", tmp_path / "eight", code=4)
    assert "8 codes" in bound.err


@pytest.mark.slow
def test_figures_of_two_processes_are_the_same_to_the_last_digit(pretrained_run, labelled_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(labelled_folder, data)
    (data / "red" / "01.png").write_bytes(b"broken")
    words = ["eval", pretrained_run, data, "--train", labelled_folder, *WORDS, "--batch-size", 5, "--json"]
    (alone,), (first, second) = in_processes(1, words), in_processes(2, words)
    assert (alone.code, first.code, second.code, second.out) == (0, 0, 0, ""), (first.err, second.err)
    assert json.loads(first.out) == json.loads(alone.out)
    assert (json.loads(first.out)["images"], json.loads(first.out)["bad"]) == (23, 1)


def test_a_terminal_shows_both_tables(bound, pretrained_run):
    document = bound(pretrained_run, "--samples", 0)
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(rows_table(document["stage2"], "stage2"))
    lines = captured.get().splitlines()
    assert lines[0].strip() == "stage2"
    assert lines[1].split() == ["prior", "z", "nats", "se", "bound", "bound", "se", "bits", "per", "dim"]
    assert lines[2].split()[:3] == ["model", "argmax", f"{document['stage2'][0]['nats']:.4f}"]
    assert len(lines[3].split()) == 4  # without samples the expectation has no bound


def test_fewer_bits_are_the_better_ones_of_several_models():
    rows = [{"model": "a", "bits_per_dim": 4.0, "bound": -9.0}, {"model": "b", "bits_per_dim": 5.0, "bound": -10.0}]
    table = comparison_table(rows, "model")
    styles = [[str(cell.style) for cell in column._cells] for column in table.columns[1:]]
    assert styles == [["bold", ""], ["bold", ""]]
