"""The audit, by `verify` and in the background: the truth passes, lies are caught, damage here is no lie."""

import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from indexer.digest import content_digest, sha256_digest
from indexer.toc import Extent, Kind, Member, Span
from indexer.toc_codec import decode_head, encode_toc
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.quarantine import Note
from lazyfs.errors import NotTrusted
from lazyfs.image.auditing.audit import Audit, DigestCheck, audit_stream
from lazyfs.image.auditing.auditor import Auditor, cases_of
from lazyfs.image.auditing.verifying import LayerReport, Origin, verify_image
from lazyfs.image.indexes.indexing import no_progress
from tests.support.images import build_image, build_image_from_layers
from tests.support.layers import ENCODINGS, build, gzip_layer
from tests.support.published import (
    Change,
    change_member,
    hide,
    index_of,
    put,
    swap_roots,
    table_of,
    with_blake3_of,
    with_content,
    with_members,
    with_root_of,
    with_spans,
)
from tests.support.registry import Registry
from tests.support.tars import directory, file, gnu_sparse, symlink, tar
from tests.support.workshops import Opened, image_of, workshop_of

_RANDOM = random.Random(13)
CONTENTS = [_RANDOM.randbytes(25_000) + b"text %d" % n * 4000 for n in range(12)]
TAR = tar(
    directory(b"d"),
    symlink(b"d/link", b"../f1"),
    *(file(b"f%d" % number, content) for number, content in enumerate(CONTENTS)),
    gnu_sparse(b"sparse", 100_000, [(8192, b"x" * 4096)]),
)
BLOB = gzip_layer(TAR)
IMAGE = build_image([TAR])
DIFF_ID = sha256_digest(TAR)
OTHER_CONTENT = b"!" * len(TAR)
OTHER = gzip_layer(tar(file(b"other", b"other" * 50_000)))


def pieces(data: bytes, size: int = 100_000) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def audit_of(change: Change | None = None, data: bytes = TAR, diff_id: str = DIFF_ID) -> Audit:
    built = build(BLOB)
    built = change(built) if change else built
    return audit_stream(decode_head(encode_toc(built.toc)), diff_id, pieces(data))


# Comparing


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_truth_passes(name: str) -> None:
    head = decode_head(encode_toc(build(ENCODINGS[name](TAR)).toc))
    assert audit_stream(head, DIFF_ID, pieces(TAR)) == Audit()


@given(st.lists(st.integers(0, len(TAR)), max_size=20))
@settings(max_examples=30)
def test_roots_are_right_however_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TAR)]
    check = DigestCheck(build(BLOB).toc.spans)
    for start, end in pairwise(edges):
        check.feed(TAR[start:end])
    check.close()
    assert check.wrong == []


@given(st.integers(0, len(TAR) - 1))
@settings(max_examples=30)
def test_one_changed_byte_is_one_wrong_span(at: int) -> None:
    changed = bytearray(TAR)
    changed[at] ^= 1
    check = DigestCheck(SPANS)
    check.feed(bytes(changed))
    check.close()
    assert check.wrong == [SPANS.find(at)]


SPANS = build(BLOB).toc.spans


@pytest.mark.parametrize("lie", [with_root_of(OTHER_CONTENT), with_blake3_of(OTHER_CONTENT)])
def test_digests_of_different_bytes_are_a_lie_and_no_damage(lie: Change) -> None:
    """What either digest is of may be read: such bytes came as they should, and the table is to blame."""
    audit = audit_of(lie)
    assert audit == Audit(("the digests of span 0 are of different bytes",))


def test_content_that_one_digest_is_of_counts_for_nothing_else() -> None:
    """Planted by leaves that the root proves, or fetched and checked by BLAKE3: the other one tells."""
    spans = with_root_of(OTHER_CONTENT)(build(BLOB)).toc.spans
    end = spans[0].uncompressed_end
    check = DigestCheck(spans)
    check.feed(OTHER_CONTENT[:end] + TAR[end:])
    check.close()
    assert (check.torn, check.wrong) == ([0], [])
    check = DigestCheck(spans)
    check.feed(b"?" + OTHER_CONTENT[1:end] + TAR[end:])
    check.close()
    assert (check.torn, check.wrong) == ([], [0])


def test_spans_that_never_pass_by_are_wrong() -> None:
    check = DigestCheck(SPANS)
    check.feed(TAR[: SPANS[3].uncompressed_start + 1])
    check.close()
    assert check.wrong == list(range(3, len(SPANS)))


MEMBER_LIES: dict[str, tuple[Change, str]] = {
    "a hidden file": (hide(b"f3"), "'f3': in the layer, and not in the index"),
    "a hidden symlink": (hide(b"d/link"), "'d/link': in the layer, and not in the index"),
    "an invented file": (
        with_members(lambda ms: [*ms, Member(b"etc/passwd", Kind.REGULAR, size=100, data_start=512)]),
        "'etc/passwd': in the index, and not in the layer",
    ),
    "an invented whiteout": (
        with_members(lambda ms: [*ms, Member(b".wh.f1", Kind.REGULAR)]),
        "'.wh.f1': in the index",
    ),
    "a moved offset": (change_member(b"f2", data_start=512), "'f2': data_start is 512 in the index, "),
    "another size": (change_member(b"f2", size=1), "'f2': size is 1 in the index, 49000 in the layer"),
    "setuid": (change_member(b"f2", mode=0o4755), "'f2': mode is 2541 in the index"),
    "another owner": (change_member(b"f2", uid=1), "'f2': uid is 1 in the index, 0 in the layer"),
    "another target": (change_member(b"d/link", link=b"/etc"), "'d/link': link is '/etc' in the index"),
    "a capability": (change_member(b"f2", xattrs=((b"security.capability", b"x"),)), "'f2': xattrs is "),
    "another name": (change_member(b"f2", path=b"bin/sh"), "'f2': in the layer, and not in the index"),
    "another order": (with_members(lambda ms: ms[::-1]), "in another order"),
    "twice the same": (with_members(lambda ms: [*ms, ms[-2]]), "in the index, and not in the layer"),
    "another tail": (
        lambda built: replace(built, toc=replace(built.toc, extents=_moved(built.toc.extents))),
        "the tail of sparse members",
    ),
}


def _moved(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
    return tuple(extent._replace(tar_start=0) for extent in extents)


@pytest.mark.parametrize("name", MEMBER_LIES)
def test_a_lie_about_members_is_told(name: str) -> None:
    change, words = MEMBER_LIES[name]
    audit = audit_of(change)
    assert any(words in lie for lie in audit.lies), audit.lies
    assert audit.wrong_spans == ()


def test_many_lies_are_told_in_few_lines() -> None:
    audit = audit_of(with_members(lambda ms: [m._replace(uid=7) for m in ms]))
    assert len(audit.lies) <= 20


def test_content_with_another_diff_id_is_told() -> None:
    audit = audit_of(diff_id=sha256_digest(b"other"))
    assert audit.lies == (f"the layer's content is {DIFF_ID}; its diffID is {sha256_digest(b'other')}",)


def test_content_that_is_no_tar_is_told() -> None:
    data = TAR[:100] + b"!" * 600 + TAR[700:]
    assert any("no tar that can be read" in lie for lie in audit_of(with_content(data), data).lies)


# Verifying


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, tag="1")
        yield running


def name(registry: Registry) -> str:
    return f"{registry.host}/app:1"


async def verified(reference: str, cache: Path, *, pull: bool = False, **options: Any) -> list[LayerReport]:
    async with workshop_of(reference, cache, **options) as workshop:
        resolved = await workshop.resolve()
        here = workshop.source, workshop.indexer, workshop.cache, workshop.finders
        return await verify_image(resolved, *here, no_progress, pull=pull)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_true_index_is_verified_by_pulling_its_layer_once(encoding: str, tmp_path: Path) -> None:
    image = build_image_from_layers([ENCODINGS[encoding](TAR)], [DIFF_ID])
    with Registry() as registry:
        registry.push("app", image, tag="1")
        put(registry, "app", index_of(image))
        (report,) = await verified(name(registry), tmp_path / "cache")
        assert report.passed
        assert report.origin is Origin.FOUND
        layer = sha256_digest(image.layers[0])
        assert sum(seen.target.endswith(layer) for seen in registry.seen) == 1


async def test_what_is_made_now_is_verified_as_it_is_made(registry: Registry, tmp_path: Path) -> None:
    (report,) = await verified(name(registry), tmp_path / "cache")
    assert (report.passed, report.origin) == (True, Origin.MADE_NOW)
    registry.journal.clear()
    (report,) = await verified(name(registry), tmp_path / "cache")
    assert (report.passed, report.origin, report.verdict.bytes_from.value) == (
        True,
        Origin.MADE_HERE,
        "cache",
    )
    assert registry.requests["GET", "blob"] == 0
    (report,) = await verified(name(registry), tmp_path / "cache", pull=True)
    assert (report.passed, report.verdict.bytes_from.value) == (True, "source")


async def test_an_image_whose_diff_ids_are_wrong_is_told(tmp_path: Path) -> None:
    image = build_image_from_layers([BLOB], [sha256_digest(b"other")])
    with Registry() as registry:
        registry.push("app", image, tag="1")
        for _ in range(2):
            (report,) = await verified(name(registry), tmp_path / "cache")
            assert "its diffID is" in report.verdict.audit.lies[0]


def change_second(**changes: int) -> Change:
    """Spans of which the second begins somewhere else."""

    def change(spans: list[Span]) -> list[Span]:
        fields = {field: getattr(spans[1], field) + by for field, by in changes.items()}
        return [spans[0], spans[1]._replace(**fields), *spans[2:]]

    return with_spans(change)


SPAN_LIES: dict[str, Change] = {
    "a swapped root": with_spans(swap_roots),
    "a moved compressed offset": change_second(compressed_start=1),
    "another bit": change_second(bits=1),
    "spans of another layer": table_of(OTHER, diff_id=DIFF_ID),
    "digests of other content": with_content(OTHER_CONTENT),
    "a root of other content": with_root_of(OTHER_CONTENT),
    "a BLAKE3 digest of other content": with_blake3_of(OTHER_CONTENT),
}


@pytest.mark.parametrize("lie", [*SPAN_LIES, *MEMBER_LIES])
async def test_verify_catches_the_lie_and_it_is_not_used_again(
    registry: Registry, tmp_path: Path, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    change = SPAN_LIES[lie] if lie in SPAN_LIES else MEMBER_LIES[lie][0]
    put(registry, "app", index_of(IMAGE, change))
    (report,) = await verified(name(registry), tmp_path / "cache")
    assert not report.passed
    assert report.verdict.audit.lies
    async with image_of(name(registry), tmp_path / "cache") as opened:
        assert opened.origins == ["made here"]
        assert await opened.content(b"f3") == CONTENTS[3]
    assert ["lied about layer" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()


async def test_verify_holds_damage_in_the_cache_against_no_index(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        layer = opened.image.layers[0]
        await layer.read(0, len(TAR))
        with (layer.entry.path / "data").open("r+b") as data:
            data.seek(100_000)
            data.write(b"rot")
    (report,) = await verified(name(registry), tmp_path / "cache")
    assert not report.passed
    assert report.verdict.audit == Audit((), (SPANS.find(100_000),))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        assert opened.origins == ["found"]


async def test_an_audited_index_counts_for_a_pinned_image(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    pinned = f"{registry.host}/app@{IMAGE.digest}"
    (report,) = await verified(name(registry), tmp_path / "cache")
    assert report.passed
    async with image_of(pinned, tmp_path / "cache") as opened:
        assert opened.origins == ["found"]
        assert opened.image.indexed[0].audited
        assert await opened.content(b"f3") == CONTENTS[3]


# In the background


async def read_all(opened: Opened) -> None:
    for number in range(len(CONTENTS)):
        assert await opened.content(b"f%d" % number) == CONTENTS[number]
    await opened.content(b"sparse")


async def test_a_layer_is_audited_once_it_is_complete(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
        nursery.start_soon(auditor.run)
        await opened.content(b"f1")
        assert auditor.statistics().audited == 0
        await read_all(opened)
    assert auditor.statistics().audited == 1  # the nursery ended because nothing is left to do
    async with image_of(f"{registry.host}/app@{IMAGE.digest}", tmp_path / "cache") as opened:
        assert opened.origins == ["found"]
        assert Auditor(cases_of(opened.image), opened.workshop.cache).statistics().audited == 1


async def test_what_was_audited_is_read_again_after_eviction_wherever_its_windows_were(
    registry: Registry, tmp_path: Path
) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        nursery.start_soon(Auditor(cases_of(opened.image), opened.workshop.cache).run)
        await read_all(opened)
    windows = opened.image.indexed[0].head.header.windows_digest
    registry.push("other", IMAGE, tag="1")
    async with image_of(f"{registry.host}/other:1", tmp_path / "cache") as opened:
        (layer,) = opened.image.layers
        await trio.to_thread.run_sync(layer.entry.evict, list(opened.image.indexed[0].head.spans()))
        registry.journal.clear()
        await read_all(opened)
        assert registry.requests["GET", "blob"]
        assert not any(seen.target.endswith(windows) for seen in registry.seen)


@pytest.mark.expect_log("the index sha256:[0-9a-f]+ of layer sha256:[0-9a-f]+ lies: ")
@pytest.mark.expect_log("it lied about layer")
@pytest.mark.parametrize("lie", ["a hidden file", "a moved offset", "an invented whiteout", "another tail"])
async def test_a_lying_index_is_put_into_quarantine_and_its_readers_are_told(
    registry: Registry, tmp_path: Path, lie: str
) -> None:
    put(registry, "app", index_of(IMAGE, MEMBER_LIES[lie][0]))
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
        nursery.start_soon(auditor.run)
        layer = opened.image.layers[0]
        assert await layer.read(0, len(TAR)) == TAR
    with pytest.raises(NotTrusted, match="lies"):
        layer.read_nowait(0, 1)
    with pytest.raises(NotTrusted, match="lies"):
        await layer.read(0, 1)
    assert auditor.statistics().lying == (sha256_digest(IMAGE.layers[0]),)
    async with image_of(name(registry), tmp_path / "cache") as opened:
        assert opened.origins == ["made here"]


@pytest.mark.expect_log("lies: the digests of span 0 are of different bytes")
@pytest.mark.expect_log("it lied about layer")
@pytest.mark.parametrize("lie", [with_root_of(OTHER_CONTENT), with_blake3_of(OTHER_CONTENT)])
async def test_digests_of_different_bytes_are_found_out_in_the_background(
    registry: Registry, tmp_path: Path, lie: Change
) -> None:
    put(registry, "app", index_of(IMAGE, lie))
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        layer, first = opened.image.layers[0], opened.image.indexed[0].head.spans()[0]
        if first.blake3 != content_digest(TAR[: first.uncompressed_end]):  # only a boot pack can bring it
            assert layer.entry.put(0, 0, TAR[: first.uncompressed_end])
        auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
        nursery.start_soon(auditor.run)
        assert await layer.read(0, len(TAR)) == TAR
    assert auditor.statistics().lying == (sha256_digest(IMAGE.layers[0]),)
    async with image_of(name(registry), tmp_path / "cache") as opened:
        assert opened.origins == ["made here"]


@pytest.mark.expect_log("lies: found by somebody else")
async def test_what_another_found_counts_here(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        head, quarantine = opened.image.indexed[0].head, opened.workshop.cache.quarantine

        def found_meanwhile(*_: str) -> None:
            monkeypatch.undo()
            quarantine.add(Note(head.header.layer_digest, head.digest, ("found by somebody else",), 0.0))
            trio.from_thread.run(opened.image.layers[0].read, 0, 1)  # so that it looks again

        monkeypatch.setattr(quarantine, "find", found_meanwhile)
        with trio.fail_after(30):
            await Auditor(cases_of(opened.image), opened.workshop.cache).run()
        with pytest.raises(NotTrusted):
            await opened.content(b"f1")


@pytest.mark.expect_log("1 spans of layer sha256:[0-9a-f]+ were damaged in the cache")
async def test_damage_in_the_cache_is_no_lie(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        layer = opened.image.layers[0]
        await layer.read(0, len(TAR))
        os.pwrite(layer.entry.fileno(), b"rot", 100_000)
        async with trio.open_nursery() as nursery:
            auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
            nursery.start_soon(auditor.run)
            while layer.entry.complete:  # noqa: ASYNC110  # nobody tells of it
                await trio.sleep(0.01)
            assert await layer.read(0, len(TAR)) == TAR
        assert auditor.statistics().audited == 1


async def test_verifying_can_be_given_up(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    async with image_of(name(registry), tmp_path / "cache") as opened:
        await opened.image.layers[0].read(0, len(TAR))
        reads: list[int] = []

        def read(_: LayerEntry, start: int, size: int) -> bytes:
            reads.append(start)
            trio.from_thread.run_sync(scope.cancel)
            return bytes(size)

        monkeypatch.setattr(LayerEntry, "read", read)
        monkeypatch.setattr("lazyfs.image.auditing.verify._PIECE", 4096)
        with trio.CancelScope() as scope:
            await verified(name(registry), tmp_path / "cache")
        assert reads == [0]


async def test_an_audit_ends_with_its_mount(registry: Registry, tmp_path: Path) -> None:
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened:
        await opened.image.layers[0].read(0, len(TAR))
        auditor = Auditor(cases_of(opened.image), opened.workshop.cache)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auditor.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert auditor.statistics().audited == 0
