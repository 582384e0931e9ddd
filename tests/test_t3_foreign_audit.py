"""Indexes of other tools are verified by what they lead to: members, and the content under each name."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.digest import sha256_digest
from indexer.errors import LimitExceeded
from indexer.foreign import estargz, zstd_chunked
from indexer.toc_codec import decode_head, encode_toc
from lazyfs.image.auditing.audit import audit_stream
from lazyfs.image.auditing.auditor import Auditor, cases_of
from lazyfs.image.auditing.verifying import LayerReport, Origin, verify_image
from lazyfs.image.indexes.indexing import no_progress
from tests.support.foreign_images import push_index, soci_image, soci_index
from tests.support.foreign_layers import DIALECTS, LIVING, MIXED, ForeignLayer, write_layer
from tests.support.foreign_soci import draft, with_file
from tests.support.images import LAYER_TYPES, build_image_from_layers
from tests.support.layers import build, gzip_layer
from tests.support.published import with_content
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import image_of, workshop_of

PAIR = tar(file(b"one", b"1" * 5000), file(b"two", b"2" * 5000), file(b"x", b"", mode=0o755))


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def push(registry: Registry, layer: ForeignLayer, dialect: str) -> None:
    """An image of the layer, with its true diffID."""
    compression = "zstd" if "zstd" in dialect else "gzip"
    image = build_image_from_layers(
        [layer.blob],
        [build(layer.blob).toc.header.diff_id],
        layer_type=LAYER_TYPES["oci", compression],
        layer_annotations=[layer.annotations],
    )
    registry.push("app", image, tag="1")


async def verified(registry: Registry, cache: Path, **settings: Any) -> LayerReport:
    async with workshop_of(f"{registry.host}/app:1", cache, **settings) as workshop:
        resolved = await workshop.resolve()
        here = workshop.source, workshop.indexer, workshop.cache, workshop.finders
        (report,) = await verify_image(resolved, *here, no_progress, pull=False)
        return report


@pytest.mark.parametrize("min_chunk", [0, 5000])
@pytest.mark.parametrize("dialect", LIVING)
async def test_a_true_table_in_a_layer_passes(
    registry: Registry, tmp_path: Path, dialect: str, min_chunk: int
) -> None:
    push(registry, write_layer(MIXED, dialect, chunk_size=20_000, min_chunk=min_chunk), dialect)
    report = await verified(registry, tmp_path / "cache")
    assert report.origin is Origin.FOUND
    assert report.verdict.audit.lies == ()
    assert report.passed


async def test_a_layer_above_the_limits_is_no_lie(registry: Registry, tmp_path: Path) -> None:
    """That it may become so large was said when its table was taken."""
    layer = write_layer(tar(file(b"zeros", bytes(130 << 20))), "estargz")
    diff_id = sha256_digest(gzip.decompress(layer.blob))
    image = build_image_from_layers([layer.blob], [diff_id], layer_annotations=[layer.annotations])
    registry.push("app", image, tag="1")
    report = await verified(registry, tmp_path / "cache", max_ratio=2000)
    assert (report.origin, report.verdict.audit.lies) == (Origin.FOUND, ())
    with pytest.raises(LimitExceeded, match="raise max_ratio"):
        await verified(registry, tmp_path / "cache")
    report = await verified(registry, tmp_path / "cache", max_ratio=2000)
    assert report.origin is Origin.FOUND


def test_a_tar_that_is_too_much_for_us_is_no_lie() -> None:
    data = tar(file(b"f", b"", xattrs={b"user.large": b"x" * 70_000}))
    built = with_content(data)(build(gzip_layer(tar(file(b"f", bytes(len(data) - 1536))))))
    head = decode_head(encode_toc(built.toc))
    with pytest.raises(LimitExceeded, match="xattr"):
        audit_stream(head, sha256_digest(data), [data])
    assert "its diffID is sha256:0" in audit_stream(head, "sha256:" + "0" * 64, [data]).lies[0]


def with_table(layer: ForeignLayer, dialect: str, change: Callable[[list[Any]], object]) -> ForeignLayer:
    """The layer with other words in its table."""
    if dialect == "estargz":
        place = estargz.find_toc(layer.blob[-estargz.FOOTER_SIZE :], len(layer.blob))
    else:
        place = zstd_chunked.find_toc(layer.blob[-200:], len(layer.blob))
    assert place is not None
    table = json.loads(layer.json)
    change(table["entries"])
    return DIALECTS[dialect].finish(layer.blob[: place.payload_end], json.dumps(table).encode())


def entry(entries: list[Any], name: str) -> Any:
    return next(one for one in entries if one["name"] == name)


def swap_contents(entries: list[Any]) -> None:
    one, two = entry(entries, "one"), entry(entries, "two")
    for key in ("digest", "offset", "endOffset", "chunkDigest"):
        if key in one:
            one[key], two[key] = two[key], one[key]


LIES: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "a hidden file": (lambda es: es.remove(entry(es, "x")), "'x': in the layer, and not in the index"),
    "another mode": (lambda es: entry(es, "x").update(mode=0o4755), "'x': mode is 2541 in the index"),
    "another owner": (lambda es: entry(es, "x").update(uid=7), "'x': uid is 7 in the index"),
}


@pytest.mark.parametrize("dialect", LIVING)
@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_in_a_table_is_told(registry: Registry, tmp_path: Path, dialect: str, lie: str) -> None:
    change, words = LIES[lie]
    push(registry, with_table(write_layer(PAIR, dialect), dialect, change), dialect)
    report = await verified(registry, tmp_path / "cache")
    assert any(words in told for told in report.verdict.audit.lies), report.verdict.audit.lies


@pytest.mark.parametrize("dialect", ["estargz"])
async def test_swapped_contents_are_told(registry: Registry, tmp_path: Path, dialect: str) -> None:
    push(registry, with_table(write_layer(PAIR, dialect), dialect, swap_contents), dialect)
    report = await verified(registry, tmp_path / "cache")
    assert report.origin is Origin.FOUND
    assert [told for told in report.verdict.audit.lies if "other content" in told]


# SOCI

BLOB = gzip_layer(PAIR)


def push_soci(registry: Registry, said: Any) -> None:
    ztoc = said.encode()
    index = soci_index({sha256_digest(BLOB): ztoc}, None)
    push_index(registry, index, {sha256_digest(BLOB): ztoc})
    registry.push("app", soci_image([PAIR], [BLOB], sha256_digest(index)), tag="1")


async def test_a_true_ztoc_passes(registry: Registry, tmp_path: Path) -> None:
    push_soci(registry, draft(PAIR, BLOB))
    report = await verified(registry, tmp_path / "cache")
    assert report.origin is Origin.FOUND
    assert report.passed


async def test_a_true_ztoc_passes_in_the_background(registry: Registry, tmp_path: Path) -> None:
    push_soci(registry, draft(PAIR, BLOB))
    async with image_of(f"{registry.host}/app:1", tmp_path / "cache") as opened:
        auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
        assert await opened.image.layers[0].read(0, len(PAIR)) == PAIR
        await auditor.run()
        assert auditor.statistics().audited == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": 0o4755}, "'one': mode is 2541 in the index"),
        ({"name": b"other"}, "'one': in the layer, and not in the index"),
        ({"uid": 7}, "'one': uid is 7 in the index"),
    ],
)
async def test_a_lie_in_a_ztoc_is_told(
    registry: Registry, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    push_soci(registry, with_file(draft(PAIR, BLOB), 0, **changes))
    report = await verified(registry, tmp_path / "cache")
    assert any(words in told for told in report.verdict.audit.lies), report.verdict.audit.lies
