"""Documents from a registry: what they cost, what is checked, and what a registry may do instead."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError, LimitExceeded, Unsupported
from lazyfs.errors import ConfigError, NotFound, SourceError, Unauthorized, Unreachable
from lazyfs.oci.config import parse_config
from lazyfs.oci.descriptor import UNKNOWN_SIZE, Descriptor
from lazyfs.oci.manifest import parse_manifest
from lazyfs.oci.platform import parse_platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.open import open_registry
from tests.support.images import BuiltDocument, build_image, build_index, descriptor_of, encode
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, image_of, layer_link, source_of
from tests.support.registry_faults import Corrupt, Header, Reset, Short, Status

AMD64 = parse_platform("linux/amd64")
IMAGE = build_image([b"lower", b"upper"])
OTHER = build_image([b"other"], platform="linux/arm64")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ABSENT = "sha256:" + "0" * 64


@pytest.fixture
def server() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, "1")
        running.push("app", build_index([OTHER, IMAGE]), "index")
        yield running


def asked(server: Registry) -> list[str]:
    return [f"{seen.method} {seen.target.removeprefix('/v2/app/').partition('/')[0]}" for seen in server.seen]


async def test_an_image_is_read_in_two_requests(server: Registry) -> None:
    async with source_of(server, "app:1") as source:
        image = await image_of(source, AMD64)
    assert image.manifest == parse_manifest(IMAGE.data)
    assert image.config == parse_config(IMAGE.config)
    assert image.descriptor == Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.data))
    assert [layer.descriptor.size for layer in image.layers] == [len(layer) for layer in IMAGE.layers]
    assert asked(server) == ["GET manifests", "GET blobs"]


async def test_an_index_costs_one_request_more(server: Registry) -> None:
    async with source_of(server, "app:index") as source:
        image = await image_of(source, AMD64)
        assert image.descriptor.digest == IMAGE.digest
        assert image.raw_config == IMAGE.config
        statistics = source.statistics()
    assert asked(server) == ["GET manifests", "GET manifests", "GET blobs"]
    assert (statistics.control_requests, statistics.data_requests) == (2, 1)
    assert statistics.control_bytes == server.journal.bytes_sent["manifest"]
    assert statistics.data_bytes == server.journal.bytes_sent["blob"]


async def test_a_digest_is_resolved_without_a_request(server: Registry) -> None:
    async with source_of(server, f"app@{IMAGE.digest}") as source:
        root = await source.resolve()
        assert root == Descriptor("", IMAGE.digest, UNKNOWN_SIZE)
        assert server.seen == []
        assert await source.document(root) == IMAGE.data
        assert (await image_of(source, AMD64)).descriptor.media_type == MANIFEST


async def test_where_tag_and_digest_stand_the_digest_decides(server: Registry) -> None:
    async with source_of(server, f"app:no-such-tag@{OTHER.digest}") as source:
        assert (await source.resolve()).digest == OTHER.digest


async def test_a_digest_of_another_algorithm_is_unsupported(server: Registry) -> None:
    async with source_of(server, f"app@sha512:{'0' * 128}") as source:
        with pytest.raises(Unsupported, match="sha512"):
            await source.resolve()


async def test_a_probe_asks_by_head(server: Registry) -> None:
    async with source_of(server) as source:
        probed = await source.resolve(probe=True)
        assert probed == await source.resolve()
    assert asked(server) == ["HEAD manifests", "GET manifests"]


@pytest.mark.parametrize(
    "fault", [Status(405), Status(404), Header("Docker-Content-Digest", None), Header("Content-Type", "x/y")]
)
async def test_a_probe_asks_by_get_where_head_tells_nothing(server: Registry, fault: Status | Header) -> None:
    server.faults.add("manifest", fault, method="HEAD")
    async with source_of(server) as source:
        assert (await source.resolve(probe=True)).digest == IMAGE.digest
    assert asked(server) == ["HEAD manifests", "GET manifests"]


async def test_a_digest_header_is_not_needed_but_must_be_right(server: Registry) -> None:
    server.faults.add("manifest", Header("Docker-Content-Digest", None))
    server.faults.add("manifest", Header("Docker-Content-Digest", ABSENT))
    async with source_of(server) as source:
        assert (await source.resolve()).digest == IMAGE.digest
        with pytest.raises(DigestMismatch, match="tag '1'"):
            await source.resolve()


async def test_a_corrupted_document_is_never_given_out(server: Registry) -> None:
    server.faults.add("manifest", Corrupt(30))
    server.faults.add("blob", Corrupt(30))
    manifest = Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.data))
    config = parse_manifest(IMAGE.data).config
    async with source_of(server) as source:
        for link, right in ((manifest, IMAGE.data), (config, IMAGE.config)):
            with pytest.raises(DigestMismatch):
                await source.document(link)
            assert await source.document(link) == right


async def test_a_document_has_the_size_its_link_says(server: Registry) -> None:
    async with source_of(server) as source:
        for size in (len(IMAGE.data) - 1, len(IMAGE.data) + 1):
            with pytest.raises(FormatError):
                await source.document(Descriptor(MANIFEST, IMAGE.digest, size))
        with pytest.raises(LimitExceeded):
            await source.document(Descriptor(MANIFEST, IMAGE.digest, 5 << 20))
        with pytest.raises(LimitExceeded):
            await source.document(Descriptor("", IMAGE.digest, UNKNOWN_SIZE), max_bytes=100)


async def test_a_content_type_must_agree_with_the_document(server: Registry) -> None:
    server.faults.add("manifest", Header("Content-Type", "application/vnd.oci.image.index.v1+json"))
    async with source_of(server) as source:
        with pytest.raises(FormatError, match="announced as"):
            await source.resolve()


async def test_schema_1_is_refused_in_words(server: Registry) -> None:
    old = encode({"schemaVersion": 1, "name": "app", "tag": "old", "fsLayers": []})
    server.put_manifest("app", "old", "application/vnd.docker.distribution.manifest.v1+prettyjws", old)
    async with source_of(server, "app:old") as source:
        with pytest.raises(Unsupported, match="schema 1"):
            await source.resolve()


async def test_what_is_not_there_is_named(server: Registry) -> None:
    async with source_of(server, "app:9") as source:
        with pytest.raises(NotFound, match=r"tag '9' of 127\.0\.0\.1:\d+/app: .* MANIFEST_UNKNOWN") as error:
            await source.resolve()
        assert error.value.status == 404
        assert error.value.url.endswith("/v2/app/manifests/9")
        with pytest.raises(NotFound, match=f"manifest {ABSENT}"):
            await source.document(Descriptor(MANIFEST, ABSENT, 5))


@pytest.mark.parametrize(
    "fault", [Status(503), Status(429, {"Retry-After": "0"}), Reset(-1), Reset(9), Short(5)]
)
async def test_documents_are_tried_again(server: Registry, fault: Status | Reset | Short) -> None:
    server.faults.add("manifest", fault, times=3)
    async with source_of(server) as source:
        assert (await source.resolve()).digest == IMAGE.digest
        assert source.statistics().retries == 3
    server.faults.add("manifest", fault, times=4)
    async with source_of(server) as source:
        with pytest.raises(Unreachable, match="gave up after 4 attempts"):
            await source.resolve()


async def test_an_error_shows_codes_and_nothing_else_of_its_body(server: Registry) -> None:
    body = encode({"errors": [{"code": "DENIED", "message": "s3cret"}, {"code": "s3cret"}]})
    server.faults.add("manifest", Status(403, {}, body))
    async with source_of(server) as source:
        with pytest.raises(Unauthorized, match=r"HTTP 403 DENIED\)") as error:
            await source.resolve()
    assert "s3cret" not in str(error.value)


async def test_a_nested_index_is_followed_and_its_depth_is_limited(server: Registry) -> None:
    nested: BuiltDocument = build_index([IMAGE])
    for depth in range(6):
        server.push("app", nested, f"depth{depth}")
        nested = build_index([nested])
    async with source_of(server, "app:depth4") as source:
        assert (await image_of(source, AMD64)).descriptor.digest == IMAGE.digest
    async with source_of(server, "app:depth5") as source:
        with pytest.raises(NotFound, match="nested"):
            await image_of(source, AMD64)


async def test_an_entry_without_platform_is_judged_by_its_configuration(server: Registry) -> None:
    links = [descriptor_of(image.data, MANIFEST) for image in (OTHER, IMAGE)]
    server.push("app", build_index([], extra=links), "bare")
    async with source_of(server, "app:bare") as source:
        assert (await image_of(source, AMD64)).descriptor.digest == IMAGE.digest
        with pytest.raises(NotFound, match="linux/s390x"):
            await image_of(source, parse_platform("linux/s390x"))


async def test_a_name_without_index_is_taken_as_it_is(server: Registry) -> None:
    async with source_of(server, "app:1") as source:
        assert (await image_of(source, parse_platform("linux/s390x"))).descriptor.digest == IMAGE.digest


async def test_a_redirected_manifest_is_followed_without_authorization_elsewhere(server: Registry) -> None:
    with Registry() as elsewhere:
        elsewhere.push("app", IMAGE, "1")
        target = f"{elsewhere.base_url}/v2/app/manifests/1"
        server.faults.add("manifest", Status(302, {"Location": target, "Set-Cookie": "a=secret"}))
        async with source_of(server) as source:
            assert (await source.resolve()).digest == IMAGE.digest
            assert source.statistics().redirects == 1
        assert not {"authorization", "cookie"} & set(elsewhere.seen[0].headers)


@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_redirects_end(server: Registry, kind: str) -> None:
    server.faults.add(kind, Status(307, {"Location": ""}))
    server.faults.add(kind, Status(307, {"Location": "?again"}), times=99)
    link = layer_link(IMAGE.layers[0])
    async with source_of(server) as source:

        async def ask() -> None:
            await (source.resolve() if kind == "manifest" else source.blob(link).fetch(0, 1, bytes))

        with pytest.raises(SourceError, match="without a target"):
            await ask()
        with pytest.raises(Unreachable, match="more than 10 redirects"):
            await ask()
    assert server.requests["GET", kind] == 12


@pytest.mark.parametrize("kind", ["manifest", "blob"])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://[fe80::1]/x", "link-local"),
        ("http://[::ffff:169.254.169.254]/x", "link-local"),
        ("http://2852039166/latest", "link-local"),
        ("ftp://127.0.0.1/x", "not an http"),
        ("http://[/x", "not a URL"),
    ],
)
async def test_redirects_lead_nowhere_bad(server: Registry, kind: str, target: str, words: str) -> None:
    server.faults.add(kind, Status(307, {"Location": target}))
    async with source_of(server, stall_timeout_s=0.2) as source:
        blob = source.blob(layer_link(IMAGE.layers[0]))
        with pytest.raises(SourceError, match=words):
            await (source.resolve() if kind == "manifest" else blob.fetch(0, 1, bytes))


async def test_a_layer_may_lie_at_its_own_url(server: Registry) -> None:
    foreign = b"foreign layer" * 100
    with Registry() as elsewhere:
        digest = elsewhere.put_blob("files", foreign)
        urls = ("http://127.0.0.1:1/x", f"{elsewhere.base_url}/v2/files/blobs/{digest}")
        async with source_of(server) as source:
            blob = source.blob(layer_link(foreign, urls=urls))
            assert await blob.fetch(5, 50, bytes) == foreign[5:50]
            pieces: list[bytes] = []
            await blob.pull(lambda piece: pieces.append(bytes(piece)))
        assert b"".join(pieces) == foreign
    with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
        async with source_of(server) as source:
            await source.blob(layer_link(foreign, urls=("http://127.0.0.1:1/x",))).fetch(0, 1, bytes)


async def test_the_same_link_is_the_same_blob(server: Registry) -> None:
    async with source_of(server) as source:
        assert source.blob(layer_link(b"x")) is source.blob(layer_link(b"x"))
        assert source.blob(layer_link(b"x")) is not source.blob(layer_link(b"x", size=2))
        with pytest.raises(Unsupported):
            source.blob(Descriptor("x", "sha512:" + "0" * 128, 1))


async def test_reprs_help_and_keep_quiet(server: Registry) -> None:
    async with source_of(server) as source:
        await source.resolve()
        assert repr(source).startswith(
            f"<RegistrySource {server.host}/app:1 SourceStatistics(control_requests=1,"
        )
        assert repr(source.hosts[0]) == f"<Host {server.base_url}/v2 for app>"


async def test_a_cancelled_request_is_cancelled(server: Registry) -> None:
    async with source_of(server) as source:
        with trio.CancelScope() as scope:
            scope.cancel()
            await source.resolve()
        assert scope.cancelled_caught
        assert (await source.resolve()).digest == sha256_digest(IMAGE.data)


async def test_every_request_says_who_asks_and_wants_no_encoding(
    server: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with source_of(server) as source:
            await image_of(source, AMD64)
    for seen in server.seen:
        assert seen.headers["user-agent"].startswith("lazyfs/")
        assert seen.headers["accept-encoding"] == "identity"


async def test_an_encoded_document_is_refused(server: Registry) -> None:
    server.faults.add("manifest", Header("Content-Encoding", "gzip"))
    async with source_of(server) as source:
        with pytest.raises(SourceError, match="encodes documents"):
            await source.resolve()


async def test_a_search_without_end_is_given_up(server: Registry) -> None:
    bare = [descriptor_of(OTHER.data, MANIFEST)] * 100
    server.push("app", build_index([], extra=bare), "many")
    async with source_of(server, "app:many") as source:
        with pytest.raises(NotFound, match="first 64 documents"):
            await image_of(source, AMD64)


async def test_certificates_that_cannot_be_used_are_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "empty.crt").touch()
    for ca_file in (tmp_path / "absent.crt", tmp_path / "empty.crt"):
        with pytest.raises(ConfigError, match=r"cannot be (read|used)"):
            async with open_registry(parse_reference("ghcr.io/a/b"), replace(SETTINGS, ca_file=ca_file)):
                pytest.fail("it was not read")
