"""Publishing into OCI layouts, and into Debian's docker-registry."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from indexer.digest import sha256_digest
from indexer.errors import FormatError, IndexerError
from lazyfs.errors import NotWritable, SourceError
from lazyfs.oci.image_name import LayoutImage, RegistryImage, parse_image
from lazyfs.oci.reference import parse_reference
from lazyfs.source.attachments import open_attachments
from lazyfs.source.open import open_source
from lazyfs.source.push.artifact import Artifact
from lazyfs.source.push.publisher import open_publisher
from tests.support.artifacts import IMAGE, KIND, TAG, artifact
from tests.support.images import write_layout
from tests.support.lab_registry import docker_registry
from tests.support.registry_client import SETTINGS


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"1": IMAGE})


async def to_layout(path: Path, *artifacts: Artifact) -> list[bool]:
    async with open_publisher(LayoutImage(path), SETTINGS) as to:
        return [await to.publish(one) for one in artifacts]


async def in_layout(path: Path, digest: str = IMAGE.digest) -> list[str]:
    async with open_attachments(LayoutImage(path), SETTINGS) as found:
        assert found is not None
        return [entry.digest for entry in await found.referrers(digest, KIND)]


def snapshot(path: Path) -> dict[Path, tuple[int, bytes]]:
    return {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in path.rglob("*") if f.is_file()}


async def test_a_layout_takes_artifacts_beside_its_image(layout: Path) -> None:
    assert await to_layout(layout, artifact()) == [True]
    assert await in_layout(layout) == [artifact().descriptor.digest]
    assert await in_layout(layout, sha256_digest(b"other")) == []
    before = snapshot(layout)
    assert await to_layout(layout, artifact()) == [False]
    assert snapshot(layout) == before


async def test_a_new_directory_becomes_a_layout(tmp_path: Path) -> None:
    assert await to_layout(tmp_path / "a" / "b", artifact(), artifact(b"more")) == [True, True]
    assert len(await in_layout(tmp_path / "a" / "b")) == 2


async def test_a_layout_that_was_only_begun_is_finished(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    assert await to_layout(tmp_path, artifact()) == [True]
    assert await in_layout(tmp_path) == [artifact().descriptor.digest]


async def test_a_directory_with_an_index_of_somebody_elses_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b'["of a web site"]')
    before = snapshot(tmp_path)
    with pytest.raises(FormatError, match="no oci-layout"):
        await to_layout(tmp_path, artifact())
    assert snapshot(tmp_path) == before


async def test_an_image_without_a_tag_is_still_the_only_one(layout: Path) -> None:
    await to_layout(layout, artifact())
    async with open_source(parse_image(f"oci:{layout}"), SETTINGS) as source:
        assert (await source.resolve()).digest == IMAGE.digest


async def test_many_add_to_one_layout_at_once(tmp_path: Path) -> None:
    artifacts = [artifact(b"%d" % number) for number in range(8)]
    async with trio.open_nursery() as nursery:
        for one in artifacts:
            nursery.start_soon(to_layout, tmp_path / "new", one)
    assert sorted(await in_layout(tmp_path / "new")) == sorted(one.descriptor.digest for one in artifacts)


async def test_a_layout_may_write_an_empty_list_as_go_does(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", {})
    (layout / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":null}')
    assert await to_layout(layout, artifact()) == [True]
    assert await in_layout(layout) == [artifact().descriptor.digest]


async def test_a_damaged_layout_is_left_as_it_is(layout: Path) -> None:
    (layout / "index.json").write_bytes(b"{")
    with pytest.raises(IndexerError):
        await to_layout(layout, artifact())
    assert (layout / "index.json").read_bytes() == b"{"


async def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotWritable, match="cannot be written"):
        await to_layout(tmp_path / "file", artifact())


# The real ones


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(docker_registry(tmp_path / "storage", **options))


async def push_image(address: str, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", {"1": IMAGE})
    command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    await trio.run_process([*command, f"oci:{layout}:1", f"docker://{address}/app:1"])


@pytest.mark.lab
async def test_docker_registry_takes_them_and_pushers_lose_nothing(
    real: Callable[..., str], tmp_path: Path
) -> None:
    address = real()
    await push_image(address, tmp_path)
    name = RegistryImage(parse_reference(f"{address}/app:1"))
    artifacts = [artifact(b"%d" % number) for number in range(6)]

    async def run(one: Artifact) -> None:
        async with open_publisher(name, SETTINGS) as to:
            assert await to.publish(one)
            assert not await to.publish(one)

    async with trio.open_nursery() as nursery:
        for one in artifacts:
            nursery.start_soon(run, one)
    async with open_attachments(name, SETTINGS) as found:
        assert found is not None
        digests = [entry.digest for entry in await found.referrers(IMAGE.digest, KIND)]
    assert sorted(digests) == sorted(one.descriptor.digest for one in artifacts)
    inspect = ["skopeo", "inspect", "--raw", "--tls-verify=false"]
    done = await trio.run_process([*inspect, f"docker://{address}/app@{digests[0]}"], capture_stdout=True)
    assert sha256_digest(done.stdout) == digests[0]
    done = await trio.run_process([*inspect, f"docker://{address}/app:{TAG}"], capture_stdout=True)
    assert len(json.loads(done.stdout)["manifests"]) == 6


@pytest.mark.lab
async def test_a_read_only_registry_says_no(real: Callable[..., str], tmp_path: Path) -> None:
    await push_image(real(), tmp_path)
    address = real(read_only=True)
    async with open_publisher(RegistryImage(parse_reference(f"{address}/app:1")), SETTINGS) as to:
        with pytest.raises(SourceError, match=r"upload .*HTTP 405"):
            await to.publish(artifact())
