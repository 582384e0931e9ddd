"""Indexes that the daemon makes beside a full pull: from what containerd has downloaded, if that is right."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.digest import sha256_digest
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.index_job import make_index
from lazyfs.source.auth.given import GivenCredentials
from tests.support.packed_image import IMAGE, blobs
from tests.support.registry import Registry
from tests.support.workshops import config_of

LAYERS = [layer["digest"] for layer in IMAGE.json["layers"]]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, "1")
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A content store that has all layers."""
    directory = tmp_path / "content" / "blobs" / "sha256"
    directory.mkdir(parents=True)
    for blob in IMAGE.blobs.values():
        (directory / sha256_digest(blob)[7:]).write_bytes(blob)
    return tmp_path / "content"


async def pulled(registry: Registry, store: Path, cache: Path) -> list[int]:
    """An index is made; how often the registry was asked for each layer."""
    order = ChainOrder(f"{registry.host}/app:1", "", 2, LAYERS[-1], "")
    await make_index(order, config_of(cache), store, GivenCredentials())
    return [blobs(registry, digest) for digest in LAYERS]


async def test_what_is_stored_is_not_asked_of_the_registry(
    registry: Registry, store: Path, tmp_path: Path
) -> None:
    assert await pulled(registry, store, tmp_path / "cache") == [0, 0]


@pytest.mark.parametrize("at", [0, 2000, -1], ids=["first byte", "within", "last byte"])
async def test_a_stored_layer_that_is_damaged_is_asked_of_the_registry(
    registry: Registry, store: Path, tmp_path: Path, at: int
) -> None:
    path = store / "blobs" / "sha256" / LAYERS[0][7:]
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)
    requests = await pulled(registry, store, tmp_path / "cache")
    assert requests[0] == 1
