"""Directories that are deeper than any path is long, as a container can make them."""

import os
from pathlib import Path


def make_deep(top: Path, depth: int) -> None:
    """Make `depth` directories below one that is there, one in the other, with a file in the deepest."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
