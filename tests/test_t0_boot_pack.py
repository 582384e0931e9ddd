"""Boot packs: what goes in comes out proved, in any order; what strangers change is found leaf by leaf."""

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.boot_pack import HEADER_SIZE, PackHead, PackLayer, Run, decode_pack_head, head_size
from indexer.boot_pack_leaves import PackReader, build_pack
from indexer.digest import LEAF_SIZE, leaf_count, leaf_digests, merkle_root
from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.leaf_proofs import SpanProof, SpanTree, widths
from indexer.toc import Entry, Proof, Span, SpanTable
from tests.support.spans import digests_of

_RANDOM: Final = random.Random(11)
CONTENT: Final = [_RANDOM.randbytes(300_000) + b"text" * 60_000, _RANDOM.randbytes(90_001)]
LAYERS: Final = [PackLayer(f"sha256:{n:064x}", f"sha256:{n + 9:064x}") for n in range(2)]


def table(data: bytes, cuts: Sequence[int], proof: Proof = Proof.MERKLE) -> SpanTable:
    """Spans that end at these places."""
    spans, start, leaf = [], 0, 0
    for number, end in enumerate([*cuts, len(data)]):
        digests = digests_of(data[start:end])
        spans.append(
            Span(number, start, end, start, end, Entry.RAW, 0, 0, 0, 0, leaf, proof=proof, **digests)
        )
        leaf += leaf_count(end - start)
        start = end
    return SpanTable.from_spans(spans)


TABLES: Final = [table(CONTENT[0], [1, 5000, 9096, 200_000, 400_000]), table(CONTENT[1], [40_960])]
ALL: Final = [(layer, leaf) for layer, spans in enumerate(TABLES) for leaf in range(spans.leaves)]


def read(layer: int, start: int, end: int) -> bytes:
    return CONTENT[layer][start:end]


def pack_of(leaves: Sequence[tuple[int, int]], chunk_size: int = 64 << 10) -> bytes:
    runs = [Run(layer, leaf, leaf + 1) for layer, leaf in leaves]
    return build_pack(LAYERS, TABLES, runs, read, chunk_size=chunk_size, level=1)


PACK: Final = pack_of(random.Random(3).sample(ALL, 60), 16 << 10)


def proved(pack: bytes, tables: Sequence[SpanTable] = TABLES) -> tuple[dict[tuple[int, int], bytes], int]:
    """The leaves that a reader takes, and how many it rejects."""
    head = decode_pack_head(pack)
    reader = PackReader(head, tables)
    found, lost = {}, 0
    for chunk in head.chunks:
        try:
            taken = reader.read(chunk, pack[chunk.start : chunk.end])
        except FormatError:
            lost += sum(run.end_leaf - run.first_leaf for run in head.runs[chunk.first_run : chunk.end_run])
            continue
        for leaves in taken:
            for number, at in enumerate(range(0, len(leaves.data), LEAF_SIZE)):
                data = leaves.data[at : at + LEAF_SIZE]
                assert data == CONTENT[leaves.layer][leaves.start + at :][: len(data)]
                found[leaves.layer, leaves.first_leaf + number] = data
    return found, reader.rejected + lost


@settings(max_examples=60)
@given(st.lists(st.sampled_from(ALL), unique=True, min_size=1), st.sampled_from([1, 8192, 40_000, 1 << 20]))
def test_leaves_in_any_order_and_any_chunks_come_out_proved(leaves, chunk_size):
    pack = pack_of(leaves, chunk_size)
    head = decode_pack_head(pack)
    assert head_size(pack[:HEADER_SIZE]) == head.size
    assert head.pack_size == len(pack)
    assert [(run.layer, leaf) for run in head.runs for leaf in range(run.first_leaf, run.end_leaf)] == leaves
    found, rejected = proved(pack)
    assert set(found) == set(leaves)
    assert rejected == 0


def test_the_same_leaves_make_the_same_bytes():
    assert pack_of(ALL) == pack_of(ALL)


def test_no_chunk_is_much_longer_than_what_comes_before_it():
    runs = [Run(0, 0, 4096)]
    content = bytes(4096 * LEAF_SIZE)
    pack = build_pack(LAYERS[:1], [table(content, [])], runs, lambda _, a, b: content[a:b], level=1)
    sizes = [chunk.raw_size - 32 * chunk.digests for chunk in decode_pack_head(pack).chunks]
    assert sizes[:4] == [256 << 10] * 4
    assert all(size <= max(256 << 10, sum(sizes[:n]) // 4) for n, size in enumerate(sizes))
    assert max(sizes) == 1 << 20
    assert sum(sizes) == len(content)


def test_leaves_of_whole_spans_need_no_digests_and_none_is_told_twice():
    head = decode_pack_head(pack_of([leaf for leaf in ALL if leaf[0] == 1], 1 << 20))
    assert sum(chunk.digests for chunk in head.chunks) == 0
    shuffled = random.Random(5).sample(ALL, len(ALL))
    head = decode_pack_head(pack_of(shuffled, LEAF_SIZE))
    nodes = sum(sum(widths(span.end_leaf - span.first_leaf)) for spans in TABLES for span in spans)
    assert sum(chunk.digests for chunk in head.chunks) < nodes


@settings(max_examples=150)
@given(st.data())
def test_whatever_is_changed_in_a_pack_no_wrong_leaf_comes_out(data):
    at = data.draw(st.integers(0, len(PACK) - 1))
    changed = bytearray(PACK)
    match data.draw(st.sampled_from(["flip", "cut", "insert", "copy"])):
        case "flip":
            changed[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del changed[at:]
        case "insert":
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        case "copy":
            size = data.draw(st.integers(1, 4000))
            other = data.draw(st.integers(0, len(PACK) - 1))
            changed[at : at + size] = PACK[other : other + size]
    with suppress(IndexerError):
        proved(bytes(changed))  # asserts that what comes is right


@pytest.mark.parametrize("where", ["head", "proof", "leaf"])
def test_damage_costs_the_leaves_that_stand_on_it_and_no_others(where):
    head = decode_pack_head(PACK)
    if where == "head":
        with pytest.raises(FormatError, match="checksum"):
            proved(PACK[:60] + bytes([PACK[60] ^ 1]) + PACK[61:])
        return
    tables = list(TABLES)
    wrong = bytearray(CONTENT[0])
    victim = next(run for run in head.runs if run.layer == 0)
    (span,) = tables[0].of_leaves(victim.first_leaf, victim.end_leaf)
    wrong[span.uncompressed_start] ^= 1
    roots = [s._replace(**digests_of(wrong[s.uncompressed_start : s.uncompressed_end])) for s in tables[0]]
    tables[0] = SpanTable.from_spans(roots)  # as if the pack lied about this span
    found, rejected = proved(PACK, tables)
    of_span = [
        (run.layer, leaf)
        for run in head.runs
        for leaf in range(run.first_leaf, run.end_leaf)
        if run.layer == 0 and span.first_leaf <= leaf < span.end_leaf
    ]
    assert rejected == len(of_span)
    assert len(found) == head.leaves - rejected
    assert not set(of_span) & set(found)


def test_content_that_is_not_the_tables_makes_no_pack():
    with pytest.raises(DigestMismatch):
        build_pack(LAYERS, TABLES, [Run(0, 3, 4)], lambda *_: bytes(400_000), level=1)


def test_spans_that_are_proved_as_wholes_make_no_pack():
    foreign = table(CONTENT[1], [], Proof.CONTENT)
    with pytest.raises(Unsupported, match="another tool"):
        build_pack(LAYERS[1:], [foreign], [Run(0, 0, 1)], lambda *_: b"", level=1)


def test_leaves_that_a_layer_does_not_have_are_refused():
    head = decode_pack_head(PACK)
    with pytest.raises(FormatError, match="of a layer that has"):
        PackReader(head, [table(CONTENT[0][:100], []), TABLES[1]])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({0: b"l4zyboot"}, FormatError, "not a boot pack"),
        ({8: b"\2"}, Unsupported, "version 2"),
        ({12: b"\xff\xff\xff\xff"}, LimitExceeded, "layers"),
        ({24: b"\xff" * 8}, LimitExceeded, "head of"),
        ({32: b"\xff" * 8}, LimitExceeded, "decompressed"),
    ],
)
def test_headers_are_bounded(change, error, said):
    data = bytearray(PACK)
    for at, new in change.items():
        data[at : at + len(new)] = new
    with pytest.raises(error, match=said):
        decode_pack_head(bytes(data))


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_noise_is_refused_politely(noise):
    with pytest.raises(IndexerError):
        decode_pack_head(noise)
    with pytest.raises(IndexerError):
        decode_pack_head(PACK[:HEADER_SIZE] + noise)


@settings(max_examples=100)
@given(st.integers(1, 70), st.integers(0, 1 << 32))
def test_any_batches_prove_all_leaves_and_a_wrong_one_is_found(count, seed):
    rng = random.Random(seed)
    content = rng.randbytes(LEAF_SIZE * (count - 1) + 1)
    digests, tree = leaf_digests(content), SpanTree(content)
    assert tree.root == merkle_root(digests)
    writer, reader = SpanProof(count, b""), SpanProof(count, tree.root)
    order = rng.sample(range(count), count)
    while order:
        batch = sorted(order[: rng.randint(1, count)])
        order = order[len(batch) :]
        told = {node: tree[node] for node in writer.needed(batch)}
        assert list(told) == reader.needed(batch)
        leaves = {leaf: digests[leaf] for leaf in batch}
        wrong = rng.choice(batch)
        assert not reader.check({**leaves, wrong: bytes(32)}, told)
        assert reader.check(leaves, told)


def test_the_head_says_what_it_holds():
    head: PackHead = decode_pack_head(PACK)
    assert head.leaves == 60
    assert list(head.layers) == LAYERS
