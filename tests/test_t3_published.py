"""Indexes found beside images: used where they may be, passed by where they may not, counted exactly."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import ConfigError, NotFound, NotTrusted
from lazyfs.exit_codes import exit_code
from lazyfs.image.indexes.artifact import LayerFiles, build_artifact
from lazyfs.image.indexes.gathering import index_layers
from lazyfs.image.indexes.publish import publish_index
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.push.artifact import Artifact
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.images import build_image, build_index, write_layout
from tests.support.published import (
    encode_older,
    hide,
    index_of,
    new_key,
    public_pem,
    put,
    sign,
)
from tests.support.registry import Registry
from tests.support.registry_faults import Status
from tests.support.tars import file, tar
from tests.support.workshops import image_of, workshop_of

_RANDOM = random.Random(9)
CONTENTS = [_RANDOM.randbytes(20_000) + b"text %d" % n * 4000 for n in range(20)]
LOWER = tar(*(file(b"f%d" % number, content) for number, content in enumerate(CONTENTS)))
UPPER = tar(file(b"motd", b"hello\n"))
IMAGE = build_image([LOWER, UPPER])
SIZE = sum(map(len, IMAGE.layers))
KEY = new_key()


@pytest.fixture(params=["api", "tag"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(referrers=request.param == "api") as running:
        running.push("app", IMAGE, tag="1")
        yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "team.pub"
    path.write_bytes(public_pem(KEY))
    return path


def name(registry: Registry, digest: str = "") -> str:
    return f"{registry.host}/app@{digest}" if digest else f"{registry.host}/app:1"


async def origins(reference: str, cache: Path, **settings: Any) -> list[str]:
    async with image_of(reference, cache, **settings) as opened:
        assert await opened.content(b"motd") == b"hello\n"
        return opened.origins


FOUND, MADE = ["found", "found"], ["made here", "made here"]


async def test_an_image_with_an_index_is_open_for_a_few_bytes(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    registry.journal.clear()
    async with image_of(name(registry), tmp_path / "cache") as opened:
        by_tag = registry.requests["GET", "manifest"] == 3
        expected = {("GET", "manifest"): 3 if by_tag else 2, ("GET", "referrers"): 1, ("GET", "blob"): 3}
        assert registry.requests == expected  # image and artifact; configuration and two heads
        assert opened.workshop.statistics().data_bytes < SIZE // 100
        assert opened.origins == FOUND
        registry.journal.clear()
        assert await opened.content(b"motd") == b"hello\n"
        assert registry.requests == {("GET", "blob"): 1}
        assert await opened.content(b"f3") == CONTENTS[3]


async def test_windows_come_beside_their_spans(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        registry.journal.clear()
        await opened.content(b"f9")
        windows = opened.image.indexed[0].head.header.windows_digest
        asked = [seen for seen in registry.seen if seen.kind == "blob"]
        assert sorted(seen.target.endswith(windows) for seen in asked) == [False, True]


async def test_what_was_found_once_is_found_again_without_asking(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    registry.journal.clear()
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    assert registry.requests == {("GET", "manifest"): 1}  # the tag
    assert await origins(name(registry), tmp_path / "cache", offline=True) == FOUND


@pytest.mark.parametrize("again", ["app:2", "copy:1"])
async def test_what_is_here_is_not_fetched_again(registry: Registry, tmp_path: Path, again: str) -> None:
    for repository, tag in (("app", "2"), ("copy", "1")):
        registry.push(repository, IMAGE, tag=tag)
        put(registry, repository, index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    registry.journal.clear()
    assert await origins(f"{registry.host}/{again}", tmp_path / "cache") == FOUND
    assert registry.requests.keys() <= {("GET", "manifest"), ("GET", "referrers")}


async def test_older_indexes_are_left_alone(registry: Registry, tmp_path: Path) -> None:
    older = put(registry, "app", index_of(IMAGE, encode=encode_older))
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    assert not [seen for seen in registry.seen if older in seen.target]


async def test_what_is_made_here_counts_first(registry: Registry, tmp_path: Path) -> None:
    assert await origins(name(registry), tmp_path / "cache", index="local") == MADE
    put(registry, "app", index_of(IMAGE))
    registry.journal.clear()
    assert await origins(name(registry), tmp_path / "cache") == MADE
    assert registry.requests["GET", "referrers"] == 0


async def test_layers_without_a_published_index_are_pulled(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", _only_first_layer(index_of(IMAGE)))
    assert await origins(name(registry), tmp_path / "cache") == ["found", "made here"]


def _only_first_layer(whole: Artifact) -> Artifact:
    digest = whole.blobs[1][0].annotations["vnd.lazyfs.layer.digest"]
    head, windows = (data for _, data in whole.blobs[1:3])
    subject = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.data))
    return build_artifact(subject, [LayerFiles(digest, bytes(head), windows)])


# Modes


async def test_local_asks_nobody_for_indexes(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache", index="local") == MADE
    assert registry.requests["GET", "referrers"] == 0


async def test_registry_never_pulls(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no index of layer") as caught:
        await origins(name(registry), tmp_path / "cache", index="registry")
    assert exit_code(caught.value) == 66
    assert registry.journal.bytes_sent["blob"] < 1000
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache", index="registry") == FOUND


async def test_none_makes_an_index_whatever_there_is(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    for _ in range(2):
        registry.journal.clear()
        assert await origins(name(registry), tmp_path / "cache", index="none") == MADE
        assert registry.journal.bytes_sent["blob"] >= SIZE


# Trust


UNUSED = "the index in the image's repository is not used: the image is named by its digest"


@pytest.mark.expect_log(UNUSED)
async def test_an_unsigned_index_beside_a_pinned_image_is_not_used(
    registry: Registry, tmp_path: Path
) -> None:
    put(registry, "app", index_of(IMAGE, hide(b"f3"), layer=0))
    async with image_of(name(registry, IMAGE.digest), tmp_path / "cache") as opened:
        assert opened.origins == MADE
        assert await opened.content(b"f3") == CONTENTS[3]
    assert registry.requests["GET", "referrers"] == 1  # to say so


@pytest.mark.parametrize("fault", [None, Status(500)])
async def test_of_a_pinned_image_without_an_index_nothing_is_said(
    registry: Registry, tmp_path: Path, fault: Status | None
) -> None:
    if fault:
        registry.faults.add("referrers", fault)
    assert await origins(name(registry, IMAGE.digest), tmp_path / "cache") == MADE


@pytest.mark.expect_log(UNUSED)
async def test_trust_index_says_otherwise_for_once(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    pinned = name(registry, IMAGE.digest)
    assert await origins(pinned, tmp_path / "cache", trust_index=True) == FOUND
    assert await origins(pinned, tmp_path / "cache", index="local") == MADE
    assert await origins(pinned, tmp_path / "other", trust_index=True) == FOUND
    assert await origins(pinned, tmp_path / "other") == MADE


@pytest.mark.expect_log(UNUSED)
async def test_what_a_tag_brought_in_is_not_used_for_a_digest(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    assert await origins(name(registry, IMAGE.digest), tmp_path / "cache") == MADE


@pytest.mark.expect_log(UNUSED)
async def test_an_index_signed_by_a_configured_key_is_used(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    digest = put(registry, "app", index_of(IMAGE))
    pinned = name(registry, IMAGE.digest)
    sign(registry, "app", digest, KEY)
    assert await origins(pinned, tmp_path / "cache", trusted_keys=(key_file,)) == FOUND
    assert await origins(pinned, tmp_path / "cache", trusted_keys=(key_file,), offline=True) == FOUND
    assert await origins(pinned, tmp_path / "cache") == MADE


@pytest.mark.expect_log("is not used: no key of ours signed it")
async def test_an_index_signed_by_somebody_else_is_not(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    digest = put(registry, "app", index_of(IMAGE))
    sign(registry, "app", digest, new_key())
    pinned = name(registry, IMAGE.digest)
    assert await origins(pinned, tmp_path / "cache", trusted_keys=(key_file,)) == MADE


@pytest.mark.expect_log("are not told: ")
@pytest.mark.expect_log("is not used: no key of ours signed it")
async def test_an_index_whose_signatures_are_not_told_hides_no_signed_one(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    sign(registry, "app", put(registry, "app", index_of(IMAGE, span_size=128 << 10)), KEY)
    other = put(registry, "app", index_of(IMAGE))  # the last is asked for first
    registry.faults.add("manifest", Status(403), path=f"{fallback_tag(other)}.sig")
    pinned = name(registry, IMAGE.digest)
    async with image_of(pinned, tmp_path / "cache", trusted_keys=(key_file,)) as opened:
        assert opened.origins == FOUND
        assert opened.image.indexed[0].head.header.span_size == 128 << 10
    assert registry.faults.pending == 0


async def test_of_several_the_signed_one_is_taken_then_the_last(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    signed = put(registry, "app", index_of(IMAGE, span_size=128 << 10))
    sign(registry, "app", signed, KEY)
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "one", trusted_keys=(key_file,)) as opened:
        assert opened.image.indexed[0].head.header.span_size == 128 << 10
    async with image_of(name(registry), tmp_path / "other") as opened:
        assert opened.image.indexed[0].head.header.span_size == 64 << 10


async def test_an_index_in_a_configured_place_is_used(registry: Registry, tmp_path: Path) -> None:
    put(registry, "indexes", index_of(IMAGE))
    place = f"{registry.host}/indexes"
    for reference in (name(registry), name(registry, IMAGE.digest)):
        cache = tmp_path / reference[-8:]
        assert await origins(reference, cache, index_repo=place) == FOUND
        assert await origins(reference, cache, index_repo=place, offline=True) == FOUND


async def test_an_index_in_a_layout_is_used(registry: Registry, tmp_path: Path) -> None:
    layout = tmp_path / "indexes"
    async with workshop_of(
        name(registry), tmp_path / "a", index_repo=f"oci:{layout}", index="local"
    ) as workshop:
        resolved = await workshop.resolve()
        indexed = await index_layers(resolved, workshop.source, workshop.indexer)
        async with workshop.open_publisher() as publisher:
            assert (await publish_index(resolved, indexed, workshop.indexer, publisher))[1]
            assert not (await publish_index(resolved, indexed, workshop.indexer, publisher))[1]
    reference = name(registry, IMAGE.digest)
    assert await origins(reference, tmp_path / "b", index_repo=f"oci:{layout}") == FOUND


@pytest.mark.expect_log("no indexes are looked for in oci:")
async def test_a_configured_place_that_is_not_there_is_passed_by(registry: Registry, tmp_path: Path) -> None:
    assert await origins(name(registry), tmp_path / "cache", index_repo=f"oci:{tmp_path / 'absent'}") == MADE


async def test_a_place_that_cannot_be_one_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a repository nor oci:DIR"):
        await origins(name(registry), tmp_path / "cache", index_repo="oci-archive:x.tar")


async def test_an_image_in_a_layout_brings_its_own_index(tmp_path: Path) -> None:
    reference = f"oci:{write_layout(tmp_path / 'layout', {'1': IMAGE})}:1"
    async with workshop_of(reference, tmp_path / "a") as workshop:
        resolved = await workshop.resolve()
        indexed = await index_layers(resolved, workshop.source, workshop.indexer)
        async with workshop.open_publisher() as publisher:
            await publish_index(resolved, indexed, workshop.indexer, publisher)
    assert await origins(reference, tmp_path / "b") == FOUND
    assert await origins(reference.removesuffix(":1"), tmp_path / "c") == FOUND


# Signed images


async def test_an_image_that_must_be_signed_and_is_not_is_refused(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    settings = {"require_signature": True, "trusted_keys": (key_file,)}
    with pytest.raises(NotTrusted, match=r"not signed by .*team\.pub") as caught:
        await origins(name(registry), tmp_path / "cache", **settings)
    assert exit_code(caught.value) == 77
    sign(registry, "app", IMAGE.digest, new_key())
    with pytest.raises(NotTrusted):
        await origins(name(registry), tmp_path / "cache", **settings)


async def test_a_signed_image_is_opened_and_its_unsigned_index_is_not_used(
    registry: Registry, tmp_path: Path, key_file: Path
) -> None:
    sign(registry, "app", IMAGE.digest, KEY)
    settings = {"require_signature": True, "trusted_keys": (key_file,)}
    assert await origins(name(registry), tmp_path / "a", **settings) == MADE
    assert await origins(name(registry), tmp_path / "a", **settings, offline=True) == MADE
    sign(registry, "app", put(registry, "app", index_of(IMAGE)), KEY)
    assert await origins(name(registry), tmp_path / "b", **settings) == FOUND


async def test_a_signature_of_the_index_of_images_covers_those_in_it(tmp_path: Path, key_file: Path) -> None:
    with Registry() as registry:
        root = build_index([IMAGE, build_image([UPPER], platform="linux/arm64")])
        registry.push("app", root, tag="1")
        sign(registry, "app", root.digest, KEY)
        settings = {"require_signature": True, "trusted_keys": (key_file,)}
        assert await origins(name(registry), tmp_path / "cache", **settings) == MADE
        with pytest.raises(NotTrusted):  # by its own digest it is another's word
            await origins(name(registry, IMAGE.digest), tmp_path / "other", **settings)
