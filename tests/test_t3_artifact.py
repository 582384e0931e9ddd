"""The index as an artifact: the same bytes each time, read with suspicion."""

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.toc import Proof
from indexer.toc_codec import decode_head, encode_toc
from lazyfs.image.indexes.artifact import (
    LAYER_KEY,
    MAX_HEAD,
    TOC_TYPE,
    WINDOWS_TYPE,
    LayerFiles,
    build_artifact,
    check_head,
    check_windows,
    parse_artifact,
    windows_link,
)
from lazyfs.oci.descriptor import Descriptor
from tests.support.images import build_image, encode
from tests.support.layers import build, gzip_layer, zstd_frame
from tests.support.published import index_of, with_spans
from tests.support.tars import file, tar

LAYER_A, LAYER_B = sha256_digest(b"layer a"), sha256_digest(b"layer b")
SUBJECT = Descriptor("application/vnd.oci.image.manifest.v1+json", sha256_digest(b"image"), 5)
ARTIFACT = build_artifact(
    SUBJECT, [LayerFiles(LAYER_A, b"head a", b"windows a"), LayerFiles(LAYER_B, b"head b", b"")]
)
_RANDOM = random.Random(7)
TAR = tar(*(file(b"f%d" % n, _RANDOM.randbytes(30_000) + b"text %d" % n * 4000) for n in range(12)))


def test_the_manifest_is_what_the_format_says() -> None:
    def link(media_type: str, data: bytes, layer: str) -> dict[str, Any]:
        fields = {"mediaType": media_type, "digest": sha256_digest(data), "size": len(data)}
        return fields | {"annotations": {"vnd.lazyfs.layer.digest": layer}}

    assert json.loads(ARTIFACT.data) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.lazyfs.index.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
            "data": "e30=",
        },
        "layers": [
            link("application/vnd.lazyfs.toc.v1", b"head a", LAYER_A),
            link("application/vnd.lazyfs.windows.v1", b"windows a", LAYER_A),
            link("application/vnd.lazyfs.toc.v1", b"head b", LAYER_B),
        ],
        "subject": {"mediaType": SUBJECT.media_type, "digest": SUBJECT.digest, "size": 5},
    }
    assert ARTIFACT.descriptor.digest == sha256_digest(ARTIFACT.data)
    # No program may change these bytes: what is published already would be published again.
    assert ARTIFACT.descriptor.digest.startswith("sha256:32c39eb6aadff883")


def test_what_was_written_is_read() -> None:
    found = parse_artifact(ARTIFACT.data, SUBJECT.digest)
    assert list(found) == [LAYER_A, LAYER_B]
    assert (found[LAYER_A].head.digest, found[LAYER_A].head.size) == (sha256_digest(b"head a"), 6)
    assert found[LAYER_A].windows is not None
    assert found[LAYER_A].windows.digest == sha256_digest(b"windows a")
    assert found[LAYER_B].windows is None


def test_the_same_index_gives_the_same_bytes() -> None:
    image = build_image([TAR, tar(file(b"x"))])
    assert index_of(image) == index_of(image)


def test_what_an_image_is_called_where_it_was_found_stays_there() -> None:
    found = replace(SUBJECT, annotations={"org.opencontainers.image.ref.name": "1"}, artifact_type="a/b")
    assert build_artifact(found, [LayerFiles(LAYER_A, b"head a", b"")]) == build_artifact(
        SUBJECT, [LayerFiles(LAYER_A, b"head a", b"")]
    )


def test_every_blob_of_the_manifest_is_brought() -> None:
    manifest = json.loads(ARTIFACT.data)
    wanted = [manifest["config"]["digest"], *(link["digest"] for link in manifest["layers"])]
    assert [link.digest for link, _ in ARTIFACT.blobs] == wanted
    assert all(sha256_digest(data) == link.digest for link, data in ARTIFACT.blobs)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(ARTIFACT.data)
    change(document)
    return encode(document)


REFUSED = {
    "another kind of artifact": lambda d: d.update(artifactType="application/x"),
    "no kind": lambda d: d.pop("artifactType"),
    "another image's": lambda d: d["subject"].update(digest=LAYER_A),
    "nobody's": lambda d: d.pop("subject"),
    "a blob of no layer": lambda d: d["layers"][0].pop("annotations"),
    "a layer that is no digest": lambda d: d["layers"][0]["annotations"].update({LAYER_KEY: "../x"}),
    "two heads of a layer": lambda d: d["layers"].append(d["layers"][0]),
    "a digest that cannot be checked": lambda d: d["layers"][0].update(digest="sha512:" + "a" * 128),
    "a huge head": lambda d: d["layers"][0].update(size=MAX_HEAD + 1),
    "an image index": lambda d: d.update(manifests=[]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_documents_are_refused(name: str) -> None:
    with pytest.raises(IndexerError):
        parse_artifact(changed(REFUSED[name]), SUBJECT.digest)


def test_blobs_of_later_kinds_are_passed_by() -> None:
    more = changed(lambda d: d["layers"].insert(0, d["layers"][0] | {"mediaType": "application/later"}))
    assert parse_artifact(more, SUBJECT.digest) == parse_artifact(ARTIFACT.data, SUBJECT.digest)


@settings(max_examples=150)
@given(st.data())
def test_damaged_manifests_give_an_index_or_our_errors(data: st.DataObject) -> None:
    mutated = bytearray(ARTIFACT.data)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with suppress(IndexerError):
        parse_artifact(bytes(mutated), SUBJECT.digest)


BLOB = gzip_layer(TAR)
BUILT = build(BLOB)
HEADER = BUILT.toc.header
LAYER = Descriptor("application/x", HEADER.layer_digest, HEADER.layer_size)


def checked(toc: Any, **facts: Any) -> Any:
    data = encode_toc(toc)
    arguments = {"toc_digest": sha256_digest(data), "layer": LAYER, "diff_id": HEADER.diff_id} | facts
    return check_head(data, **arguments)


def test_a_head_that_fits_its_image_is_taken() -> None:
    assert checked(BUILT.toc).toc() == BUILT.toc


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({"toc_digest": LAYER_A}, DigestMismatch, "table of contents"),
        ({"layer": replace(LAYER, digest=LAYER_A)}, FormatError, "under the name of"),
        ({"layer": replace(LAYER, size=1)}, FormatError, "under the name of"),
        ({"diff_id": LAYER_A}, FormatError, "another diffID"),
    ],
)
def test_a_head_of_something_else_is_refused(facts: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        checked(BUILT.toc, **facts)


def test_tables_that_would_become_huge_are_refused() -> None:
    data = bytearray(encode_toc(BUILT.toc))
    struct.pack_into("<Q", data, 168, 1 << 30)  # bytes of the span table, decompressed
    data[-32:] = sha256(data[:-32]).digest()
    with pytest.raises(LimitExceeded, match="tables of"):
        check_head(bytes(data), sha256_digest(data), LAYER, HEADER.diff_id)


@pytest.mark.parametrize("proof", [Proof.COMPRESSED, Proof.CONTENT])
def test_spans_that_windows_could_cheat_are_refused(proof: Proof) -> None:
    lie = with_spans(lambda spans: [*spans[:-1], spans[-1]._replace(proof=proof)])(BUILT)
    with pytest.raises(Unsupported, match="Merkle"):
        checked(lie.toc)


def test_windows_are_those_of_the_head() -> None:
    image = build_image([TAR])
    artifact = index_of(image)
    (index,) = parse_artifact(artifact.data, image.digest).values()
    head = decode_head(next(data for link, data in artifact.blobs if link.media_type == TOC_TYPE))
    check_windows(index, head)
    assert index.windows is not None
    assert windows_link(head) == replace(index.windows, annotations={})
    assert windows_link(head).media_type == WINDOWS_TYPE  # type: ignore[union-attr]
    for other in (None, replace(index.windows, size=1), replace(index.windows, digest=LAYER_A)):
        with pytest.raises(FormatError, match="other windows"):
            check_windows(index._replace(windows=other), head)


def test_a_layer_without_windows_has_no_blob_for_them() -> None:
    built = build(zstd_frame(TAR))
    head = decode_head(encode_toc(built.toc))
    assert windows_link(head) is None
    digest = built.toc.header.layer_digest
    artifact = build_artifact(SUBJECT, [LayerFiles(digest, encode_toc(built.toc), built.windows)])
    (index,) = parse_artifact(artifact.data, SUBJECT.digest).values()
    check_windows(index, head)


def test_an_index_of_too_many_layers_is_refused() -> None:
    files = [LayerFiles(sha256_digest(b"%d" % n), b"head", b"windows") for n in range(501)]
    with pytest.raises(LimitExceeded):
        build_artifact(SUBJECT, files)
