"""What cosign 3 signs may be opened: Sigstore bundles in docker-registry, by the commands a user has."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import RegistryImage
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.oci.reference import parse_reference
from lazyfs.source.push.publisher import open_publisher
from tests.support.bundles import BUNDLE_TYPE, bundle_artifact, signed_bundle
from tests.support.images import build_image, write_layout
from tests.support.lab import push_layout
from tests.support.lab_registry import docker_registry
from tests.support.published import PrivateKey, new_key, public_pem
from tests.support.registry_client import SETTINGS
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

pytestmark = pytest.mark.lab

IMAGE = build_image([tar(file(b"motd", b"hello\n"))])
SUBJECT = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.data))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    """A repository of a registry without the referrers API, with the image in it."""
    with docker_registry(tmp_path / "storage") as address:
        push_layout(write_layout(tmp_path / "image", {"1": IMAGE}), f"{address}/app:1", tag="1")
        yield f"{address}/app"


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    made = new_key()
    (tmp_path / "team.pub").write_bytes(public_pem(made))
    return made


def attach(repository: str, subject: Descriptor, data: bytes, listed_as: str = BUNDLE_TYPE) -> None:
    async def push() -> None:
        async with open_publisher(RegistryImage(parse_reference(f"{repository}:1")), SETTINGS) as to:
            assert await to.publish(bundle_artifact(subject, data, listed_as))

    trio.run(push)


@pytest.mark.parametrize("listed_as", [BUNDLE_TYPE, OCI_EMPTY])
def test_an_image_that_a_bundle_signs_is_opened_and_mounted(
    lazyfs: LazyfsRunner, repository: str, key: PrivateKey, tmp_path: Path, listed_as: str
) -> None:
    demand = ("--require-signature", "--trusted-key", str(tmp_path / "team.pub"))
    attach(repository, SUBJECT, signed_bundle(key, IMAGE.digest, "https://slsa.dev/provenance/v1"), listed_as)
    attach(repository, SUBJECT, signed_bundle(new_key(), IMAGE.digest), listed_as)
    refused = lazyfs("ls", *demand, f"{repository}:1", exit_code=77)
    assert "is not signed by" in refused.stderr
    assert "keyless" not in refused.stderr
    attach(repository, SUBJECT, signed_bundle(key, IMAGE.digest), listed_as)
    assert lazyfs("ls", *demand, f"{repository}:1").stdout == "motd\n"
    point = tmp_path / "mnt"
    point.mkdir()
    lazyfs("mount", *demand, f"{repository}@{IMAGE.digest}", point)
    try:
        assert (point / "motd").read_bytes() == b"hello\n"
    finally:
        lazyfs("umount", point)


def test_an_image_that_a_certificate_alone_signs_is_refused_and_the_reason_told(
    lazyfs: LazyfsRunner, repository: str, key: PrivateKey, tmp_path: Path
) -> None:
    attach(repository, SUBJECT, signed_bundle(new_key(), IMAGE.digest, certified=True))
    demand = ("--require-signature", "--trusted-key", str(tmp_path / "team.pub"))
    refused = lazyfs("mount", *demand, f"{repository}:1", tmp_path, exit_code=77)
    assert "signatures by certificates (keyless), but these are not checked" in refused.stderr


def test_an_index_that_a_bundle_signs_counts_beside_a_pinned_image(
    lazyfs: LazyfsRunner, repository: str, key: PrivateKey, tmp_path: Path
) -> None:
    pushed = json.loads(lazyfs("index", "--push", "--json", f"{repository}:1").stdout)["published"]["digest"]
    options = ("--index", "registry", "--trusted-key", str(tmp_path / "team.pub"))
    elsewhere = replace(lazyfs, cache_dir=tmp_path / "elsewhere")
    elsewhere("ls", *options, f"{repository}@{IMAGE.digest}", exit_code=66)
    attach(repository, Descriptor(OCI_MANIFEST, pushed, 0), signed_bundle(key, pushed))
    assert elsewhere("ls", *options, f"{repository}@{IMAGE.digest}").stdout == "motd\n"
