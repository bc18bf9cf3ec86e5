"""Help and misspellings: usage and examples first, nothing heavy imported, and the nearest word suggested."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import beitcli
from beitcli import __version__
from beitcli.cli.command_table import COMMANDS, Command
from beitcli.cli.common_options import _COMMON, is_common
from beitcli.cli.help_page import OWN_OPTIONS
from beitcli.config import synonyms
from beitcli.config.common import MASKING_NAMES, Launched
from beitcli.config.fields import Setting, settings_of
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.recipe_files import read_recipe, recipe_names

each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
TASKS = settings_of(FinetuneConfig)["task"].choices
RECIPE_COMMANDS = ("pretrain", "finetune", "train-tokenizer")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@each_command
def test_help_begins_with_usage_and_examples(beit: Callable, command: Command, flag: str) -> None:
    ended = beit(command.name, flag)
    text = ESCAPE.sub("", ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert text.strip().startswith(f"Usage: beit {command.name}")
    places = [text.index(part) for part in (command.summary, "Examples:", command.examples[0], "Options")]
    assert places == sorted(places)
    for example in command.examples:
        assert f"$ {example}" in text


OPTION = re.compile(r"(?<![\w-])--?[a-z0-9][a-z0-9-]*")


def flags_of(setting: Setting) -> set[str]:
    return {part for flag in setting.option.flags or (setting.flag,) for part in flag.split("/")}


def offered(text: str) -> set[str]:
    """The options that a help lists; other text may name some, too."""
    return {
        word for line in ESCAPE.sub("", text).splitlines() if line.startswith("│ -") for word in OPTION.findall(line)
    }


@pytest.mark.parametrize(
    ("command", "task"),
    [(each, task) for each in COMMANDS for task in (TASKS if each.name == "finetune" else [None])],
    ids=lambda value: getattr(value, "name", value),
)
def test_help_names_every_option_of_the_task_and_none_of_another(
    beit: Callable, command: Command, task: str | None
) -> None:
    words = offered(beit(command.name, *(["--task", task] if task else []), "--help-all").out)
    for setting in settings_of(command.config).values():
        if not setting.option.argument:
            is_offered = setting.belongs_to(task) and not setting.option.hidden
            assert (flags_of(setting) <= words) == is_offered
            assert (flags_of(setting) & words != set()) == is_offered
    assert {"--json", "-q", "--quiet", "--debug", "--help"} <= words


@each_command
def test_help_shows_the_common_options_and_how_many_more_there_are(beit: Callable, command: Command) -> None:
    of_task = [each for each in settings_of(command.config).values() if each.belongs_to(TASKS[0])]
    settings = [each for each in of_task if not each.option.hidden]
    text = ESCAPE.sub("", beit(command.name, "--help").out)
    labels = [re.split(r"\s{2,}", line[2:])[0] for line in text.splitlines() if line.startswith("│ -")]
    shown = {flag for label in labels for flag in OPTION.findall(label)}
    options = [each for each in settings if not each.option.argument]
    common = [each for each in options if is_common(command.name, each)]
    assert {flag for each in common for flag in flags_of(each)} <= shown
    assert not {flag for each in options if each not in common for flag in flags_of(each)} & shown
    more = f"{len(options) - len(common)} more options: beit {command.name} --help-all"
    assert (more in text) == (len(common) < len(options))
    assert len(common) <= 36


def test_options_that_help_shows_exist() -> None:
    for name, chosen in _COMMON.items():
        (config,) = (each.config for each in COMMANDS if each.name == name)
        missing = set(chosen) - set(settings_of(config))
        assert missing <= {"recipe", "config", "seed"}, (name, missing)


@each_command
@pytest.mark.parametrize("columns", [80, 60])
def test_help_breaks_no_word_and_fits_the_terminal(
    beit: Callable, monkeypatch: pytest.MonkeyPatch, command: Command, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = ESCAPE.sub("", beit(command.name, "--help-all").out)
    assert max(map(len, text.splitlines())) <= columns
    for setting in settings_of(command.config).values():
        if not setting.belongs_to(TASKS[0]) or setting.option.hidden:
            continue
        words = set(re.sub(r"[│\s]+", " ", text).split())
        assert set(setting.help.split()) <= words, setting.name
        assert setting.option.argument or flags_of(setting) <= set(OPTION.findall(text))
        if 0 < len("|".join(setting.choices)) < columns - 24 and not setting.many:
            assert "|".join(setting.choices) in text


def test_example_that_is_too_long_continues_with_a_backslash(beit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = ESCAPE.sub("", beit("embed", "-h").out)
    assert "$ beit embed runs/mine photos/ --layer 9 --pool cls \\\n       --json | head -1\n" in text
    assert "     # without computing them again\n" in text


@pytest.mark.parametrize(
    ("line", "task"),
    [
        ([], "classify"),
        (["--task=segment"], "segment"),
        (["sample", "--recipe", "tiny-detect"], "detect"),
        (["--recipe", "tiny", "--task", "detect"], "detect"),
        (["--task", "sgment", "--recipe", "no-such"], "classify"),
    ],
    ids=str,
)
def test_help_of_finetune_says_whose_settings_it_shows_and_how_to_see_the_others(
    beit: Callable, line: list[str], task: str
) -> None:
    text = ESCAPE.sub("", beit("finetune", *line, "--help-all").out)
    others = [f"--task {each} --help" for each in TASKS if each != task]
    assert f"Below are the settings of --task {task}; of others: beit finetune {' or '.join(others)}." in text
    labels = re.sub(r"[│\s]+", " ", text)
    assert "a folder for each class (FOLDER/CLASS/image.jpg)" in labels
    assert "a segmenter from FOLDER/images and FOLDER/masks" in labels
    own = {"classify": "--mixup", "segment": "--ignore-index", "detect": "--regions"}
    assert {name for name, flag in own.items() if flag in offered(text)} == {task}
    panels = re.findall(r"^╭─ (\w+)", text, re.MULTILINE)
    last = {"classify": [], "segment": ["Segmentation"], "detect": ["Detection"]}[task]
    assert panels[-3 - len(last) :] == ["Augmentation", *last, "Machine", "Output"]


@pytest.mark.parametrize("command", ["pretrain", "finetune", "train-tokenizer"])
def test_help_of_a_training_begins_with_what_a_first_one_takes(beit: Callable, command: str) -> None:
    for option in ("--help", "--help-all"):
        text = ESCAPE.sub("", beit(command, option).out)
        flags = re.findall(r"^│ (--[a-z-]+)", text, re.MULTILINE)
        flags = flags[flags.index("--help-all") + 1 :]
        assert flags[:4] == ["--recipe", "--out", "--resume", "--dry-run"]
        schedule = flags.index("--epochs")
        assert flags[schedule : schedule + 4] == ["--epochs", "--steps", "--batch-size", "--lr"]
        panels = re.findall(r"^╭─ (\w+)", text, re.MULTILINE)
        assert panels[:4] == ["Arguments", "Options", "Run", "Schedule"]


def test_help_shows_the_values_of_the_task_and_of_a_recipe_that_is_named(beit: Callable) -> None:
    words = [
        (["--task", "segment"], r"--short-side .*\[default: 512, recipe base-ade20k\]"),
        (["--recipe", "tiny-detect"], r"--regions .*\[default: 64, recipe tiny-detect\]"),
    ]
    for line, said in words:
        assert re.search(said, ESCAPE.sub("", beit("finetune", *line, "--help-all").out))


@pytest.mark.parametrize("command", ["pretrain", "finetune", "train-tokenizer"])
def test_help_shows_what_the_default_recipe_sets(beit: Callable, command: str) -> None:
    (kind,) = (each.config for each in COMMANDS if each.name == command)
    settings = settings_of(kind)
    recipe = settings["recipe"].default
    text = re.sub(r"[│\s]+", " ", ESCAPE.sub("", beit(command, "--help-all").out))
    for name, value in read_recipe(command, recipe).items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        said = re.escape(f"[default: {shown}, recipe {recipe}]")
        assert re.search(rf"{settings[name].flag} [^\[]*{said}", text), name
    assert re.search(r"--keep N [^\[]*\[default: 2\]", text)


def test_help_of_pretrain_names_the_batch_it_would_use(beit: Callable) -> None:
    text = ESCAPE.sub("", beit("pretrain", "--help").out)
    assert re.search(r"--batch-size .*\[default: 2048, recipe base\]", text)
    assert "default: 64" not in text


def test_help_of_the_program_lists_every_command_and_shows_examples(beit: Callable) -> None:
    ended = beit("--help")
    text = ESCAPE.sub("", ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert text.strip().startswith("Usage: beit")
    assert text.index("$ beit pretrain sample --recipe tiny") < text.index("Options")
    for command in COMMANDS:
        assert re.search(rf"{command.name} +{re.escape(command.summary[:20])}", text)
    assert "--install-completion" in text


def test_version_is_one_line_on_stdout(beit: Callable) -> None:
    ended = beit("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"beit {__version__}\n", "")


@each_command
def test_examples_use_options_and_recipes_that_exist(command: Command) -> None:
    by_name = {each.name: each for each in COMMANDS}
    for example in command.examples:
        line = next(part for part in re.split(r"\s{3,}", example)[0].split("|") if "beit " in part)
        words = shlex.split(line)
        assert words[words.index("beit") + 1] in by_name
        used = by_name[words[words.index("beit") + 1]]
        known = {flag for s in settings_of(used.config).values() for flag in s.option.flags or (s.flag,)}
        assert {word for word in words if re.fullmatch(r"--?[a-z0-9][a-z0-9-]*", word)} <= known | {"--json"}
        if "--recipe" in words:
            assert words[words.index("--recipe") + 1] in recipe_names(
                "pretrain" if used.name == "mask-preview" else used.name
            )


def test_help_and_usage_errors_import_nothing_heavy() -> None:
    lines = [["--help"], ["--version"], ["pretrain", "--resume"], ["tokenise"], ["eval", "--jsn"]]
    lines += [[command.name, "--help"] for command in COMMANDS] + [["finetune", "--task", "segment", "--help"]]
    program = (
        "import sys; from beitcli.cli.app import main\n"
        f"codes = [main(line) for line in {lines!r}]\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'safetensors', 'beitcli.engine'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert codes == [0, 0, 2, 2, 2] + [0] * (len(codes) - 5), codes\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_does_without_pydantic() -> None:
    """typer imports it for the program's own options, which takes longer than everything that is ours."""
    lines = [["--help"]] + [[command.name, "--help"] for command in COMMANDS]
    program = (
        "import sys; from beitcli.cli.app import main\n"
        f"assert not any([main(line) for line in {lines!r}])\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("beit pretrain --micro-b", "--micro-batch"),
        ("beit finetune --ignore-i", "--ignore-index"),
        ("beit --install-c", "--install-completion"),
        ("beit tok", "tokenize"),
    ],
)
def test_shell_completes_commands_and_the_options_of_each(words: str, found: str) -> None:
    program = "import sys; sys.argv = ['beit']; from beitcli.__main__ import run; run()"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_BEIT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | asked
    )
    assert done.stdout.split() == [found], done.stderr


def completed(words: str, folder: Path) -> list[str]:
    program = "import sys; sys.argv = ['beit']; from beitcli.__main__ import run; run()"
    at = len(words.split()) - (not words.endswith(" "))
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(at), "_BEIT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(beitcli.__file__).parents[1])} | asked,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("beit pretrain photos/ --recipe ti", ["tiny"]),
        ("beit finetune photos/ --recipe tiny-", sorted(n for n in recipe_names("finetune") if n.startswith("tiny-"))),
        ("beit eval runs/a sample --device c", ["cpu", "cuda"]),
        ("beit pretrain photos/ --model l", ["large"]),
        ("beit pretrain photos/ --tokenizer runs/", ["runs/b", "runs/a"]),
        ("beit train-tokenizer photos/ --kind vqk", ["vqkd"]),
        ("beit attn-map x.png --model runs/a", ["runs/a"]),
        ("beit predict runs/", ["runs/b", "runs/a"]),
        ("beit embed runs/a sam", ["sample"]),
        ("beit embed runs/a x/ -o out", ["out.npy", "out.parquet", "out.safetensors", "out.jsonl"]),
        ("beit tokenize x/ -o to.s", ["to.safetensors"]),
        ("beit cache pr", ["prune"]),
        ("beit recipes base-", sorted({n for c in RECIPE_COMMANDS for n in recipe_names(c) if n.startswith("base-")})),
        ("beit pretrain x/ --masking bl", ["blockwise"]),
        ("beit mask-preview x.png --masking r", ["random"]),
        ("beit runs --sort st", ["state", "step"]),
        ("beit runs --sort to", ["top1"]),
        ("beit doctor x/ -o good.t", ["good.tsv", "good.txt"]),
        ("beit doctor x/ -o page", ["page.html", "page.tsv", "page.txt"]),
        ("beit report runs/a -o compare", ["compare.html"]),
        ("beit predict runs/a photos/ -o mas", []),  # of a segmenter it is a folder
        ("beit eval runs/a x/ --pool c", ["cls", "cls+mean"]),
        ("beit predict runs/a x.png --gp", []),
        ("beit cache --kind streams,f", ["streams,features"]),
    ],
)
def test_shell_completes_values(tmp_path: Path, words: str, found: list[str]) -> None:
    for number, name in enumerate(("a", "b")):
        config = tmp_path / "runs" / name / "config.toml"
        config.parent.mkdir(parents=True)
        config.touch()
        os.utime(config.parent, (number, number))
    (tmp_path / "runs" / "no-run").mkdir()
    assert sorted(completed(words, tmp_path)) == sorted(found)


def test_maskings_that_a_shell_offers_are_those_that_there_are() -> None:
    from beitcli.masking import MASKINGS

    assert set(MASKING_NAMES) == set(MASKINGS)


def test_man_page_has_every_command_and_option_and_no_line_that_roff_would_misread(beit: Callable) -> None:
    page = beit("help", "--man").out
    macros = {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".nf", ".fi"}
    lines = page.splitlines()
    assert {line.split()[0] for line in lines if line.startswith((".", "'"))} == macros
    assert not re.search(r"(?<!\\)-", "\n".join(line for line in lines if not line.startswith(".TH")))
    plain = re.sub(r"\\f[BIR]|\\&", "", page).replace("\\-", "-").replace("\\e", "\\")
    for command in COMMANDS:
        begin = plain.index(f".SS beit {command.name}\n")
        section = plain[begin : plain.find("\n.S", begin + 3)]
        assert command.summary in section
        for setting in settings_of(command.config).values():
            assert (setting.help in section) != setting.option.hidden
            assert all(flag in section for flag in setting.option.flags)
        for example in command.examples:
            assert f"$ {example}" in section


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["help", "--man"], ["--help"], ["--version"]], ids=str)
def test_help_that_cannot_be_written_is_told_in_a_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "beitcli", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4
    assert done.stderr.startswith("error: Results cannot be written to stdout")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_page_is_set_without_a_warning(beit: Callable) -> None:
    page = beit("help", "--man").out
    done = subprocess.run(["groff", "-man", "-ww", "-Tascii"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "EXIT STATUS" in re.sub(".\x08", "", done.stdout)


def test_command_behind_dashes_or_the_programs_help_is_the_same(beit: Callable) -> None:
    assert len(beit("--", "mask-preview", "--stats", 3).lines) == 1
    assert beit("--help", "pretrain").out == beit("--help").out


MISSPELT = [
    (["pretrian", "sample"], "There is no command 'pretrian'.", "Did you mean 'pretrain'?"),
    (["inpsect", "runs/x"], "There is no command 'inpsect'.", "Did you mean 'inspect'?"),
    (["export", "runs/x", "--to", "tim", "-o", "x"], "--to is 'tim'", "Did you mean 'timm'?"),
    (["mask-preview", "x", "--stats"], "--stats needs a value.", "See `beit mask-preview --help`."),
    (["mask-preview", "--stats", "--limit", "3"], "--stats needs a value; '--limit' follows it.", "a whole number"),
    (["pretrain", "--resume", "--out", "no/such"], "There is no run at 'no/such'", "DATA to begin"),
    (["maskpreview"], "There is no command 'maskpreview'.", "Did you mean 'mask-preview'?"),
    (["pretrain", "sample", "--num-maskd", "3"], "There is no option --num-maskd", "Did you mean '--num-masked'?"),
    (
        ["finetune", "sample", "--task", "segment", "--init", "random", "--mixup", "0"],
        "of --task classify",
        "Leave it out",
    ),
    (["finetune", "sample", "--init", "random", "--regoins", "9"], "There is no option --regoins", "'--regions'?"),
    (["pretrain", "sample", "--no-compil"], "There is no option --no-compil", "'--no-compile'?"),
    (["predict", "run", "x.png", "--jsn"], "There is no option --jsn", "Did you mean '--json'?"),
    (["tokenize", "--outptu", "x"], "There is no option --outptu", "Did you mean '--output'?"),
    (["pretrain", "sample", "--recipe", "tinny"], "There is no pretrain recipe 'tinny'.", "Did you mean 'tiny'?"),
    (["pretrain", "sample", "--recipe", "tiny", "--model", "smal"], "no model 'smal'", "Did you mean 'small'?"),
    (["finetune", "sample", "--recipe", "tiny", "--init", "random", "--model", "bse"], "no model 'bse'", "'base'?"),
    (["eval", "run", "sample", "--device", "cdua"], "--device is 'cdua'", "Did you mean 'cuda'?"),
    (["tokenize", "x", "--tokenizer", "t", "--on-bad", "skp"], "--on-bad is 'skp'", "Did you mean 'skip'?"),
    (["pretrain", "sample", "--recipe", "tiny", "--masking", "blockwize"], "blockwize", "Did you mean 'blockwise'?"),
    (["pretrain", "smaple", "--recipe", "tiny"], "'smaple' does not exist", "Did you mean 'sample'?"),
]


@pytest.mark.parametrize(("argv", "said", "suggested"), MISSPELT, ids=lambda value: str(value)[:40])
def test_misspelling_gets_a_suggestion(beit: Callable, argv: list[str], said: str, suggested: str) -> None:
    ended = beit(*argv)
    assert (ended.code, ended.out) == (3 if "smaple" in argv else 2, "")
    first, second, *rest = ended.err.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert suggested in second
    assert not rest


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrain", "--recipe", "tiny"], "DATA is missing"),
        (["pretrain", "sample", "--steps", "many"], "--steps is 'many'; a whole number"),
        (["pretrain", "sample", "--lr", "fast"], "--lr is 'fast'; a number"),
        (["pretrain", "sample", "--steps"], "--steps"),
        (["eval", "run"], "MODEL is taken as 'run', and DATA is missing"),
        (["predict", "photo.jpg"], "MODEL is taken as 'photo.jpg', and INPUT is missing"),
        (["mask-preview"], "No image is given"),
        (["recipes", "--json=1"], "--json takes no value."),
        (["pretrain", "sample", "--no-compile=1"], "--no-compile takes no value."),
        (["attn-map", "x.png", "--head", "first"], "--head is 'first'"),
    ],
    ids=str,
)
def test_wrong_use_says_what_and_where_to_look(beit: Callable, argv: list[str], said: str) -> None:
    ended = beit(*argv)
    assert (ended.code, ended.out) == (2, "")
    first, second = ended.err.splitlines()
    assert said in first
    assert second.strip()


def test_program_without_a_command_shows_its_help(beit: Callable) -> None:
    ended = beit()
    assert ended.code in (0, 2)
    assert "Usage: beit" in ESCAPE.sub("", ended.out + ended.err)


def test_error_text_keeps_brackets_of_the_user(beit: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "a[bold]b[/nothing]"
    ended = beit("mask-preview", folder)
    assert ended.code == 3
    assert str(folder) in ended.err


def test_debug_shows_the_traceback_and_nothing_else_does(beit: Callable, tmp_path: Path) -> None:
    assert "Traceback" not in beit("mask-preview", tmp_path / "absent").err
    ended = beit("mask-preview", tmp_path / "absent", "--debug")
    assert ended.code == 3
    assert "Traceback" in ended.err
    assert "does not exist" in ended.err


# One process


@pytest.mark.parametrize("name", ["predict", "attn-map", "mask-preview", "tokenize"])
def test_a_command_of_one_process_has_no_gpus_in_its_help_and_refuses_more_than_one(beit: Callable, name: str) -> None:
    (config,) = (each.config for each in COMMANDS if each.name == name)
    is_launched = issubclass(config, Launched)
    assert ("--gpus" in offered(beit(name, "--help-all").out)) == is_launched
    if not is_launched:
        ended = beit(name, "x.png", *(["y.png"] if name == "predict" else []), "--gpus", 2)
        assert ended.code == 2
        assert f"--gpus is 2, but `beit {name}` computes in one process." in ended.err


# JSON in a pipe


@each_command
def test_help_says_which_commands_print_json_into_a_pipe(beit: Callable, command: Command) -> None:
    source = inspect.getsource(import_module(command.module))
    prints = any(word in source for word in ("wants_json", "print_metrics", "print_comparison"))
    assert command.declaration.pipes_json == prints
    row = re.sub(r"[│\s]+", " ", ESCAPE.sub("", beit(command.name, "--help").out))
    assert ("the default where stdout is not a terminal." in row) == prints
    assert ("of list and prune the default" in row) == (command.name == "cache")  # `cache dir` prints a path


# What options are called elsewhere


def options_of(command: Command) -> set[str]:
    every = {flag for setting in settings_of(command.config).values() for flag in flags_of(setting)}
    return every | {"--json", "--quiet", "--debug"}


def test_every_synonym_leads_to_an_option_and_hides_none_of_its_command() -> None:
    by_command = {command.name: options_of(command) for command in COMMANDS}
    every = set().union(*by_command.values())
    for word, meant in synonyms.OPTIONS.items():
        assert set(meant) <= every, word
        assert word not in meant or word in every, word
        reached = {
            flag
            for options in by_command.values()
            if word not in options
            for flag in [next((each for each in meant if each in options), None)]
        }
        assert not meant or reached - {None}, f"{word} helps nowhere"
    for word, line in synonyms.COMMANDS.items():
        assert word not in by_command
        name, *flags = line.removeprefix("beit ").split()
        assert name in by_command or name in {flag.split(", ")[-1] for flag, *_ in OWN_OPTIONS}
        assert set(flags) <= by_command.get(name, set()), line


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["export", "run", "--format", "hf"], "'--to'"),
        (["pack", "photos", "--format", "raw"], "'--encode'"),
        (["pack", "photos", "--out", "x"], "'--output'"),
        (["pretrain", "photos", "-o", "x"], "'--out'"),
        (["pretrain", "photos", "--output=x"], "'--out'"),
        (["finetune", "photos", "--lr-decay", "0.9"], "'--layer-decay'"),
        (["pretrain", "photos", "--lr-decay", "0.9"], "'--min-lr'"),
        (["pretrain", "photos", "--size", "64"], "'--image-size'"),
        (["finetune", "photos", "--image-size", "64"], "'--size'"),
        (["doctor", "photos", "--html", "page.html"], "'--output'"),
        (["mask-preview", "photo.jpg", "--run", "x"], "'--model'"),
        (["completion"], "`beit --install-completion`"),
        (["train", "photos"], "`beit pretrain`"),
        (["test", "run", "photos"], "`beit eval`"),
        (["infer", "run", "photo.jpg"], "`beit predict`"),
        (["nearest", "run", "photos"], "`beit embed --query`"),
        (["search", "run", "photos"], "`beit embed --query`"),
        (["neighbours", "run"], "`beit embed --query`"),
        (["features", "run", "photos"], "`beit embed`"),
        (["visualize", "photo.jpg"], "`beit attn-map`"),
        (["attention", "photo.jpg"], "`beit attn-map`"),
        (["mask", "photo.jpg"], "`beit mask-preview`"),
    ],
    ids=str,
)
def test_a_word_of_another_command_gets_what_it_is_called_here(beit: Callable, argv: list[str], meant: str) -> None:
    ended = beit(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert f"Did you mean {meant}?" in ended.err


@pytest.mark.parametrize(
    "argv",
    [
        ["pretrain", "photos", "--layer-decay", "0.9"],
        ["train-tokenizer", "photos", "--lr-schedule", "cosine"],
        ["pretrain", "photos", "--force"],
        ["train-tokenizer", "photos", "--overwrite"],
        ["pretrain", "photos", "--val", "held-out"],
        ["mask-preview", "photo.jpg", "--image-size", "64"],
        ["train-tokenizer", "photos", "--pretrained", "run"],
        ["train-tokenizer", "photos", "--init", "run"],
    ],
    ids=str,
)
def test_a_word_for_what_the_command_lacks_gets_no_other_option(beit: Callable, argv: list[str]) -> None:
    ended = beit(*argv)
    assert ended.code == 2
    assert "Did you mean" not in ended.err


def test_files_of_settings_get_what_a_key_is_called_here(beit: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("learning_rate = 0.1\n")
    assert "Did you mean 'lr'?" in beit("pretrain", "sample", "--config", tmp_path / "a.toml").err


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("pretrain", "beit pretrain [OPTIONS] DATA..."),
        ("eval", "beit eval [OPTIONS] MODEL DATA..."),
        ("tokenize", "beit tokenize [OPTIONS] [INPUT]..."),
        ("runs", "beit runs [OPTIONS] [DIR]"),
        ("inspect", "beit inspect [OPTIONS] REF"),
    ],
)
def test_usage_has_brackets_around_what_may_be_left_out(beit: Callable, command: str, usage: str) -> None:
    assert beit(command, "--help").out.splitlines()[1] == f" Usage: {usage}"


def test_help_says_what_is_required_and_the_defaults_of_arguments(beit: Callable) -> None:
    for command, said in (
        ("tokenize", "train-tokenizer or pretrain. [required]"),
        ("pack", "Folder to create; new or empty. [required]"),
        ("runs", "Folder with runs, at any depth. [default: runs]"),
    ):
        assert said in beit(command, "--help").out
    assert "[required]" not in beit("attn-map", "--help").out


def test_examples_keep_an_option_and_its_value_on_one_line(beit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for command in COMMANDS:
        lines = beit(command.name, "--help").out.splitlines()
        broken = [(line.split()[-2], after.split()[0]) for line, after in pairwise(lines) if line.endswith(" \\")]
        assert not [pair for pair in broken if [word[0] == "-" for word in pair] == [True, False]], command.name
    assert "-o attention.png" in beit("attn-map", "--help").out
