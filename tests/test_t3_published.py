"""Indexes found beside images: used where they may be, passed by where they may not, counted exactly."""

import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from indexer.build import BuiltToc
from indexer.digest import sha256_digest
from indexer.errors import FormatError
from indexer.toc import Kind, SpanTable
from indexer.toc_codec import VERSION, decode_head, encode_toc
from lazyfs.errors import ConfigError, NotFound, NotTrusted
from lazyfs.exit_codes import exit_code
from lazyfs.image.artifact import LayerFiles, build_artifact
from lazyfs.image.image import index_layers, indexed_tree
from lazyfs.image.indexing import IndexedLayer
from lazyfs.image.publish import publish_index
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.push_artifact import Artifact
from tests.support.images import build_image, build_index, write_layout
from tests.support.layers import build
from tests.support.published import (
    change_member,
    encode_older,
    hide,
    index_of,
    new_key,
    public_pem,
    put,
    sign,
    table_of,
)
from tests.support.registry import Registry
from tests.support.registry_faults import Corrupt, Status
from tests.support.tars import file, hardlink, tar
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


async def test_an_unsigned_index_beside_a_pinned_image_is_not_used(
    registry: Registry, tmp_path: Path
) -> None:
    put(registry, "app", index_of(IMAGE, hide(b"f3"), layer=0))
    async with image_of(name(registry, IMAGE.digest), tmp_path / "cache") as opened:
        assert opened.origins == MADE
        assert await opened.content(b"f3") == CONTENTS[3]
    assert registry.requests["GET", "referrers"] == 0  # none could count


async def test_trust_index_says_otherwise_for_once(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    pinned = name(registry, IMAGE.digest)
    assert await origins(pinned, tmp_path / "cache", trust_index=True) == FOUND
    assert await origins(pinned, tmp_path / "cache", index="local") == MADE
    assert await origins(pinned, tmp_path / "other", trust_index=True) == FOUND
    assert await origins(pinned, tmp_path / "other") == MADE


async def test_what_a_tag_brought_in_is_not_used_for_a_digest(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    assert await origins(name(registry, IMAGE.digest), tmp_path / "cache") == MADE


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


# What is broken


@pytest.mark.expect_log("index sha256:")
@pytest.mark.parametrize("fields", [{"path": b"a/../b"}, {"size": 1 << 40}])
async def test_a_broken_table_is_passed_by(
    registry: Registry, tmp_path: Path, fields: dict[str, Any]
) -> None:
    put(registry, "app", index_of(IMAGE, change_member(b"motd", **fields)))
    assert await origins(name(registry), tmp_path / "cache") == ["found", "made here"]


DANGLING = {"kind": Kind.HARDLINK, "link": b"nowhere", "size": 0, "data_start": 0}


@pytest.mark.expect_log("is passed by: .*nowhere")
async def test_a_table_with_which_layers_make_no_tree_is_done_without(
    registry: Registry, tmp_path: Path
) -> None:
    put(registry, "app", index_of(IMAGE, change_member(b"motd", **DANGLING)))
    assert await origins(name(registry), tmp_path / "cache") == ["found", "made here"]
    registry.journal.clear()
    assert await origins(name(registry), tmp_path / "cache") == ["found", "made here"]
    assert registry.requests == {("GET", "manifest"): 1}


class Finder:
    """Finds what it is given, as often as it is asked."""

    def __init__(self, found: dict[str, IndexedLayer]) -> None:
        self.found = found
        self.asked = 0

    async def find(self, _: ResolvedImage, wanted: Collection[str]) -> dict[str, IndexedLayer]:
        self.asked += 1
        return {digest: index for digest, index in self.found.items() if digest in wanted}


@pytest.mark.expect_log("is passed by: .*nowhere")
async def test_the_next_finders_table_takes_the_place_of_one_that_makes_no_tree(
    registry: Registry, tmp_path: Path
) -> None:
    async with workshop_of(name(registry), tmp_path / "elsewhere", index="local") as workshop:
        resolved = await workshop.resolve()
        good = await index_layers(resolved, workshop.source, workshop.indexer)
    motd = resolved.layers[-1].descriptor.digest
    lie = change_member(b"motd", **DANGLING)(build(IMAGE.layers[-1]))
    bad = IndexedLayer(decode_head(encode_toc(lie.toc)), memoryview(lie.windows))
    finders = Finder({motd: bad}), Finder(good)
    async with workshop_of(name(registry), tmp_path / "cache") as workshop:
        tree = indexed_tree(resolved, workshop.source, workshop.indexer, workshop.cache, finders)
        assert (await tree)[0] == good
    assert [finder.asked for finder in finders] == [2, 2]


@pytest.mark.expect_log("is passed by: ")
async def test_a_lower_table_that_hides_what_is_linked_to_is_found_out(
    registry: Registry, tmp_path: Path
) -> None:
    linked = build_image([LOWER, tar(file(b"motd", b"hello\n"), hardlink(b"again", b"f3"))])
    registry.push("app", linked, tag="2")
    put(registry, "app", index_of(linked, hide(b"f3"), layer=0))
    async with image_of(f"{registry.host}/app:2", tmp_path / "cache") as opened:
        assert await opened.content(b"again") == CONTENTS[3]
        assert opened.origins == MADE


@pytest.mark.expect_log("is passed by: ")
async def test_an_image_that_is_no_tree_is_none_by_any_table(registry: Registry, tmp_path: Path) -> None:
    broken = build_image([LOWER, tar(hardlink(b"again", b"nowhere"))])
    registry.push("app", broken, tag="2")
    put(registry, "app", index_of(broken))
    with pytest.raises(FormatError, match="nowhere"):
        async with image_of(f"{registry.host}/app:2", tmp_path / "cache"):
            pass


async def test_where_no_index_is_kept_an_image_that_is_no_tree_is_pulled_once(
    registry: Registry, tmp_path: Path
) -> None:
    broken = build_image([LOWER, tar(hardlink(b"again", b"nowhere"))])
    registry.push("app", broken, tag="2")
    with trio.fail_after(20), pytest.raises(FormatError, match="nowhere"):
        async with image_of(f"{registry.host}/app:2", tmp_path / "cache", index="none"):
            pass
    assert registry.requests["GET", "blob"] == 1 + len(broken.layers)


@pytest.mark.expect_log("fetching from byte .* not found")
async def test_an_index_whose_windows_are_gone_is_looked_for_anew(registry: Registry, tmp_path: Path) -> None:
    old = index_of(IMAGE)
    put(registry, "app", old)
    assert await origins(name(registry), tmp_path / "cache") == FOUND
    windows = old.blobs[2][0].digest
    registry.faults.add("blob", Status(404), times=9, path=windows)
    put(registry, "app", index_of(IMAGE, span_size=128 << 10))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        with pytest.raises(NotFound):
            await opened.content(b"f9")
    async with image_of(name(registry), tmp_path / "cache") as opened:
        assert await opened.content(b"f9") == CONTENTS[9]
        assert opened.origins == FOUND


def larger_windows(built: BuiltToc) -> BuiltToc:
    """A table that says its windows take more than the layer."""
    size = 64 << 10
    spans = [
        s._replace(window_start=s.number * size, window_end=(s.number + 1) * size) for s in built.toc.spans
    ]
    windows = bytes(size * len(spans))
    header = replace(built.toc.header, windows_digest=sha256_digest(windows))
    return BuiltToc(replace(built.toc, header=header, spans=SpanTable.from_spans(spans)), windows)


@pytest.mark.expect_log("windows of [0-9]+ bytes for a layer of")
async def test_windows_larger_than_their_layer_are_refused(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE, larger_windows, layer=0, span_size=32 << 10))
    assert await origins(name(registry), tmp_path / "cache") == ["made here", "found"]


@pytest.mark.expect_log("not found|404|has no")
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_an_index_that_is_gone_from_a_list_is_passed_by(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    put(registry, "app", index_of(IMAGE))
    other = index_of(IMAGE, span_size=128 << 10)
    digest = put(registry, "app", other)
    gone = digest if kind == "manifest" else other.blobs[1][0].digest
    registry.faults.add(kind, Status(404), times=9, path=gone)
    assert await origins(name(registry), tmp_path / "cache") == FOUND


OTHER = build_image([tar(file(b"motd", b"other\n"))])


@pytest.mark.expect_log("another diffID")
async def test_another_layers_table_is_passed_by(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE, table_of(OTHER.layers[0])))
    assert await origins(name(registry), tmp_path / "cache") == ["found", "made here"]


@pytest.mark.expect_log("index of another image")
async def test_another_images_index_is_passed_by(tmp_path: Path) -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        theirs = index_of(OTHER)
        put(registry, "app", Artifact(theirs.data, theirs.descriptor, IMAGE.digest, theirs.blobs))
        assert await origins(name(registry), tmp_path / "cache") == MADE


@pytest.mark.expect_log("sha256:")
async def test_a_head_that_is_damaged_on_its_way_is_passed_by(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    registry.faults.add("blob", Corrupt(20), skip=1)
    assert sorted(await origins(name(registry), tmp_path / "cache")) == ["found", "made here"]


@pytest.mark.expect_log(rf"index sha256:.*version {VERSION - 1}; this program reads {VERSION}")
async def test_an_index_of_another_version_is_passed_by(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE, encode=encode_older))
    assert await origins(name(registry), tmp_path / "cache") == MADE
    put(registry, "app", index_of(IMAGE))
    put(registry, "app", index_of(build_image([LOWER]), encode=encode_older))
    assert await origins(name(registry), tmp_path / "other") == FOUND


async def test_tables_of_another_version_in_the_cache_are_made_anew(
    registry: Registry, tmp_path: Path
) -> None:
    async with image_of(name(registry), tmp_path / "cache") as opened:
        tocs = opened.workshop.cache.tocs
        for index in opened.image.indexed:
            older, layer = encode_older(index.head.toc()), index.head.header.layer_digest
            for kept in tocs.names(layer):
                tocs.save(layer, kept, older, bytes(index.windows))
    registry.journal.clear()
    assert await origins(name(registry), tmp_path / "cache") == MADE
    assert registry.requests["GET", "blob"] == len(IMAGE.layers)
    registry.journal.clear()
    assert await origins(name(registry), tmp_path / "cache") == MADE
    assert registry.requests["GET", "blob"] == 0


@pytest.mark.expect_log("indexes in the image's repository are passed by")
@pytest.mark.expect_log("no SOCI index")
async def test_a_registry_that_tells_nothing_of_indexes_costs_a_pull(
    registry: Registry, tmp_path: Path
) -> None:
    registry.faults.add("referrers", Status(403))
    assert await origins(name(registry), tmp_path / "cache") == MADE
