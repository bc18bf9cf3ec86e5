"""Targets: settings, files of runs, files of tokens, caches. What a cache seals by a checksum is sealed again here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from contextlib import suppress
from types import SimpleNamespace

import numpy as np

from fuzz_readers.mutators import (
    json_lines_mutation,
    json_mutation,
    parquet_mutation,
    safetensors_mutation,
    zip_mutation,
)
from fuzz_readers.target import Place, Prepared, Target
from fuzz_readers.weights import own_checkpoint
from tests.faults.mutations import mutated


def _settings(place: Place) -> Prepared:
    from beitcli.config.finetune import FinetuneConfig
    from beitcli.config.pretrain import PretrainConfig
    from beitcli.config.train_tokenizer import TrainTokenizerConfig

    path = place.folder / "config.toml"
    kinds = {"pretrained": PretrainConfig, "finetuned": FinetuneConfig, "tokenizer": TrainTokenizerConfig}
    seeds = [(place.models / name / "config.toml").read_bytes() for name in kinds]

    def use(data: bytes) -> None:
        from beitcli.config.resolve import resolve
        from beitcli.errors import BeitError

        path.write_bytes(data)
        for kind in kinds.values():
            for given in ({"config": str(path)}, {"out": str(place.folder), "resume": True}):
                with suppress(BeitError):
                    resolve(kind, given)
        resolve(PretrainConfig, {"config": str(path)})

    def mutate(content: bytes, seed: int) -> bytes:
        """One line's value, or lines of two files."""
        lines, values = content.splitlines(keepends=True), seeds[seed % 3].splitlines(keepends=True)
        number = seed // 3 % max(1, len(lines))
        if not lines or b" = " not in lines[number] or seed % 2:
            return mutated(content, seed)
        other = values[seed // 7 % len(values)].partition(b" = ")[2] or b"nan\n"
        odd = (b"-1", b"1e999", b"nan", b"[]", b"{}", b'""', b"[[1]]", b"9" * 400, b"1979-05-27", b'"\\u0000"', b"inf")
        value = other if seed // 11 % 2 else odd[seed // 13 % len(odd)] + b"\n"
        lines[number] = lines[number].partition(b" = ")[0] + b" = " + value
        return b"".join(lines)

    return Prepared(use, seeds, mutate)


def _run_files(place: Place) -> Prepared:
    """metrics.jsonl: what `beit runs` shows, and what a resumed run goes on with; the same of .pictures.jsonl."""
    run = shutil.copytree(place.models / "pretrained", place.folder / "runs" / "a")
    metrics = (run / "metrics.jsonl").read_bytes()

    def use(data: bytes) -> None:
        from beitcli.config.about import RunsConfig
        from beitcli.config.pretrain import PretrainConfig
        from beitcli.engine.runs import list_runs
        from beitcli.engine.trainer.metric_writers.jsonl import MetricsJsonl
        from beitcli.engine.trainer.picture_stamps import changed_pictures
        from beitcli.runtime.storage.run_dir import RunFolder

        (run / "metrics.jsonl").write_bytes(data)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        list_runs(RunsConfig(folder=str(place.folder / "runs")))
        folder = RunFolder.create(run, resume=True)
        writer = MetricsJsonl()
        writer.start(folder, PretrainConfig(steps=1))
        writer.rewind(3)
        (run / ".pictures.jsonl").write_bytes(data)
        changed_pictures(folder, lambda number: f"{number}.png", 5)

    return Prepared(use, [metrics, b"[0, 3, 4]\n[1, -1, -1]\n[2, 5, 6]\n"], json_lines_mutation)


def _listed_run(place: Place) -> Prepared:
    """trainer.json and config.toml as `beit runs` reads them."""
    run = shutil.copytree(place.models / "pretrained", place.folder / "runs" / "a")
    trainer = own_checkpoint(run) / "trainer.json"
    settings = run / "config.toml"

    def use(data: bytes) -> None:
        from beitcli.config.about import RunsConfig
        from beitcli.engine.runs import list_runs
        from beitcli.runtime.storage.safe_json import dump_json

        (settings if data[:1] == b"#" else trainer).write_bytes(data)
        for key in ("when", "loss", "step", "command"):
            dump_json([vars(each) for each in list_runs(RunsConfig(folder=str(place.folder / "runs"), sort=key))])

    return Prepared(use, [trainer.read_bytes(), settings.read_bytes()], json_mutation)


_KIND = ((4, 4), 16, hashlib.sha256(b"tokenizer").hexdigest())


def _token_file(suffix: str):  # type: ignore[no-untyped-def]
    def prepare(place: Place) -> Prepared:
        from beitcli.engine.io.token_files import TokenKind, open_token_file
        from beitcli.engine.io.token_lines import parse_line

        kind, path = TokenKind(*_KIND), place.folder / f"tokens{suffix}"
        file = open_token_file(path, kind, resume=False)
        for number in range(4):
            file.add({"path": f"{number}.png", "grid": [4, 4], "tokens": list(range(16))})
        file.close()
        seed = path.read_bytes()

        def use(data: bytes) -> None:
            from beitcli.config.tokenize import TokenizeConfig
            from beitcli.engine.tokenize import _token_lines
            from beitcli.errors import BeitError

            path.write_bytes(data)
            if suffix == ".jsonl":
                with suppress(BeitError):
                    list(_token_lines(SimpleNamespace(inputs=(str(path),)), None))
                with suppress(BeitError):
                    list(_token_lines(TokenizeConfig(inputs=("-",), tokenizer="x"), io.BytesIO(data)))
                with suppress(BeitError):
                    parse_line(data.decode(errors="replace"), "here")
            taken = open_token_file(path, kind, resume=True)
            taken.add({"path": "more.png", "grid": [4, 4], "tokens": [1] * 16})
            taken.close()
            if suffix == ".jsonl":
                again = open_token_file(path, kind, resume=True)
                assert "more.png" in again.held
                again.close()

        how = {
            ".jsonl": json_lines_mutation, ".npz": zip_mutation, ".safetensors": safetensors_mutation,
            ".parquet": parquet_mutation,
        }  # fmt: skip
        return Prepared(use, [seed], how[suffix])

    return prepare


def _token_cache(place: Place) -> Prepared:
    from beitcli.data.caches.token_cache import TokenCache

    cache = TokenCache(place.folder / "tokens", {"x": 1}, tokens=4, vocab_size=300)
    cache.add(0, 0, 7, np.arange(4))
    folder = cache.folder
    cache.close()
    seeds = [(folder / "epoch-0000000.rows").read_bytes()]

    def use(data: bytes) -> None:
        """The tokens of the first record, with its checksum made right, then bytes as they are; and meta.json."""
        record = data[4:12].ljust(8, b"\0")
        sealed = cache._sum(0, 0, 7, record).to_bytes(4, "little") + record + data[12:]
        for content, meta in ((sealed, None), (data, data)):
            (folder / "epoch-0000000.rows").write_bytes(content)
            if meta is not None:
                (folder / "meta.json").write_bytes(meta)
            opened = TokenCache(place.folder / "tokens", {"x": 1}, tokens=4, vocab_size=300)
            for index in (0, 1, 2**40):
                row = opened.row(0, index, 7)
                assert row is None or (row.shape == (4,) and row.min() >= 0 and row.max() < 300)
            opened.close()

    return Prepared(use, seeds)


def _feature_cache(place: Place) -> Prepared:
    """about.json, or the arrays with their sums made right; the first byte chooses which."""
    from beitcli.data.caches.feature_cache import FeatureWriter, load_features

    about = {"weights": "x", "images": 3}
    with FeatureWriter(place.folder, about, [1], 3, 2) as writer:
        writer.add(np.ones((1, 3, 2), np.float32), np.arange(3), [0, 1, 2], [])
        writer.finish()
    folder = writer.final
    names = ("about.json", "layer-01.npy", "labels.npy", "rows.npy")
    kept = {name: (folder / name).read_bytes() for name in names}

    def use(data: bytes) -> None:
        chosen = names[data[0] % 4 if data else 0]
        files = kept | {chosen: data[1:]}
        if chosen != "about.json":
            document = json.loads(kept["about.json"])
            document["crc32"][chosen] = zlib.crc32(data[1:])
            files["about.json"] = json.dumps(document).encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found = load_features(place.folder, about, [1])
        if found is not None:
            assert found.readable_labels.shape == (len(found),)
            found.take(1, slice(0, 2))
            found.moments(1)

    def mutate(content: bytes, seed: int) -> bytes:
        return content[:1] + (json_mutation if content[:1] in b"\0" else mutated)(content[1:], seed)

    return Prepared(use, [bytes([number]) + kept[name] for number, name in enumerate(names)], mutate)


def _index_cache(place: Place) -> Prepared:
    """The index of a folder's listing: with its own checksum, and with one that is made right."""
    from safetensors import safe_open

    from beitcli.data.sources import index_cache

    path = place.folder / "index"
    about = {"size": 5, "name": "x"}
    index_cache.save_index(path, about, {"block": np.arange(5, dtype=np.uint8), "bounds": np.array([0, 5])})
    seed = path.read_bytes()

    def use(data: bytes) -> None:
        path.write_bytes(data)
        index_cache.load_index(path, about)
        with suppress(Exception):
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            index_cache.save_index(path, about, arrays)
        index_cache.load_index(path, about)

    return Prepared(use, [seed], safetensors_mutation)


def _hosts(place: Place) -> Prepared:
    from beitcli.runtime.distributed.rank_env import expand_hosts

    def use(data: bytes) -> None:
        expand_hosts(os.fsdecode(data))

    return Prepared(use, [b"gpu[01-03,7],login", b"a[1-2]b[3-4]", b"n[1-99999]"])


TARGETS = [
    Target("settings", "config.toml, --config FILE, a resumed run's settings", _settings, 8192),
    Target("metrics", "metrics.jsonl and .pictures.jsonl of a run", _run_files, 8192),
    Target("runs", "trainer.json and config.toml as `beit runs` reads them", _listed_run, 8192),
    *(Target(f"tokens {suffix}", f"{suffix} of visual tokens, taken up", _token_file(suffix), 8192)
      for suffix in (".jsonl", ".npz", ".safetensors", ".parquet")),
    Target("token cache", "records and meta.json of the token cache", _token_cache, 1024),
    Target("feature cache", "about.json and arrays of the feature cache", _feature_cache, 4096),
    Target("index cache", "indexes of folders and shards", _index_cache, 4096),
    Target("hosts", "Slurm's list of machines", _hosts, 256),
]  # fmt: skip
