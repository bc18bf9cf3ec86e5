"""`pretrain --probe`: a figure beside the others, and not one bit of training changed by it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from beitcli.config.normalization import IMAGENET
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.events import ignore
from beitcli.engine.pretrain import pretrain
from beitcli.engine.probing.online_knn import OnlineProbe
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import join, shutdown
from tests.helpers.processes import in_group

CPU = Compute(torch.device("cpu"), "fp32")


def settings(data, tokenizer, out, **more):
    flags = {"recipe": "tiny", "data": [str(data)], "tokenizer": str(tokenizer), "image_size": 32, "num_masked": 6,
             "steps": 4, "batch_size": 8, "save_every": 2, "log_every": 1, "drop_path": 0.2, "device": "cpu",
             "workers": 0, "measure_share": 1, "out": str(out)}  # fmt: skip
    return resolve(PretrainConfig, flags | more).config


def test_a_probe_changes_no_bit_of_training(tmp_path, labelled_folder, tokenizer_run):
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "plain"))
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "watched", probe=str(labelled_folder)))
    for step in ("step-0000002", "step-0000004"):
        for name in ("model.safetensors", "trainer.safetensors", "config.json"):
            plain, watched = (
                (tmp_path / run / "checkpoints" / step / name).read_bytes() for run in ("plain", "watched")
            )
            assert plain == watched, (step, name)
    plain, watched = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
                      for run in ("plain", "watched"))  # fmt: skip
    assert [("probe_top1" in line) for line in watched] == [False, True, False, True]
    assert all(0 <= line["probe_top1"] <= 1 for line in watched[1::2])
    prefetch_to_device = {"images_per_second", "data_wait_share", "save_stall_seconds", "probe_top1"}
    assert [{k: v for k, v in line.items() if k not in prefetch_to_device} for line in plain] == [
        {k: v for k, v in line.items() if k not in prefetch_to_device} for line in watched
    ]


def test_a_run_goes_on_with_another_probe_or_none(tmp_path, labelled_folder, tokenizer_run, beit):
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", probe=str(labelled_folder)))
    ended = beit("pretrain", "--out", tmp_path / "run", "--resume", "--probe", "sample", "--workers", 0)
    assert ended.code == 0, ended.err


def test_the_figure_is_that_of_eval_on_the_same_images(labelled_folder, pretrained_run):
    """A fifth of 24 images by the other 19 or 20; the colours are told apart by nearly any features."""
    probe = OnlineProbe(str(labelled_folder), (32, 32), IMAGENET, 0, CPU, ignore)
    assert (len(probe.train[1]), len(probe.val[1])) == (20, 4)
    assert set(probe.train[1].tolist()) == {0, 1, 2}
    model, _ = open_masked_image_model(str(pretrained_run))
    before = torch.get_rng_state()
    assert probe.top1(model) >= 0.75
    assert torch.equal(torch.get_rng_state(), before)
    assert probe.top1(model) == probe.top1(model)


def test_one_process_of_several_opens_and_reads_the_data_before_the_others(labelled_folder):
    """So what is downloaded is downloaded once: the others find it in the cache."""

    def work(rank: int) -> None:
        world, moments = join(torch.device("cpu"), 1, 30), []

        def watch(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "os.scandir", "os.listdir") and str(labelled_folder) in str(args[0]):
                moments.append(time.monotonic_ns())  # of the machine, so of all processes
                time.sleep(0.01 * (rank == 0))  # the others have time to be too early

        sys.addaudithook(watch)
        probe = OnlineProbe(str(labelled_folder), (32, 32), IMAGENET, 0, replace(CPU, world=world), ignore)
        print(json.dumps([len(probe.train[1]), min(moments), max(moments)]))
        world.gather(None)  # none leaves before the others
        shutdown()

    ended = in_group(2, work)
    assert [each.code for each in ended] == [0, 0], ended
    (images, _, last), (others, first, _) = (json.loads(each.out) for each in ended)
    assert (images, others) == (20, 20)
    assert last < first


def test_splits_of_the_data_are_used(pretrained_run):
    probe = OnlineProbe("sample", (32, 32), IMAGENET, 0, CPU, ignore)
    assert (len(probe.train[1]), len(probe.val[1])) == (480, 120)


def test_a_probe_without_labels_is_refused_before_training(tmp_path, labelled_folder, tokenizer_run, picture):
    with pytest.raises(DataError, match="no labels"):
        pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", probe=str(picture("flat/a.png").parent)))
    assert not (tmp_path / "run").exists()
