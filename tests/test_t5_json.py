"""docs/json.md: every command with --json prints a document, whose fields stand on the page."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from lazyfs.cli.main import group
from tests.support.images import build_image, write_layout
from tests.support.runner import LazyfsRunner
from tests.support.tars import char, directory, file, symlink, tar

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
STATUS = b"Package: p\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
LOWER = tar(
    file(b"a", b"first"),
    file(b"etc/os-release", b"ID=debian\n"),
    directory(b"var/lib/dpkg"),
    file(b"var/lib/dpkg/status", STATUS),
)
UPPER = tar(
    file(b"a", b"again"), file(b"x", b"x", xattrs={b"user.a": b"1"}), symlink(b"l", b"a"), char(b"n", 1, 3)
)

FREE = {"manifest", "config", "kinds", "xattrs", "indexes", "aspects", "source", "traffic", "waits"}
"""Fields whose own fields are names, or are told of in words."""


def described() -> dict[str, set[str]]:
    """The words in code of each command's row, those of `mount` and `ls` where a row refers to them."""
    rows = re.findall(r"^\| (`[^|]+`) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    words = {
        name: set(re.findall(r"`([a-z_]+)`", form))
        for names, form in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    return {
        name: found.union(*(words[other] for other in ("mount", "ls") if other in found))
        for name, found in words.items()
    }


def fields(document: Any) -> Iterator[str]:
    """The names of fields, those of fields' fields too."""
    if isinstance(document, list):
        for one in document:
            yield from fields(one)
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield name
            if name not in FREE:
                yield from fields(value)


@pytest.fixture
def image(tmp_path: Path) -> str:
    layouts = {"one": build_image([LOWER]), "two": build_image([LOWER, UPPER])}
    return f"oci:{write_layout(tmp_path / 'layout', layouts)}"


ROWS = {
    "index": ("index --push IMAGE", "index --all-platforms IMAGE"),
    "verify": ("verify IMAGE",),
    "inspect": ("inspect IMAGE",),
    "ls": ("ls IMAGE",),
    "tree": ("tree IMAGE",),
    "find": ("find IMAGE",),
    "stat": ("stat IMAGE n", "stat IMAGE x"),
    "du": ("du IMAGE",),
    "du --layers": ("du --layers IMAGE",),
    "diff": ("diff OTHER IMAGE",),
    "layers": ("layers IMAGE",),
    "packages": ("packages IMAGE",),
    "cache images": ("cache images",),
    "cache ls": ("cache ls",),
    "cache usage": ("cache usage",),
    "cache verify": ("cache verify",),
    "cache gc": ("cache gc --dry-run",),
    "cache rm": ("cache rm IMAGE",),
}
ELSEWHERE = {
    "doctor",
    "mount",
    "stats DIR",
    "stats",
    "stats --daemon",
    "explain DIR",
    "explain --daemon",
    "trace show",
    "commit",
    "optimize",
}


@pytest.mark.parametrize("row", ROWS)
def test_fields_stand_on_the_page(row: str, lazyfs: LazyfsRunner, image: str) -> None:
    lazyfs("index", f"{image}:two")
    for words in ROWS[row]:
        command = [
            {"IMAGE": f"{image}:two", "OTHER": f"{image}:one"}.get(word, word) for word in words.split()
        ]
        printed = json.loads(lazyfs(*command, "--json", exit_code=int(row == "diff")).stdout)
        free = {name for name in fields(printed) if name.startswith("sha256:")}
        assert set(fields(printed)) - free <= described()[row]


def test_fields_of_mounts_stand_on_the_page(lazyfs: LazyfsRunner, image: str, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    mounted = json.loads(lazyfs("mount", "--json", f"{image}:two", point).stdout)
    try:
        (point / "x").read_bytes()
        assert set(fields(mounted)) <= described()["mount"]
        for row, command in (
            ("stats DIR", "stats"),
            ("explain DIR", "explain"),
            ("trace show", "trace show"),
        ):
            printed = json.loads(lazyfs(*command.split(), "--json", point).stdout)
            assert set(fields(printed)) <= described()[row], row
    finally:
        lazyfs("umount", point)


def test_every_command_with_json_has_a_row() -> None:
    def commands(group: click.Group, above: str = "") -> Iterator[str]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            if isinstance(command, click.Group):
                yield from commands(command, f"{above}{name} ")
            elif any("--json" in option.opts for option in command.params):
                yield above + name

    rows = {row.removesuffix(" DIR").partition(" --")[0] for row in described() if row != "stats"}
    assert set(commands(group)) == rows
    assert described().keys() == ROWS.keys() | ELSEWHERE
