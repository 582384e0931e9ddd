"""Storing whole images: in a registry, in chunks or from a repository beside, and in layouts."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest
import trio
from msgspec.structs import replace

from indexer.errors import DigestMismatch
from lazyfs.errors import BadReference, NotWritable
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import LayoutImage, parse_image
from lazyfs.source.base import Blob
from lazyfs.source.open import open_source
from lazyfs.source.push.image import ImageToStore, open_image_store
from tests.support.lab_registry import docker_registry
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, source_of
from tests.support.registry_faults import StallHead

CONTENT = sha256(b"seed").digest() * (40 << 15)  # 40 MiB: more than two chunks
CONFIG, MANIFEST = b'{"config":1}', b'{"schemaVersion":2}'


def link(data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type, f"sha256:{sha256(data).hexdigest()}", len(data))


class Bytes:
    """A Blob in memory, handed over in odd pieces by a worker thread."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pulls = 0

    @property
    def size(self) -> int:
        return len(self._data)

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        self.pulls += 1
        step = (256 << 10) - 7

        def work() -> None:
            for start in range(0, len(self._data), step):
                consume(memoryview(self._data)[start : start + step])

        await trio.to_thread.run_sync(work)


def image(layer: Descriptor, blob: Blob, manifest: bytes | None = None) -> ImageToStore:
    data = (
        manifest
        or json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": link(CONFIG).digest,
                    "size": len(CONFIG),
                },
                "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}],
            }
        ).encode()
    )
    kind = "application/vnd.oci.image.manifest.v1+json"
    return ImageToStore([(layer, blob)], (link(CONFIG), CONFIG), (link(data, kind), data))


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


async def test_a_registry_takes_a_large_layer_in_chunks_once_and_mounts_it(address):
    blob, layer = Bytes(CONTENT), link(CONTENT, "application/vnd.oci.image.layer.v1.tar")
    first, beside = parse_image(f"{address}/team/one:1"), parse_image(f"{address}/team/two:x")
    async with open_image_store(first, SETTINGS) as store:
        await store.store(image(layer, blob))
        await store.store(image(layer, blob))
    async with open_image_store(beside, SETTINGS, base=first) as store:
        await store.store(image(layer, blob))
    assert blob.pulls == 1
    for name in (first, beside):
        async with open_source(name, SETTINGS) as source:
            assert (await source.resolve()).digest == image(layer, blob).manifest[0].digest
            came = bytearray()
            await source.blob(layer).pull(came.extend)
            assert bytes(came) == CONTENT


async def test_a_cancelled_copy_from_registry_to_registry_sends_no_more():
    layer = link(CONTENT, "application/vnd.oci.image.layer.v1.tar")
    with Registry() as of, Registry() as to:
        of.put_blob("app", CONTENT)
        to.faults.add("upload", StallHead(), times=4, method="PATCH")
        settings = replace(SETTINGS, stall_timeout_s=0.5)
        async with (
            source_of(of) as source,
            open_image_store(parse_image(f"{to.host}/app:1"), settings) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.store, image(layer, source.blob(layer)))
            await trio.to_thread.run_sync(to.wait_stalled)
            nursery.cancel_scope.cancel()
        assert to.faults.pending  # it was not tried all four times


@pytest.mark.parametrize("where", ["registry", "layout"])
async def test_a_layer_that_is_another_is_not_stored(address, where, tmp_path):
    wrong = link(b"right", "application/vnd.oci.image.layer.v1.tar")
    name = parse_image(f"{address}/team/bad:1") if where == "registry" else LayoutImage(tmp_path / "out")
    with pytest.raises(DigestMismatch):
        async with open_image_store(name, SETTINGS) as store:
            await store.store(image(wrong, Bytes(b"wrong")))
    assert (
        not list(tmp_path.rglob("index.json*")) or b"sha256" not in (tmp_path / "out/index.json").read_bytes()
    )
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


async def test_a_layouts_tag_moves_and_others_stay(tmp_path):
    layer, blob = link(b"layer", "application/vnd.oci.image.layer.v1.tar"), Bytes(b"layer")
    for tag, manifest in (("a", b"{}"), ("b", MANIFEST), ("a", MANIFEST)):
        async with open_image_store(LayoutImage(tmp_path / "out", tag), SETTINGS) as store:
            await store.store(image(layer, blob, manifest))
    assert blob.pulls == 1
    entries = json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]
    named = {one["annotations"]["org.opencontainers.image.ref.name"]: one["digest"] for one in entries}
    assert named == {"a": link(MANIFEST).digest, "b": link(MANIFEST).digest}


async def test_a_layout_may_write_an_empty_list_as_go_does(tmp_path):
    name = parse_image(f"oci:{tmp_path}/layout:new")
    async with open_image_store(name, SETTINGS) as store:
        await store.store(image(link(b"one"), Bytes(b"one")))
        (tmp_path / "layout" / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":null}')
        await store.store(image(link(b"two"), Bytes(b"two")))
    async with open_source(name, SETTINGS) as source:
        assert json.loads(await source.document(await source.resolve()))["layers"][0]["size"] == 3


async def test_a_place_that_cannot_be_written_is_an_error_of_the_target(tmp_path):
    (tmp_path / "file").write_text("")
    layer = link(b"x")
    with pytest.raises(NotWritable, match="cannot be written"):
        async with open_image_store(LayoutImage(tmp_path / "file/out"), SETTINGS) as store:
            await store.store(image(layer, Bytes(b"x")))


@pytest.mark.parametrize("name", ["oci-archive:x.tar", "docker-archive:x.tar", f"app@sha256:{'a' * 64}"])
async def test_not_every_name_can_be_stored_under(name):
    with pytest.raises(BadReference):
        async with open_image_store(parse_image(name), SETTINGS):
            pass
