"""Signatures as Sigstore bundles: one by a key of ours is found beside an image, and nothing else counts."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import Unauthorized
from lazyfs.image.trust.key_file import parse_key
from lazyfs.image.trust.keys import PublicKey
from lazyfs.image.trust.signatures import Finding, find_signer
from lazyfs.image.trust.sigstore_bundle import BUNDLE_TYPES
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import ImageName, LayoutImage, RegistryImage
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.oci.reference import parse_reference
from lazyfs.source.attachments import Attachments, open_attachments
from lazyfs.source.push.publisher import open_publisher
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.bad_bundles import ATTESTATIONS, DIGEST, IMAGE, KEY, NOT_SIGNED, OTHER
from tests.support.bundles import (
    SIGN,
    attach_bundle,
    bundle,
    bundle_artifact,
    manifest_of,
    message_signature,
    signed_bundle,
)
from tests.support.images import build_image, build_index, encode, write_layout
from tests.support.published import public_pem, sign
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS
from tests.support.registry_faults import Corrupt, Status

PUBLIC, THEIRS = parse_key(public_pem(KEY), "team.pub"), parse_key(public_pem(OTHER), "their.pub")
SUBJECT = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.data))
# In a repository


@pytest.fixture(params=["api", "tag"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(referrers=request.param == "api") as running:
        running.push("app", IMAGE, tag="1")
        yield running


@asynccontextmanager
async def place(name: ImageName) -> AsyncIterator[Attachments]:
    async with open_attachments(name, SETTINGS) as found:
        assert found is not None
        yield found


async def find(
    registry: Registry, digest: str = IMAGE.digest, keys: tuple[PublicKey, ...] = (PUBLIC,)
) -> Finding:
    async with place(RegistryImage(parse_reference(f"{registry.host}/app"))) as found:
        return await find_signer(found, digest, keys)


@pytest.mark.parametrize("kind", BUNDLE_TYPES)
async def test_a_bundle_is_found_where_cosign_puts_it(registry: Registry, kind: str) -> None:
    attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest, media_type=kind), kind=kind)
    assert await find(registry) == Finding(PUBLIC)
    assert await find(registry, keys=(THEIRS, PUBLIC)) == Finding(PUBLIC)
    assert await find(registry, keys=(THEIRS,)) == Finding()
    assert await find(registry, digest=DIGEST) == Finding()


@pytest.mark.parametrize("listed", [{"artifactType": OCI_EMPTY}, {"artifactType": ""}])
async def test_a_list_may_not_tell_what_it_lists(listed: dict[str, Any]) -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        attach_bundle(
            registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest), predicate=None, annotations={}, **listed
        )
        assert await find(registry) == Finding(PUBLIC)


async def test_a_message_signature_of_the_manifest_counts(registry: Registry) -> None:
    attach_bundle(registry, IMAGE.digest, bundle(message_signature(OTHER, IMAGE.data)), predicate=None)
    assert await find(registry) == Finding()
    attach_bundle(registry, IMAGE.digest, bundle(message_signature(KEY, IMAGE.data)), predicate=None)
    assert await find(registry) == Finding(PUBLIC)


async def test_in_a_layout_bundles_are_found_as_well(tmp_path: Path) -> None:
    image = LayoutImage(write_layout(tmp_path / "layout", {"1": IMAGE}))
    for data, finding in (
        (signed_bundle(OTHER, IMAGE.digest), Finding()),
        (bundle(message_signature(OTHER, IMAGE.data)), Finding()),
        (bundle(message_signature(KEY, IMAGE.data)), Finding(PUBLIC)),
    ):
        async with open_publisher(image, SETTINGS) as to:
            await to.publish(bundle_artifact(SUBJECT, data))
        async with place(image) as found:
            assert await find_signer(found, IMAGE.digest, (PUBLIC,)) == finding


@pytest.mark.parametrize("claimed", [None, SIGN, "their own"])
@pytest.mark.parametrize("predicate", ATTESTATIONS)
async def test_attestations_are_no_signatures(
    registry: Registry, predicate: str, claimed: str | None
) -> None:
    said = predicate if claimed == "their own" else claimed
    for key in (KEY, OTHER):
        attach_bundle(registry, IMAGE.digest, signed_bundle(key, IMAGE.digest, predicate), predicate=said)
    assert await find(registry) == Finding()


async def test_attestations_that_say_so_are_not_fetched_and_hide_nothing(registry: Registry) -> None:
    told = [
        attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest, kind), predicate=kind)
        for kind in ATTESTATIONS
        for _ in range(9)
    ]
    attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest))
    assert await find(registry) == Finding(PUBLIC)
    asked = [request.target for request in registry.seen]
    assert not any(link["digest"] in path for link in told for path in asked)


async def test_of_attestations_that_a_list_does_not_tell_of_no_more_than_the_manifest_is_fetched() -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        for kind in ATTESTATIONS:
            data = signed_bundle(KEY, IMAGE.digest, kind)
            attach_bundle(registry, IMAGE.digest, data, predicate=kind, annotations={})
        assert await find(registry) == Finding()
        assert registry.requests["GET", "blob"] == 0


@pytest.mark.parametrize("name", NOT_SIGNED)
async def test_a_bad_bundle_is_no_signature_and_hides_no_good_one(name: str) -> None:
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        attach_bundle(registry, IMAGE.digest, NOT_SIGNED[name])
        assert await find(registry) == Finding()
        attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest))
        assert await find(registry) == Finding(PUBLIC)


async def test_a_message_signature_that_refers_to_nothing_is_none() -> None:
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        data = bundle(message_signature(KEY, IMAGE.data))
        registry.put_blob("app", data)
        tag = fallback_tag(IMAGE.digest) + ".sig"
        registry.put_manifest("app", tag, OCI_MANIFEST, encode(manifest_of(data)))
        assert await find(registry) == Finding()


@pytest.mark.parametrize("fault", [Status(403), Status(404), Status(418), Corrupt(3)])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_a_bundle_that_cannot_be_had_hides_no_good_one(fault: Any, kind: str) -> None:
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        for key in (OTHER, KEY):
            attach_bundle(registry, IMAGE.digest, signed_bundle(key, IMAGE.digest))
        registry.faults.add(kind, fault, skip=1 if kind == "manifest" else 0)  # the first is the tag
        assert await find(registry) == Finding(PUBLIC)
        assert registry.faults.pending == 0


async def test_what_is_not_told_of_bundles_is_no_proof_that_nobody_signed() -> None:
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        attach_bundle(registry, IMAGE.digest, signed_bundle(OTHER, IMAGE.digest))
        for kind, skip in (("manifest", 1), ("blob", 0)):
            registry.faults.add(kind, Status(403), skip=skip)
            with pytest.raises(Unauthorized):
                await find(registry)
        assert await find(registry) == Finding()


async def test_either_format_hides_nothing_of_the_other(registry: Registry) -> None:
    sign(registry, "app", IMAGE.digest, OTHER, referrer=True)
    sign(registry, "app", IMAGE.digest, OTHER)
    attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest))
    assert await find(registry) == Finding(PUBLIC)
    assert await find(registry, keys=(THEIRS,)) == Finding(THEIRS)


async def test_few_of_many_are_looked_at() -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        for number in range(100):
            attach_bundle(registry, IMAGE.digest, b"{}" + b" " * number)
        assert await find(registry) == Finding()
        assert 30 < len(registry.seen) < 80


async def test_images_in_the_place_of_a_list_are_not_opened() -> None:
    images = build_index([IMAGE, build_image([b"other"], platform="linux/arm64")])
    with Registry(referrers=False) as registry:
        registry.push("app", images, tag="1")
        registry.put_manifest("app", f"sha256-{images.digest[7:]}", images.media_type, images.data)
        assert await find(registry, digest=images.digest) == Finding()
        assert not any(IMAGE.digest in request.target for request in registry.seen)


# By certificates


async def test_signatures_by_certificates_are_told_of_and_do_not_count(registry: Registry) -> None:
    attach_bundle(registry, IMAGE.digest, signed_bundle(OTHER, IMAGE.digest, certified=True))
    assert await find(registry) == Finding(certified=True)
    attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest))
    assert (await find(registry)).signer == PUBLIC


async def test_what_a_certificate_goes_with_counts_where_a_key_of_ours_made_it(registry: Registry) -> None:
    attach_bundle(registry, IMAGE.digest, signed_bundle(KEY, IMAGE.digest, certified=True))
    assert await find(registry) == Finding(PUBLIC)


@pytest.mark.parametrize(
    "data",
    [
        signed_bundle(OTHER, IMAGE.digest, ATTESTATIONS[0], certified=True),
        signed_bundle(OTHER, DIGEST, certified=True),
        bundle(message_signature(OTHER, b"another"), certified=True),
    ],
)
async def test_certificates_that_sign_something_else_are_not_told_of(registry: Registry, data: bytes) -> None:
    attach_bundle(registry, IMAGE.digest, data, predicate=None)
    assert await find(registry) == Finding()
