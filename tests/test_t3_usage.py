"""du: what directories hold."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from lazyfs import api
from lazyfs.image.inside.browse import entry_at
from lazyfs.image.inside.usage import layer_usage, usage
from tests.support.memory_images import bytes_read, memory_image
from tests.support.tars import directory, file, hardlink, symlink, tar


def sizes(image, path: bytes = b"", **options) -> dict[bytes, int]:
    return {line.path: line.size for line in usage(image, entry_at(image.metadata, path), **options)}


IMAGE = memory_image(
    tar(
        file(b"a/one", b"1" * 10),
        file(b"a/b/two", b"2" * 200),
        directory(b"a/empty"),
        symlink(b"l", b"a/one"),
    ),
    tar(file(b"a/one", b"x" * 30), hardlink(b"c/again", b"a/one"), hardlink(b"a/b/too", b"a/b/two")),
)


def test_a_directory_comes_after_what_is_in_it_and_holds_all_of_it():
    assert sizes(IMAGE) == {b"a/b": 200, b"a/empty": 0, b"a": 230, b"c": 0, b"": 230}
    assert list(sizes(IMAGE)) == [b"a/b", b"a/empty", b"a", b"c", b""]


def test_an_inode_counts_once_where_its_first_name_stands():
    assert sizes(IMAGE, b"c") == {b"c": 30}
    assert sizes(IMAGE, files=True) == {
        b"a/b/too": 200,
        b"a/b/two": 0,
        b"a/b": 200,
        b"a/empty": 0,
        b"a/one": 30,
        b"a": 230,
        b"c/again": 0,
        b"c": 0,
        b"l": 0,
        b"": 230,
    }


def test_a_file_by_itself_is_one_line():
    assert sizes(IMAGE, b"a/one") == {b"a/one": 30}
    assert [line.files for line in usage(IMAGE, entry_at(IMAGE.metadata, b"a/one"))] == [1]


def test_layers_share_what_is_seen_of_them():
    layers = layer_usage(IMAGE, entry_at(IMAGE.metadata, b""))
    assert [(layer.number, layer.size, layer.files) for layer in layers] == [(0, 200, 1), (1, 30, 1)]
    below = layer_usage(IMAGE, entry_at(IMAGE.metadata, b"a/b"))
    assert [layer.size for layer in below] == [200, 0]
    assert [layer.digest for layer in layers] == [layer.descriptor.digest for layer in IMAGE.resolved.layers]
    assert bytes_read(IMAGE) == 0


# Only below nginx do no hard links cross directories: du counts them where readdir(3) happens to begin.
@pytest.mark.parametrize(("name", "depth"), [("oddities", 0), ("nginx", 2)])
def test_directories_hold_what_du_counts(name, depth, lab_image, unpacked, tmp_path):
    root = unpacked(name)
    with api.open_image(f"oci:{lab_image(name)}:latest", cache_dir=tmp_path / "cache") as image:
        ours = {line.path: line.size for line in image.usage("/") if line.depth <= depth}
    assert ours == {path: size for path, size in by_du(root).items() if path in ours}


def by_du(root: Path) -> dict[bytes, int]:
    """What GNU du says of each directory, less what it counts for anything but regular files."""
    done = subprocess.run(
        ["du", "--bytes", "--null", "--max-depth=2", "."], cwd=root, capture_output=True, check=True
    )
    others: dict[bytes, int] = {}
    top = os.fsencode(root)
    links: set[int] = set()
    for directory_path, directories, names in os.walk(top):
        extra = os.lstat(directory_path).st_size
        for name in [*directories, *names]:
            status = os.lstat(directory_path + b"/" + name)
            if stat.S_ISLNK(status.st_mode) and status.st_ino not in links:
                links.add(status.st_ino)
                extra += status.st_size
        path = directory_path[len(top) + 1 :]
        for above in {path, *(path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"), b""}:
            others[above] = others.get(above, 0) + extra
    found = {}
    for line in done.stdout.split(b"\0")[:-1]:
        size, path = line.split(b"\t", 1)
        path = path[2:]
        found[path] = int(size) - others[path]
    return found
