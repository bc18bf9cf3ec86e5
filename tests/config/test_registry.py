"""Registries by file and by entry point."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from beitcli.config.fields import coerce, option, settings_of
from beitcli.config.registry import Registry
from beitcli.errors import UsageError


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
