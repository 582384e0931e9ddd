"""Platforms: their names, what runs on what, and the choice from an index."""

import pytest

from indexer.errors import Unsupported
from lazyfs.errors import BadReference, NotFound
from lazyfs.oci.choose import candidates
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index
from lazyfs.oci.media_types import OCI_INDEX, OCI_MANIFEST
from lazyfs.oci.platform import Platform, host_platform, normalised, parse_platform, preferences, rank

NAMES = {
    "linux/amd64": Platform("linux", "amd64"),
    "Linux/x86_64": Platform("linux", "amd64"),
    "linux/amd64/v1": Platform("linux", "amd64"),
    "linux/amd64/v3": Platform("linux", "amd64", "v3"),
    "linux/aarch64": Platform("linux", "arm64"),
    "linux/arm64/v8": Platform("linux", "arm64"),
    "linux/arm64/8": Platform("linux", "arm64"),
    "linux/arm64/v9": Platform("linux", "arm64", "v9"),
    "linux/arm": Platform("linux", "arm", "v7"),
    "linux/arm/7": Platform("linux", "arm", "v7"),
    "linux/armel": Platform("linux", "arm", "v6"),
    "linux/armhf": Platform("linux", "arm", "v7"),
    "linux/i386": Platform("linux", "386"),
    "macos/arm64": Platform("darwin", "arm64"),
    "linux/riscv64": Platform("linux", "riscv64"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_platform_has_one_name(text: str) -> None:
    assert parse_platform(text) == NAMES[text]
    assert parse_platform(str(NAMES[text])) == NAMES[text]


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "linux/a/b/c", "li nux/amd64", "linux/ämd64"]
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(BadReference, match="linux/amd64"):
        parse_platform(text)


def test_the_host_runs_its_own_platform() -> None:
    host = host_platform()
    assert host.os == "linux"
    assert rank(host, host) == 0


PREFERENCES = {
    "linux/amd64": "amd64 386",
    "linux/amd64/v3": "amd64/v3 amd64/v2 amd64 386",
    "linux/arm64": "arm64 arm/v8 arm/v7 arm/v6 arm/v5",
    "linux/arm64/v8.2": "arm64/v8.2 arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5",
    "linux/arm64/v9.1": "arm64/v9.1 arm64/v9 arm64/v8.6 arm64/v8.5 arm64/v8.4 arm64/v8.3 arm64/v8.2 "
    "arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5",
    "linux/arm/v6": "arm/v6 arm/v5",
    "linux/s390x": "s390x",
}


@pytest.mark.parametrize("text", PREFERENCES)
def test_a_machine_runs_its_forerunners_images_too(text: str) -> None:
    pairs = preferences(parse_platform(text))
    assert " ".join("/".join(filter(None, pair)) for pair in pairs) == PREFERENCES[text]


def entry(platform: str | None, **more: object) -> Descriptor:
    digest = f"sha256:{abs(hash((platform, str(more)))):064x}"
    fields = {"media_type": OCI_MANIFEST, "digest": digest, "size": 1} | more
    return Descriptor(**fields, platform=platform and parse_platform(platform))  # type: ignore[arg-type]


def index(*entries: Descriptor) -> Index:
    return Index(OCI_INDEX, entries)


AMD64 = Platform("linux", "amd64")


def test_the_best_match_wins_wherever_it_stands() -> None:
    offers = [entry("linux/386"), entry("linux/amd64/v2"), entry("linux/amd64"), entry("linux/arm64")]
    assert candidates(index(*offers), AMD64)[0] is offers[2]
    assert candidates(index(*offers), parse_platform("linux/amd64/v4"))[0] is offers[1]
    assert candidates(index(*offers[:1]), AMD64)[0] is offers[0]


def test_of_equals_the_first_wins() -> None:
    first, second = entry("linux/amd64"), entry("linux/amd64", annotations={"n": "2"})
    assert candidates(index(first, second), AMD64)[0] is first


def test_attestations_and_artifacts_are_no_images() -> None:
    image = entry("linux/amd64")
    others = [
        entry("unknown/unknown"),
        entry("linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        entry("linux/amd64", artifact_type="application/x"),
        entry("linux/amd64", media_type="application/x"),
    ]
    assert candidates(index(*others, image), AMD64)[0] is image
    with pytest.raises(NotFound, match="nothing that can be mounted"):
        candidates(index(*others), AMD64)


def test_entries_without_platform_come_last() -> None:
    nested, bare, match = entry(None, media_type=OCI_INDEX), entry(None), entry("linux/386")
    assert candidates(index(nested, bare, match), AMD64) == [match, nested, bare]


def test_needed_features_must_be_there() -> None:
    plain = normalised("linux", "amd64")
    picky = normalised("linux", "amd64", os_features=("x",))
    assert rank(plain, picky) is None
    assert rank(picky, plain) == 0


def test_a_windows_build_must_match() -> None:
    wanted = normalised("windows", "amd64", os_version="10.0.17763")
    assert rank(wanted, normalised("windows", "amd64", os_version="10.0.17763.1")) == 0
    assert rank(wanted, normalised("windows", "amd64", os_version="10.0.2")) is None


def test_when_nothing_fits_the_error_lists_what_is_there() -> None:
    with pytest.raises(NotFound, match="for linux/s390x in this index; it has linux/amd64, windows/amd64"):
        candidates(index(entry("windows/amd64"), entry("linux/amd64")), parse_platform("linux/s390x"))


def test_only_linux_images_can_be_mounted() -> None:
    with pytest.raises(Unsupported, match="windows/amd64"):
        candidates(index(entry("windows/amd64")), parse_platform("windows/amd64"))
