"""Layers with indexes of other tools are read without being pulled, and only by indexes that count."""

import gzip
import random
import shutil

import pytest

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch
from indexer.foreign.embedded import TAIL_SIZE, find_toc
from lazyfs.cache.cache import Cache
from lazyfs.cache.quarantine import Note
from lazyfs.image.trust.demands import Demands, IndexTrust
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.foreign_images import (
    foreign_image,
    opened,
    push_index,
    soci_image,
    soci_index,
)
from tests.support.foreign_layers import LIVING, MIXED, ForeignLayer, contents, gzip_footer, write_layer
from tests.support.foreign_soci import draft, replace_header
from tests.support.images import INDEX_TYPES, MANIFEST_TYPES, encode
from tests.support.layers import gzip_layer, gzip_with_fields
from tests.support.registry import Registry
from tests.support.registry_faults import Status
from tests.support.tars import file, tar

RANDOM = random.Random(3).randbytes(300_000)
PLAIN = tar(file(b"a", RANDOM), file(b"b", b"b" * 1000), file(b"c", RANDOM[:100_000]))
OWN = ("lazyfs", "nobody")
MANIFEST = "manifest"


def compression_of(dialect: str) -> str:
    return "zstd" if "zstd" in dialect else "gzip"


def blob_requests(server: Registry) -> int:
    """Requests for blobs, that for the configuration not counted."""
    return server.requests["GET", "blob"] - 1


@pytest.fixture
def server():
    with Registry() as running:
        yield running


def push(server: Registry, layer, dialect: str, *, tell: bool = True) -> str:
    return server.push("app", foreign_image(layer, compression=compression_of(dialect), tell=tell), "1")


@pytest.mark.parametrize("min_chunk", [0, 5000])
@pytest.mark.parametrize("dialect", LIVING)
async def test_a_layer_with_a_table_is_read_without_being_pulled(server, tmp_path, dialect, min_chunk):
    push(server, write_layer(MIXED, dialect, chunk_size=20_000, min_chunk=min_chunk), dialect)
    async with opened(server, tmp_path) as image:
        kind = "estargz" if dialect == "estargz" else "zstd-chunked"
        assert image.kinds == [(kind, MANIFEST)]
        assert blob_requests(server) == 1
        for path, content in contents(MIXED).items():
            assert await image.content(path) == content
        assert await image.content(b"d/empty") == b""


MANY = tar(*(file(b"f%d" % n, random.Random(n).randbytes(40)) for n in range(3000)))


@pytest.mark.parametrize("dialect", LIVING)
async def test_a_table_costs_at_most_two_requests_and_a_file_one(server, tmp_path, dialect):
    layer = write_layer(MANY, dialect)
    push(server, layer, dialect)
    async with opened(server, tmp_path) as image:
        assert blob_requests(server) == (2 if dialect == "estargz" else 1)
        before = blob_requests(server)
        assert await image.content(b"f1234") == contents(MANY)[b"f1234"]
        assert blob_requests(server) == before + 1


async def test_a_table_is_kept_and_the_next_opening_asks_for_none(server, tmp_path):
    push(server, write_layer(MIXED, "estargz"), "estargz")
    async with opened(server, tmp_path) as image:
        big = await image.content(b"big")
    asked = server.requests["GET", "blob"]
    async with opened(server, tmp_path, offline=True) as image:
        assert image.kinds == [("estargz", MANIFEST)]
        assert await image.content(b"big") == big
    assert server.requests["GET", "blob"] == asked


async def test_a_table_counts_as_much_as_the_manifest_that_names_it(server, tmp_path):
    digest = push(server, write_layer(PLAIN, "estargz"), "estargz")
    cases = {
        Demands(pinned=True): True,
        Demands(indexes=IndexTrust.NONE): False,
        Demands(indexes=IndexTrust.SIGNED): False,
        Demands(indexes=IndexTrust.SIGNED, signed=True): True,
        Demands(indexes=IndexTrust.ANY): True,
    }
    for number, (demands, counts) in enumerate(cases.items()):
        async with opened(server, tmp_path / str(number), demands, name=f"app@{digest}") as image:
            assert image.kinds == [("estargz", MANIFEST) if counts else OWN]


@pytest.mark.parametrize("dialect", [*LIVING, "legacy stargz"])
async def test_a_table_that_no_manifest_names_counts_only_where_all_do(server, tmp_path, dialect):
    layer = write_layer(PLAIN, dialect)
    push(server, layer, dialect, tell=False)
    async with opened(server, tmp_path / "1") as image:
        assert image.kinds == [OWN]
        assert blob_requests(server) == 1  # the pull
    async with opened(server, tmp_path / "2", Demands(indexes=IndexTrust.ANY)) as image:
        kind = "zstd-chunked" if "zstd" in dialect else "estargz"
        assert image.kinds == [(kind, "nobody")]
        assert await image.content(b"a") == RANDOM


@pytest.mark.expect_log("a foreign index of layer .* is passed by: table of contents in the layer: expected")
@pytest.mark.parametrize("dialect", LIVING)
async def test_a_table_that_is_not_the_one_named_is_passed_by(server, tmp_path, dialect):
    layer = write_layer(PLAIN, dialect)
    lying = {
        key: "sha256:" + value[:6:-1] if value.startswith("sha256:") else value
        for key, value in layer.annotations.items()
    }
    push(server, ForeignLayer(layer.blob, layer.json, lying), dialect)
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN]
        assert await image.content(b"a") == RANDOM


async def test_a_table_that_is_in_an_image_of_its_own_is_not_looked_for(server, tmp_path):
    layer = write_layer(PLAIN, "estargz")
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    blob = layer.blob[: place.start] + gzip_footer(b"SG\x11\0STARGZEXTERNALTOC")
    push(server, ForeignLayer(blob, layer.json, layer.annotations), "estargz")
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN]
        assert await image.content(b"a") == RANDOM


@pytest.mark.expect_log("fetching from byte .* expected 0000")
@pytest.mark.parametrize("dialect", LIVING)
async def test_content_that_is_not_as_the_table_promises_reaches_nobody(server, tmp_path, dialect):
    def lie(table):
        for entry in table["entries"]:
            if entry["name"] == "c":
                entry |= {key: "sha256:" + "0" * 64 for key in ("digest", "chunkDigest") if key in entry}
        return table

    push(server, write_layer(PLAIN, dialect, edit=lie), dialect)
    async with opened(server, tmp_path) as image:
        assert await image.content(b"a") == RANDOM
        for _ in range(2):
            with pytest.raises(DigestMismatch):
                await image.content(b"c")
        assert await image.content(b"b") == b"b" * 1000


@pytest.mark.expect_log("index .* is not used: it lied about layer")
async def test_a_table_that_was_found_to_lie_is_not_used_again(server, tmp_path):
    push(server, write_layer(PLAIN, "estargz"), "estargz")
    async with opened(server, tmp_path) as image:
        head = image.image.indexed[0].head
    note = Note(head.header.layer_digest, head.digest, ("it shows what is not there",), 0.0)
    Cache(tmp_path).quarantine.add(note)
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN]
        assert await image.content(b"a") == RANDOM


def _check(cache_dir):
    """What re-hashing the one entry of a cache finds."""
    (check,) = Cache(cache_dir).verify()
    return check


@pytest.mark.parametrize("dialect", LIVING)
async def test_what_was_fetched_by_a_table_can_be_checked_again(server, tmp_path, dialect):
    push(server, write_layer(MIXED, dialect), dialect)
    async with opened(server, tmp_path) as image:
        await image.content(b"holes")
        await image.content(b"d/small")
    check = _check(tmp_path)
    assert (check.right >= 2, check.wrong, check.unverifiable) == (True, (), ())
    (data,) = tmp_path.glob("layers/*/*/data")
    stored = bytearray(data.read_bytes())
    stored[stored.index(b"another") + 100] = 1  # padding
    data.write_bytes(stored)
    assert len(_check(tmp_path).wrong) == 1


# SOCI

UPPER = tar(file(b"d", RANDOM[1000:200_000]), file(b"e", b"small"))
BLOBS = [gzip_layer(PLAIN), gzip_layer(UPPER)]
ZTOCS = {
    sha256_digest(blob): draft(data, blob).encode() for data, blob in zip((PLAIN, UPPER), BLOBS, strict=True)
}


def push_soci(server: Registry, version: int, ztocs=ZTOCS) -> str:
    """The image, its SOCI index attached (1) or named (2)."""
    index = soci_index(ztocs, None)
    image = soci_image([PLAIN, UPPER], BLOBS, sha256_digest(index) if version == 2 else "")
    if version == 1:
        index = soci_index(ztocs, image)
    push_index(server, index, ztocs)
    return server.push("app", image, "1")


def put_listing(server: Registry, digest: str, link) -> None:
    """What refers to a manifest, under the tag that stands in for the referrers API."""
    index = encode({"schemaVersion": 2, "manifests": [link]})
    server.put_manifest("app", fallback_tag(digest), INDEX_TYPES["oci"], index)


@pytest.mark.parametrize(("version", "voucher"), [(1, "nobody"), (2, MANIFEST)])
async def test_layers_are_read_by_ztocs_without_being_pulled(server, tmp_path, version, voucher):
    push_soci(server, version)
    async with opened(server, tmp_path) as image:
        assert image.kinds == [("soci", voucher)] * 2
        assert blob_requests(server) == 2  # a zTOC each
        assert await image.content(b"b") == b"b" * 1000
        assert blob_requests(server) == 3
        assert await image.content(b"a") == RANDOM
        assert await image.content(b"d") == RANDOM[1000:200_000]
    asked = server.requests["GET", "blob"]
    async with opened(server, tmp_path, offline=True) as image:
        assert image.kinds == [("soci", voucher)] * 2
        assert await image.content(b"a") == RANDOM
    assert server.requests["GET", "blob"] == asked


async def test_an_attached_ztoc_counts_like_any_index_beside_the_image(server, tmp_path):
    digest = push_soci(server, 1)
    cases = {
        Demands(): True,
        Demands(pinned=True): False,
        Demands(pinned=True, indexes=IndexTrust.ANY): True,
        Demands(indexes=IndexTrust.NONE): False,
        Demands(indexes=IndexTrust.SIGNED, signed=True): False,
    }
    for number, (demands, counts) in enumerate(cases.items()):
        asked = server.requests["GET", "referrers"]
        async with opened(server, tmp_path / str(number), demands, name=f"app@{digest}") as image:
            assert image.kinds == [("soci", "nobody") if counts else OWN] * 2
        assert server.requests["GET", "referrers"] == asked + counts


async def test_what_was_fetched_by_a_ztoc_cannot_be_checked_again(server, tmp_path):
    """Its digests are of compressed bytes, which are not kept."""
    upper = sha256_digest(BLOBS[1])
    push_index(server, index := soci_index({upper: ZTOCS[upper]}, None), ZTOCS)
    server.push("app", soci_image([UPPER], BLOBS[1:], sha256_digest(index)), "1")
    async with opened(server, tmp_path) as image:
        await image.content(b"d")
    check = _check(tmp_path)
    assert (check.right, check.wrong, len(check.unverifiable) > 0) == (0, (), True)


async def test_a_named_ztoc_counts_as_much_as_the_manifest(server, tmp_path):
    digest = push_soci(server, 2)
    async with opened(server, tmp_path, Demands(pinned=True), name=f"app@{digest}") as image:
        assert image.kinds == [("soci", MANIFEST)] * 2


async def test_layers_without_ztoc_are_pulled(server, tmp_path):
    upper = sha256_digest(BLOBS[1])
    push_soci(server, 1, {digest: data for digest, data in ZTOCS.items() if digest != upper})
    async with opened(server, tmp_path) as image:
        assert image.kinds == [("soci", "nobody"), OWN]
        assert await image.content(b"e") == b"small"


async def test_of_several_attached_indexes_that_with_most_layers_counts(server, tmp_path):
    push_soci(server, 1)
    image = soci_image([PLAIN, UPPER], BLOBS)
    few = dict(list(ZTOCS.items())[:1])
    push_index(server, soci_index(few, image), few)
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody")] * 2


async def test_a_remembered_index_that_is_gone_gives_way_to_another(server, tmp_path):
    image = soci_image([PLAIN, UPPER], BLOBS)
    few = dict(list(ZTOCS.items())[:1])
    old = soci_index(few, image)
    push_index(server, old, few)
    server.push("app", image, "1")
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody"), OWN]
    server.store.delete_manifest("app", sha256_digest(old))
    push_index(server, soci_index(ZTOCS, image), ZTOCS)
    for kept in ("documents", "tocs"):
        shutil.rmtree(tmp_path / kept)
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody")] * 2


@pytest.mark.expect_log("a foreign index of layer .* is passed by: .*not found")
async def test_a_remembered_index_whose_ztocs_are_gone_gives_way_to_another(server, tmp_path):
    image = soci_image([PLAIN, UPPER], BLOBS)
    older = {digest: draft(data, blob, old=True).encode() for digest, data, blob in zip(
        ZTOCS, (PLAIN, UPPER), BLOBS, strict=True)}  # fmt: skip
    push_index(server, old := soci_index(older, image), older)
    server.push("app", image, "1")
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody")] * 2
    server.store.delete_manifest("app", sha256_digest(old))
    for ztoc in older.values():
        server.store.delete_blob("app", sha256_digest(ztoc))
    shutil.rmtree(tmp_path / "tocs")  # the index itself is kept
    push_index(server, soci_index(ZTOCS, image), ZTOCS)
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody")] * 2
        assert await found.content(b"a") == RANDOM
    server.journal.clear()
    async with opened(server, tmp_path) as found:
        assert found.kinds == [("soci", "nobody")] * 2
    assert server.requests["GET", "referrers"] == 0  # the other one is remembered


async def test_an_index_that_is_gone_is_asked_for_once(server, tmp_path):
    image = soci_image([PLAIN, UPPER], BLOBS)
    push_index(server, index := soci_index(ZTOCS, image), ZTOCS)
    server.push("app", image, "1")
    async with opened(server, tmp_path):
        pass
    server.store.delete_manifest("app", sha256_digest(index))
    for asked in (1, 0):
        for kept in ("documents", "tocs"):
            shutil.rmtree(tmp_path / kept)
        server.journal.clear()
        async with opened(server, tmp_path) as found:
            assert found.kinds == [OWN] * 2
        gone = [seen for seen in server.seen if seen.target.endswith(sha256_digest(index))]
        assert len(gone) == asked


async def test_an_index_is_found_by_the_tag_that_stands_in_for_the_referrers_api(tmp_path):
    with Registry(referrers=False) as server:
        digest = push_soci(server, 1)
        (link,) = server.store.referrers("app", digest, None)
        put_listing(server, digest, link)
        async with opened(server, tmp_path) as image:
            assert image.kinds == [("soci", "nobody")] * 2


async def test_an_old_ztoc_costs_a_look_at_the_layers_header(server, tmp_path):
    plain, fields = BLOBS[0], gzip_with_fields(UPPER)
    old = draft(PLAIN, plain, old=True).encode()
    wrong = replace_header(draft(UPPER, BLOBS[1], old=True), len(fields)).encode()
    ztocs = {sha256_digest(plain): old, sha256_digest(fields): wrong}
    index = soci_index(ztocs, None)
    push_index(server, index, ztocs)
    server.push("app", soci_image([PLAIN, UPPER], [plain, fields], sha256_digest(index)), "1")
    async with opened(server, tmp_path) as image:
        assert image.kinds == [("soci", MANIFEST), OWN]
        assert blob_requests(server) == 5  # two zTOCs, two headers, a pull
        assert await image.content(b"a") == RANDOM
        assert await image.content(b"d") == RANDOM[1000:200_000]


@pytest.mark.expect_log("fetching from byte .* expected")
async def test_compressed_bytes_that_are_not_promised_reach_nobody(server, tmp_path):
    lying = dict(ZTOCS)
    first = draft(PLAIN, BLOBS[0])
    lying[sha256_digest(BLOBS[0])] = replace_header(
        first, len(BLOBS[0]), digests=(b"sha256:" + b"0" * 64, *first.digests[1:])
    ).encode()
    push_soci(server, 2, lying)
    async with opened(server, tmp_path) as image:
        with pytest.raises(DigestMismatch):
            await image.content(b"a")
        assert await image.content(b"c") == RANDOM[:100_000]


def _named(server: Registry, index: bytes) -> None:
    server.put_manifest("app", sha256_digest(index), MANIFEST_TYPES["oci"], index)
    server.push("app", soci_image([PLAIN, UPPER], BLOBS, sha256_digest(index)), "1")


BROKEN = {
    "garbage": b"{",
    "of another type": soci_index(ZTOCS, soci_image([PLAIN], BLOBS[:1])),
    "two for a layer": soci_index(ZTOCS, None).replace(b'"layers":[', b'"layers":[' + b",".join(
        soci_index({digest: b"x"}, None).partition(b'"layers":[')[2].partition(b"]}")[0] for digest in ZTOCS
    ) + b","),
}  # fmt: skip


@pytest.mark.expect_log("the SOCI index of .* is passed by")
@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_soci_index_is_passed_by(server, tmp_path, case):
    _named(server, BROKEN[case])
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN] * 2
        assert await image.content(b"a") == RANDOM


@pytest.mark.expect_log("a foreign index of layer .* is passed by")
@pytest.mark.parametrize("ztoc", [b"", b"x" * 500, bytes(2 << 20)])
async def test_a_broken_ztoc_is_passed_by(server, tmp_path, ztoc):
    push_soci(server, 2, dict.fromkeys(ZTOCS, ztoc))
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN] * 2


@pytest.mark.expect_log("no SOCI index of .* is looked for")
async def test_a_registry_that_does_not_tell_is_no_reason_to_fail(server, tmp_path):
    push_soci(server, 1)
    server.faults.add("referrers", Status(403), times=9)
    async with opened(server, tmp_path) as image:
        assert image.kinds == [OWN] * 2


@pytest.mark.expect_log("SOCI index .* is passed by: a SOCI index of another image")
async def test_another_images_soci_index_does_not_count(tmp_path):
    """The registry's list is a claim; the subject in the index decides."""
    with Registry(referrers=False) as server:
        (link,) = server.store.referrers("app", push_soci(server, 1), None)
        digest = server.push("app", soci_image([UPPER], BLOBS[1:]), "1")
        put_listing(server, digest, link)
        async with opened(server, tmp_path) as image:
            assert image.kinds == [OWN]


async def test_plain_layers_have_no_table_and_cost_nothing(server, tmp_path):
    server.push("app", soci_image([PLAIN], [gzip.compress(PLAIN)]), "1")
    async with opened(server, tmp_path, Demands(indexes=IndexTrust.ANY)) as image:
        assert image.kinds == [OWN]
        assert blob_requests(server) == 2  # the tail, the pull
