"""Indexes beside images that are broken, gone, or lie: passed by, looked for anew, or made here."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from indexer.build import BuiltToc
from indexer.digest import sha256_digest
from indexer.errors import FormatError
from indexer.toc import Kind, SpanTable
from indexer.toc_codec import VERSION, decode_head, encode_toc
from lazyfs.errors import NotFound
from lazyfs.image.indexes.gathering import index_layers, indexed_tree
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.source.push.artifact import Artifact
from tests.support.images import build_image
from tests.support.layers import build
from tests.support.published import change_member, encode_older, hide, index_of, put, table_of
from tests.support.registry import Registry
from tests.support.registry_faults import Corrupt, Status
from tests.support.tars import file, hardlink, tar
from tests.support.workshops import image_of, workshop_of
from tests.test_t3_published import CONTENTS, FOUND, IMAGE, LOWER, MADE, name, origins


@pytest.fixture(params=["api", "tag"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(referrers=request.param == "api") as running:
        running.push("app", IMAGE, tag="1")
        yield running


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
