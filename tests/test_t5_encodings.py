"""One image in every encoding and container format: the same tree, and lazy where the encoding allows."""

import json
import subprocess

import pytest

from tests.support.lab_variants import ENCODINGS, IMAGE, LAZY, archive, encoded

FILE = "/usr/lib/os-release"


@pytest.fixture(scope="module")
def expected(unpacked, tmp_path_factory):
    """What `find --json` tells of the image from the registry: computed once."""
    return _Expected()


class _Expected:
    def __init__(self) -> None:
        self._tree: str | None = None

    def tree(self, lazyfs, reference: str) -> str:
        if self._tree is None:
            self._tree = lazyfs("find", reference, "--json").stdout
        return self._tree


def _drop_content(lazyfs) -> None:
    subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_shows_the_same_tree_and_is_lazy_where_it_can_be(
    name, lazyfs, lab, registry, unpacked, expected, tmp_path
):
    image = f"oci:{encoded(lab, name)}"
    assert lazyfs("find", image, "--json").stdout == expected.tree(lazyfs, registry.reference(IMAGE))
    _drop_content(lazyfs)
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    lazyfs("mount", image, mount_point)
    try:
        content = (mount_point / FILE.lstrip("/")).read_bytes()
        assert content == (unpacked(IMAGE) / FILE.lstrip("/")).read_bytes()
        stats = json.loads(lazyfs("stats", mount_point, "--json").stdout)
        if name in LAZY:
            assert stats["source"]["data_bytes"] < 0.03 * stats["image_bytes"]
    finally:
        lazyfs("umount", mount_point)


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_every_source_shows_the_same_tree(transport, lazyfs, lab, registry, unpacked, expected):
    path = lab.image(IMAGE) if transport == "oci" else archive(lab, transport)
    image = f"{transport}:{path}"
    assert lazyfs("find", image, "--json").stdout == expected.tree(lazyfs, registry.reference(IMAGE))
    _drop_content(lazyfs)
    assert lazyfs("cat", image, FILE).stdout == (unpacked(IMAGE) / FILE.lstrip("/")).read_text()
