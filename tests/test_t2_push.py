"""Publishing: what is stored, what is left alone, and that nobody's entry is lost."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from indexer.digest import sha256_digest
from indexer.errors import IndexerError
from lazyfs.errors import BadReference, LazyfsError, SourceError, Unauthorized
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import RegistryImage, parse_image
from lazyfs.oci.media_types import OCI_INDEX, OCI_MANIFEST
from lazyfs.oci.reference import parse_reference
from lazyfs.source.attachments import Attachments, open_attachments
from lazyfs.source.auth.credentials import Credentials, StaticCredentials
from lazyfs.source.push.artifact import Artifact
from lazyfs.source.push.publisher import open_publisher
from lazyfs.source.registry.referrers import MAX_PAGES, fallback_tag
from tests.support.artifacts import IMAGE, KIND, TAG, artifact
from tests.support.images import encode
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_client import SETTINGS
from tests.support.registry_faults import Header, Reset, Status


def publisher(registry: Registry, name: str = "app", **settings: object):
    reference = RegistryImage(parse_reference(f"{registry.host}/{name}:1"))
    return open_publisher(reference, replace(SETTINGS, **settings))


@asynccontextmanager
async def attachments(registry: Registry, name: str = "app") -> AsyncIterator[Attachments]:
    reference = RegistryImage(parse_reference(f"{registry.host}/{name}:1"))
    async with open_attachments(reference, SETTINGS) as found:
        assert found is not None
        yield found


async def publish(registry: Registry, *artifacts: Artifact) -> list[bool]:
    async with publisher(registry) as to:
        return [await to.publish(one) for one in artifacts]


async def listed(registry: Registry, digest: str = IMAGE.digest) -> list[str]:
    async with attachments(registry) as found:
        return [entry.digest for entry in await found.referrers(digest, KIND)]


@pytest.fixture(params=["api", "tag", "tag with conditions"])
def server(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(referrers=request.param == "api", conditional="conditions" in request.param) as running:
        running.push("app", IMAGE, tag="1")
        yield running


@pytest.fixture
def without_api() -> Iterator[Registry]:
    with Registry(referrers=False) as running:
        running.push("app", IMAGE, tag="1")
        yield running


async def test_what_was_published_is_found_and_can_be_read(server: Registry) -> None:
    assert await publish(server, artifact()) == [True]
    async with attachments(server) as found:
        (entry,) = await found.referrers(IMAGE.digest, KIND)
        assert entry == artifact().descriptor
        assert await found.document(entry) == artifact().data
        content, data = artifact().blobs[1]
        assert await found.blob(content).fetch(2, 5, bytes) == data[2:5]
        assert await found.referrers(IMAGE.digest, "application/other") == ()
        assert await found.referrers(sha256_digest(b"other"), KIND) == ()


async def test_several_types_are_listed_type_after_type(server: Registry) -> None:
    await publish(
        server, *(artifact(kind=kind) for kind in ("application/b", "application/a", "application/c"))
    )
    async with attachments(server) as found:
        asked = ("application/a", "application/other", "application/b")
        entries = await found.referrers(IMAGE.digest, *asked)
    assert [entry.artifact_type for entry in entries] == ["application/a", "application/b"]


async def test_publishing_twice_changes_nothing(server: Registry) -> None:
    await publish(server, artifact())
    before = dict(server.store.manifests), dict(server.store.tags), set(server.store.blobs)
    server.journal.clear()
    assert await publish(server, artifact()) == [False]
    assert {method for method, _ in server.requests} == {"GET", "HEAD"}
    by_tag = 0 if server.requests["GET", "manifest"] == 0 else 1
    assert server.requests == Counter(
        {("GET", "referrers"): 1, ("HEAD", "manifest"): 1} | ({("GET", "manifest"): 1} if by_tag else {})
    )
    assert (dict(server.store.manifests), dict(server.store.tags), set(server.store.blobs)) == before


async def test_blobs_that_are_there_are_not_sent_again(server: Registry) -> None:
    await publish(server, artifact())
    server.journal.clear()
    other = artifact(kind="application/vnd.example.other")
    assert await publish(server, other) == [True]
    assert server.requests["POST", "upload"] == server.requests["PUT", "upload"] == 0
    assert server.requests["HEAD", "blob"] == 2


async def test_a_dangling_list_leads_to_a_new_push(without_api: Registry) -> None:
    await publish(without_api, artifact())
    with without_api.store.lock:
        without_api.store.delete_manifest("app", artifact().descriptor.digest)
    assert await publish(without_api, artifact()) == [True]
    assert await listed(without_api) == [artifact().descriptor.digest]
    async with attachments(without_api) as found:
        assert await found.document(artifact().descriptor) == artifact().data


async def test_others_entries_stay_as_they_are(without_api: Registry) -> None:
    others = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [IMAGE.descriptor | {"annotations": {"a": "ü"}, "unknown": [1, {"deep": None}]}],
        "annotations": {"of": "others"},
        "unknown": 1.5,
    }
    without_api.put_manifest("app", TAG, OCI_INDEX, encode(others))
    await publish(without_api, artifact())
    with without_api.store.lock:
        merged = json.loads(without_api.store.manifest("app", TAG)[1].data)
    assert merged.pop("manifests") == [
        *others.pop("manifests"),
        {
            "mediaType": OCI_MANIFEST,
            "digest": artifact().descriptor.digest,
            "size": len(artifact().data),
            "artifactType": KIND,
        },
    ]
    assert merged == others


async def test_pushers_at_once_lose_nothing(server: Registry) -> None:
    artifacts = [artifact(b"%d" % number) for number in range(8)]
    async with trio.open_nursery() as nursery:
        for one in artifacts:
            nursery.start_soon(publish, server, one)
    assert sorted(await listed(server)) == sorted(one.descriptor.digest for one in artifacts)


def rival_writes(registry: Registry, method: str, entry: Artifact, turn: int) -> None:
    """When the tag is read or put for the turn-th time, a rival has its index there right after."""
    store, real, turns = registry.store, getattr(registry.store, method), []
    index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_fields(entry.descriptor)]})

    def wrapped(repository: str, reference: str, *arguments: object, **options: object) -> object:
        answer = real(repository, reference, *arguments, **options)
        if reference == TAG:
            turns.append(method)
        if reference == TAG and len(turns) == turn:
            turns.append("done")
            store.put_manifest(repository, TAG, OCI_INDEX, index, check=False)
        return answer

    setattr(store, method, wrapped)


def _fields(link: Descriptor) -> dict[str, object]:
    size, kind = link.size, link.artifact_type
    return {"mediaType": link.media_type, "digest": link.digest, "size": size, "artifactType": kind}


async def test_who_was_dropped_by_a_rival_adds_itself_again(without_api: Registry) -> None:
    rival = artifact(b"rival")
    await publish(without_api, artifact(b"rival", kind="application/to.have.its.blobs"))
    without_api.put_manifest("app", rival.descriptor.digest, OCI_MANIFEST, rival.data)
    rival_writes(without_api, "put_manifest", rival, turn=1)
    await publish(without_api, artifact())
    assert sorted(await listed(without_api)) == sorted(
        [rival.descriptor.digest, artifact().descriptor.digest]
    )


async def test_a_registry_that_heeds_conditions_lets_nobody_drop_a_rival() -> None:
    with Registry(referrers=False, conditional=True) as registry:
        registry.push("app", IMAGE, tag="1")
        rival = artifact(b"rival")
        registry.put_manifest("app", rival.descriptor.digest, OCI_MANIFEST, rival.data)
        registry.put_manifest("app", TAG, OCI_INDEX, encode({"schemaVersion": 2, "manifests": []}))
        rival_writes(registry, "manifest", rival, turn=2)  # the first looks whether there is anything to do
        await publish(registry, artifact())
        assert await listed(registry) == [rival.descriptor.digest, artifact().descriptor.digest]
        assert [seen.status for seen in registry.seen if TAG in seen.target and seen.method == "PUT"] == [
            412,
            201,
        ]


async def test_entries_whose_manifests_are_gone_do_not_bar_the_way(without_api: Registry) -> None:
    gone = {"mediaType": OCI_MANIFEST, "digest": sha256_digest(b"gone"), "size": 4, "artifactType": KIND}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [gone, IMAGE.descriptor]}
    without_api.put_manifest("app", TAG, OCI_INDEX, encode(index))
    await publish(without_api, artifact())
    with without_api.store.lock:
        merged = json.loads(without_api.store.manifest("app", TAG)[1].data)
    assert [link["digest"] for link in merged["manifests"]] == [IMAGE.digest, artifact().descriptor.digest]


async def test_an_upload_that_the_registry_lost_begins_anew(server: Registry) -> None:
    server.faults.add("upload", Status(404), method="PUT")
    server.faults.add("upload", Reset(-1), method="PUT", skip=1)
    assert await publish(server, artifact()) == [True]
    assert await listed(server) == [artifact().descriptor.digest]
    server.faults.add("upload", Status(404), method="PUT", times=9)
    with pytest.raises(LazyfsError, match="upload of sha256:"):
        await publish(server, artifact(b"more"))


async def test_blobs_of_the_images_own_repository_are_mounted(server: Registry) -> None:
    await publish(server, artifact())
    server.journal.clear()
    there, image = (RegistryImage(parse_reference(f"{server.host}/{name}:1")) for name in ("idx", "app"))
    async with open_publisher(there, SETTINGS, image=image) as to:
        assert await to.publish(artifact())
    assert server.requests["POST", "upload"] == 2
    assert server.requests["PUT", "upload"] == 0
    async with attachments(server, "idx") as found:
        assert [e.digest for e in await found.referrers(IMAGE.digest, KIND)] == [artifact().descriptor.digest]


async def test_pages_are_followed_and_bounded() -> None:
    following = f'</v2/app/referrers/{IMAGE.digest}?page=2>; rel="next"'
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        await publish(registry, artifact())
        registry.faults.add("referrers", Header("Link", following))
        assert len(await listed(registry)) == 2
        registry.faults.add("referrers", Header("Link", following), times=100)
        assert len(await listed(registry)) == MAX_PAGES


@pytest.mark.parametrize("status", [400, 404, 405, 406, 501])
async def test_a_registry_without_the_api_is_asked_for_the_tag(without_api: Registry, status: int) -> None:
    await publish(without_api, artifact())
    without_api.faults.add("referrers", Status(status))
    assert await listed(without_api) == [artifact().descriptor.digest]


async def test_a_refusal_is_no_absence(server: Registry) -> None:
    server.faults.add("referrers", Status(403))
    with pytest.raises(Unauthorized):
        await listed(server)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"schemaVersion":2,"manifests":[{}]}', b"\xff"])
async def test_nonsense_is_a_format_error(server: Registry, body: bytes) -> None:
    server.faults.add("referrers", Status(200, {"Content-Type": OCI_INDEX}, body))
    with pytest.raises(IndexerError):
        await listed(server)


async def test_pushing_asks_for_a_token_that_allows_it_and_keeps_the_password(server: Registry) -> None:
    secret = "pass:word"
    server.access.mode, server.access.users = "token", {"user": secret}
    good = StaticCredentials(server.host, Credentials("user", secret))
    async with publisher(server, credentials=good) as to:
        assert await to.publish(artifact())
    assert server.requests["GET", "token"] == 1
    assert "scope=repository%3Aapp%3Apull%2Cpush" in next(s.target for s in server.seen if s.kind == "token")
    bad = StaticCredentials(server.host, Credentials("user", secret + "!"))
    server.access.expire_tokens()
    async with publisher(server, credentials=bad) as to:
        with pytest.raises(Unauthorized) as caught:
            await to.publish(artifact(b"more"))
    assert secret not in str(caught.value) + repr(to)


async def test_who_may_only_pull_is_told_so() -> None:
    access = Access(mode="token", users={"user": "word"})
    with Registry(access=access) as registry:
        registry.push("app", IMAGE, tag="1")
        registry.faults.add("upload", Status(403, {}, b'{"errors":[{"code":"DENIED"}]}'), method="POST")
        good = StaticCredentials(registry.host, Credentials("user", "word"))
        async with publisher(registry, credentials=good) as to:
            with pytest.raises(Unauthorized, match=r"upload .* DENIED"):
                await to.publish(artifact())


async def test_a_host_that_is_not_to_be_pushed_to_is_left_alone(server: Registry, tmp_path: Path) -> None:
    directory = tmp_path / f"127.0.0.1_{server.port}_"
    directory.mkdir()
    (directory / "hosts.toml").write_text(
        f'server = "{server.base_url}"\ncapabilities = ["pull", "resolve"]\n'
    )
    with pytest.raises(SourceError, match="not to be pushed to"):
        async with publisher(server, hosts_dir=tmp_path):
            pass
    assert not server.requests


async def test_nothing_is_added_to_an_archive() -> None:
    with pytest.raises(BadReference, match="--index-repo"):
        async with open_publisher(parse_image("oci-archive:image.tar"), SETTINGS):
            pass
    async with open_attachments(parse_image("oci-archive:image.tar"), SETTINGS) as found:
        assert found is None


@pytest.mark.parametrize(
    ("digest", "tag"),
    [
        ("sha256:" + "a" * 64, "sha256-" + "a" * 64),
        ("sha512:" + "b" * 128, "sha512-" + "b" * 64),
        ("test+algorithm+using+algorithm+separators+and+lots+of+characters:" + "c" * 90,
         "test-algorithm-using-algorithm-s-" + "c" * 64),
    ],
)  # fmt: skip
def test_the_fallback_tag_is_the_specifications(digest: str, tag: str) -> None:
    assert fallback_tag(digest) == tag
