"""Registries by file and by entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from beitcli.config.fields import coerce, option, settings_of
from beitcli.config.registry import Registry
from beitcli.errors import UsageError


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """The modules of a test, which those of the next replace."""
    yield
    for name in [each for each in sys.modules if "_of_tests" in each]:
        del sys.modules[name]


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    """A package of two entries, a private module and a sub-package, beside an installed distribution with three."""
    package = tmp_path / "zoo_of_tests"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__", "inner/__init__", "_shared"):
        (package / f"{name}.py").write_text("")
    (package / "red_panda.py").write_text("ANIMAL = 'own red panda'\n")
    (package / "cat.py").write_text("ANIMAL = 'own cat'\n")
    (tmp_path / "other_zoo.py").write_text("ANIMAL = 'installed dog'\n")
    info = tmp_path / "other_zoo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[zoo_of_tests]\ndog = other_zoo\ncat = other_zoo\nghost = no_such_module\nblank = json\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("zoo_of_tests", "ANIMAL", "animal")


def test_names_are_the_files_then_the_entry_points(registry):
    assert registry.names() == ("cat", "red-panda", "blank", "dog", "ghost")


def test_load_imports_the_entry_and_our_own_wins(registry):
    assert registry.load("red-panda") == "own red panda"
    assert registry.load("dog") == "installed dog"
    assert registry.load("cat") == "own cat"


def test_an_unknown_name_is_refused_with_the_nearest(registry):
    with pytest.raises(UsageError, match="no animal 'red-pand'") as caught:
        registry.load("red-pand")
    assert "red-panda" in caught.value.hint


@pytest.mark.parametrize("name", ["ghost", "blank"])
def test_a_broken_installed_entry_is_named(registry, name):
    with pytest.raises(UsageError, match=f"Animal '{name}' of module .* cannot be loaded"):
        registry.load(name)


def test_a_setting_takes_its_choices_from_a_registry(registry):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        animal: str = option("cat", "Which.", choices=registry.names)

    setting = settings_of(Config)["animal"]
    assert coerce(setting, "dog", "--animal") == "dog"
    with pytest.raises(UsageError, match="--animal is 'cow', which is no choice"):
        coerce(setting, "cow", "--animal")


@pytest.mark.parametrize("given", ["dog,cat", "dog;cat", ["dog, cat"], ["dog", "cat", "dog"], ("dog", "cat")])
def test_a_list_of_choices_is_separated_by_commas(registry, given):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        animals: tuple[str, ...] = option((), "Which.", choices=registry.names)

    setting = settings_of(Config)["animals"]
    assert coerce(setting, given, "--animals") == ("dog", "cat")
    assert coerce(setting, "", "--animals") == ()
    with pytest.raises(UsageError, match="--animals is 'cow', which is no choice"):
        coerce(setting, "dog,cow", "--animals")


def test_names_import_no_package_on_the_way(tmp_path, monkeypatch):
    """Not even those that the entries' package lies in."""
    inner = tmp_path / "heavy_of_tests" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise ImportError('too heavy')\n")
    (inner / "__init__.py").touch()
    (inner / "one.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Registry("heavy_of_tests.inner", "ENTRY", "entry").names() == ("one",)


# entries of other packages that are broken, or written in another way


def install(folder: Path, points: str, **modules: str) -> Registry:
    """A registry without entries of its own, beside an installed distribution; in names of modules, `__` is a dot."""
    (folder / "empty_zoo").mkdir()
    (folder / "empty_zoo" / "__init__.py").touch()
    for name, source in modules.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    info = folder / "modules_of_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: modules-of-tests\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[empty_zoo]\n{points}")
    return Registry("empty_zoo", "ANIMAL", "animal")


@pytest.mark.parametrize(
    "source",
    ["ANIMAL = = 1", "raise ValueError('no zoo')", "import no_such_module", "raise SystemExit(3)", "", "\0"],
)
def test_only_the_name_of_a_broken_entry_fails(tmp_path, monkeypatch, source):
    modules = {"bad_zoo_of_tests": source, "good_zoo_of_tests": "ANIMAL = dict(name='fine')"}
    registry = install(tmp_path, "bad = bad_zoo_of_tests\ngood = good_zoo_of_tests\n", **modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.names() == ("bad", "good")
    assert registry.entries() == {"good": {"name": "fine"}}
    assert {"name": "fine"} in registry.written
    assert registry.literal("bad", "ANIMAL", "none") == "none"
    with pytest.raises(UsageError, match=r"Animal 'bad' of module .* cannot be loaded: \w+(Error|Exit)"):
        registry.load("bad")


def test_a_malformed_entry_point_is_one_that_cannot_be_loaded(tmp_path, monkeypatch):
    registry = install(tmp_path, "bad = no module!\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (registry.names(), registry.entries(), registry.written) == (("bad",), {}, [])
    with pytest.raises(UsageError, match="Animal 'bad' of module 'no module!' cannot be loaded"):
        registry.load("bad")


def test_source_is_read_without_importing_the_packages_above_it(tmp_path, monkeypatch):
    modules = {"loud_of_tests__one": "KEYS = 1\nANIMAL = dict(legs=4)\n", "bare_of_tests__two": "KEYS = 2\n"}
    registry = install(tmp_path, "one = loud_of_tests.one\ntwo = bare_of_tests.two\n", **modules)
    (tmp_path / "loud_of_tests" / "__init__.py").write_text("raise ValueError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [registry.literal(name, "KEYS") for name in registry.names()] == [1, 2]
    assert registry.written == [{"legs": 4}]
    assert not {"loud_of_tests", "bare_of_tests"} & set(sys.modules)
    assert list(registry.entries()) == []


def test_an_entry_point_may_name_the_attribute(tmp_path, monkeypatch):
    source = "class Pets:\n    hamster = 'soft'\nOTHER: dict = dict(legs=2)\nANIMAL = dict(legs=8)\nKEYS = ('a',)\n"
    points = "bird = pets_of_tests:OTHER\nhamster = pets_of_tests:Pets.hamster\nspider = pets_of_tests\n"
    registry = install(tmp_path, points, pets_of_tests=source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.entries() == {"bird": {"legs": 2}, "hamster": "soft", "spider": {"legs": 8}}
    assert registry.written == [{"legs": 2}, {"legs": 8}]
    assert registry.literal("bird", "KEYS") == ("a",)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEYS = ('a',)", ("a",)),
        ("KEYS: tuple[str, ...] = ('a',)", ("a",)),
        ("KEYS: tuple[str, ...]", "none"),
        ("KEYS = ('a',) + ('b',)", "none"),
        ("KEYS = {[]: 1}", "none"),
        ("KEYS = (", "none"),
        ("OTHER.KEYS = 1", "none"),
    ],
)
def test_a_literal_is_read_however_it_is_written(tmp_path, monkeypatch, line, value):
    registry = install(tmp_path, "one = one_zoo_of_tests\n", one_zoo_of_tests=line)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.literal("one", "KEYS", "none") == value
