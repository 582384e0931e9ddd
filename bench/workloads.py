"""What is done to a tree: names, attributes, contents."""

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PIECE: Final = 1 << 20
_SMALL: Final = 4096
_BIG: Final = "big"
_RANDOM_READS: Final = 2000


def find(root: Path) -> None:
    """Every name, as find prints it."""
    subprocess.run(["find", root], check=True, stdout=subprocess.DEVNULL)


def list_long(root: Path) -> None:
    """Every name and attribute, sorted, with ls -lR."""
    subprocess.run(["ls", "-lR", root], check=True, stdout=subprocess.DEVNULL)


def lstat_all(root: Path) -> None:
    """The attributes of every entry, in Python."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            os.lstat(f"{folder}/{name}")


def regular_files(root: Path) -> list[str]:
    """The relative paths of all regular files, sorted."""
    found = []
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found.append(str(path.relative_to(root)))
    return sorted(found)


def open_all(root: Path, names: Sequence[str]) -> None:
    """Open and close."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        os.close(os.open(name, os.O_RDONLY, dir_fd=directory))
    os.close(directory)


def read_starts(root: Path, names: Sequence[str]) -> None:
    """Open, read 4 KiB, close."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        file = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.read(file, _SMALL)
        os.close(file)
    os.close(directory)


def read_sequentially(root: Path) -> None:
    """The big file from start to end, 1 MiB at a time."""
    file = os.open(root / _BIG, os.O_RDONLY)
    while os.read(file, _PIECE):
        pass
    os.close(file)


def read_randomly(root: Path) -> None:
    """2,000 times 4 KiB of the big file, anywhere in it; the same places each time."""
    file = os.open(root / _BIG, os.O_RDONLY)
    blocks = os.fstat(file).st_size // _SMALL
    places = random.Random(0)
    for _ in range(_RANDOM_READS):
        os.pread(file, _SMALL, places.randrange(blocks) * _SMALL)
    os.close(file)
