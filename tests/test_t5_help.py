"""What a newcomer meets: help that teaches, examples that can be typed, and completion in the shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lazyfs.cli.guide import EXAMPLES, SECTIONS
from lazyfs.cli.main import group
from tests.support.quick_runner import run_quickly
from tests.support.runner import executable

CONTEXT = click.Context(group)
COMMANDS = group.list_commands(CONTEXT)


def command(name: str) -> click.Command:
    found = group.get_command(CONTEXT, name)
    assert found
    return found


def helped(*arguments: str) -> str:
    done = run_quickly([*arguments, "--help"], dict(os.environ) | {"COLUMNS": "100"})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_first_help_has_every_command_in_a_line_of_its_own() -> None:
    lines = [line.split(maxsplit=1) for line in helped().splitlines()]
    assert [name for commands in SECTIONS.values() for name in commands] == [
        words[0] for words in lines if words and words[0] in COMMANDS and len(words) == 2
    ]
    assert sorted(COMMANDS) == sorted(name for commands in SECTIONS.values() for name in commands)


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lazyfs", "mont"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 64
    assert done.stderr.startswith("lazyfs: No such command 'mont' (did you mean mount")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_shows_how(name: str) -> None:
    said = helped(name)
    assert (
        f"lazyfs {name} " in said.partition("Options:")[2] + said.partition("Options:")[0].partition("\n")[2]
    )
    assert said.index("--help") > said.rfind("--config") > 0 or isinstance(command(name), click.Group)
    for parameter in command(name).params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{name} {parameter.name}"


COMMON = {"--platform", "--offline", "--cache-dir", "--require-signature", "--trusted-key", "--log-level"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["mount"], COMMON),
        (["umount"], {"--log-level"}),
        (["snapshotter"], {"--log-level"}),
        (["login"], {"--platform", "--offline", "--log-level"}),
        (["cache", "rm"], {"--cache-dir", "--log-level"}),
        (["cache", "pin"], COMMON),
    ],
)
def test_the_help_shows_the_common_options_that_count_there(words: list[str], shown: set[str]) -> None:
    assert {option for option in COMMON if f"  {option}" in helped(*words)} == shown


@pytest.mark.parametrize(
    "option", [["--require-signature"], ["--trusted-key", "key.pub"], ["--index", "local"]]
)
@pytest.mark.parametrize(
    "words", [["snapshotter", "--root", "/dev/null"], ["umount", "/"], ["cache", "usage"]]
)
def test_an_option_that_would_protect_nothing_is_refused(words: list[str], option: list[str]) -> None:
    done = run_quickly([*words, *option], dict(os.environ))
    assert done.returncode == 64
    assert done.stderr.startswith(f"lazyfs: {option[0]} means nothing to lazyfs {words[0]}")


def test_common_options_that_mean_nothing_are_taken_and_those_before_the_name_are(tmp_path: Path) -> None:
    cache_dir = ["--cache-dir", str(tmp_path)]
    for before, after in (([], ["--offline", *cache_dir]), (["--require-signature"], []), (cache_dir, [])):
        done = run_quickly([*before, "umount", str(tmp_path), *after], dict(os.environ))
        assert (done.returncode, done.stderr) == (66, f"lazyfs: nothing is mounted at {tmp_path}\n")


def documented_examples() -> list[str]:
    """Those of the guide, and the lines of commands' texts that begin with the program's name."""
    lines = [f"lazyfs {example}" for examples in EXAMPLES.values() for example in examples]
    for name in COMMANDS:
        lines += [line.strip() for line in (command(name).help or "").splitlines() if "lazyfs " in line]
    return [line for line in lines if line.startswith("lazyfs ")]


@pytest.mark.parametrize("example", documented_examples())
def test_every_example_can_be_typed(example: str) -> None:
    words = shlex.split(example.partition(" | ")[0].partition(" < ")[0].partition(" > ")[0])
    name, *arguments = words[1:]
    command(name).make_context(name, arguments, parent=CONTEXT)


def completed(*words: str) -> list[str]:
    """What bash is told for a line that ends in the last of these words."""
    environment = dict(os.environ) | {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [executable()],
        env=environment | {"_LAZYFS_COMPLETE": "bash_complete"},
        check=True,
        capture_output=True,
        text=True,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_words_are_completed() -> None:
    assert completed("lazyfs", "mo") == ["mount"]
    assert completed("lazyfs", "l") == ["ls", "layers", "login", "logout"]
    assert "--hosts-dir" in completed("lazyfs", "mount", "--h")
    assert completed("lazyfs", "mount", "--driver", "e") == ["erofs"]


def test_bash_completes_in_an_interactive_shell(tmp_path: Path) -> None:
    script = (
        'eval "$(_LAZYFS_COMPLETE=bash_source lazyfs)"\n'
        "COMP_WORDS=(lazyfs um) COMP_CWORD=1\n"
        '_lazyfs_completion lazyfs um; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(executable()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=dict(os.environ) | {"PATH": path, "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("umount\n", "")
