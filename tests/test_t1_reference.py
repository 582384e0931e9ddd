"""Names of images: what they mean, what is refused, and that they survive being written and read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadReference
from lazyfs.oci.image_name import (
    ArchiveImage,
    DockerArchiveImage,
    LayoutImage,
    RegistryImage,
    parse_image,
)
from lazyfs.oci.reference import Reference, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

MEANINGS = {
    "python": Reference("docker.io", "library/python"),
    "python:3.12": Reference("docker.io", "library/python", "3.12"),
    "user/app": Reference("docker.io", "user/app"),
    "docker.io/python": Reference("docker.io", "library/python"),
    "index.docker.io/library/python": Reference("docker.io", "library/python"),
    "localhost/app": Reference("localhost", "app"),
    "localhost:5000/app": Reference("localhost:5000", "app"),
    "localhost:5000": Reference("docker.io", "library/localhost", "5000"),
    "ghcr.io/a/b/c:x": Reference("ghcr.io", "a/b/c", "x"),
    "host:80/app:tag": Reference("host:80", "app", "tag"),
    "[::1]:5000/app": Reference("[::1]:5000", "app"),
    "127.0.0.1:5000/a__b/c--d.e": Reference("127.0.0.1:5000", "a__b/c--d.e"),
    "Registry/app": Reference("Registry", "app"),
    f"python@{DIGEST}": Reference("docker.io", "library/python", "", DIGEST),
    f"ghcr.io/a:1@{DIGEST}": Reference("ghcr.io", "a", "1", DIGEST),
    f"a@sha512:{HEX}{HEX}": Reference("docker.io", "library/a", "", f"sha512:{HEX}{HEX}"),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_name_means_what_it_means_to_docker(text: str) -> None:
    assert parse_reference(text) == MEANINGS[text]


@pytest.mark.parametrize("text", MEANINGS)
def test_the_canonical_form_means_the_same(text: str) -> None:
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference


REFUSALS = {
    "": "is empty",
    "/app": "not a repository",
    "Python": "lower case",
    "ghcr.io/User/App": "lower case",
    "app:": "not a tag",
    "app:-x": "not a tag",
    "app:" + "x" * 129: "not a tag",
    "app/": "not a repository",
    "a//b": "not a repository",
    "a/.b": "not a repository",
    "a/../b": "not a repository",
    "a/b_": "not a repository",
    "app@sha256:12": "sha256:<64 hex digits>",
    f"app@sha256:{HEX.upper()}": "sha256:<64 hex digits>",
    "app@": "sha256:<64 hex digits>",
    f"app@{DIGEST}@{DIGEST}": "sha256:<64 hex digits>",
    HEX: "image id",
    "https://ghcr.io/a/b": "write 'ghcr.io/a/b'",
    "https://user:s3cret@ghcr.io/a/b": "has no https://; write 'ghcr.io/a/b'",
    "host.io:port/app": "not a registry's host",
    "-host.io/app": "not a registry's host",
    "host.io/" + "a" * 250: "longer than 255",
    "a" * 2000: "too long",
    "ä": "not a repository",
    "app\n": "not a repository",
    "app:tag\n": "not a tag",
    "host.io/a b": "not a repository",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_is_no_name_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(BadReference) as refusal:
        parse_reference(text)
    assert REFUSALS[text] in str(refusal.value)


COMPONENTS = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True).filter(
    lambda text: len(text) <= 40
)
HOSTS = st.sampled_from(
    ["docker.io", "ghcr.io", "localhost", "h:1", "[fe00::1]:5000", "10.0.0.1", "A.example"]
)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(
    HOSTS,
    st.lists(COMPONENTS, min_size=2, max_size=4).map("/".join),
    st.just("") | TAGS,
    st.sampled_from(["", DIGEST]),
)
def test_a_reference_survives_being_written_and_read(host: str, path: str, tag: str, digest: str) -> None:
    reference = Reference(host, path, tag or ("" if digest else "latest"), digest)
    assert parse_reference(str(reference)) == reference


@given(st.text(alphabet=st.characters(codec="utf-8")) | st.text(alphabet="a/:@.-_[]A0 "))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    for parse in (parse_reference, parse_image):
        try:
            name = parse(text)
        except BadReference:
            continue
        assert parse(str(name)) == name


def test_transports_lead_to_their_sources() -> None:
    assert parse_image("python") == RegistryImage(parse_reference("python"))
    assert parse_image("docker://python:3") == RegistryImage(parse_reference("python:3"))
    assert parse_image("docker:3") == RegistryImage(parse_reference("docker:3"))
    assert parse_image("oci:some/dir") == LayoutImage(Path("some/dir"))
    assert parse_image("oci:/d:docker.io/x:1") == LayoutImage(Path("/d"), "docker.io/x:1")
    assert parse_image("oci-archive:a.tar:t") == ArchiveImage(Path("a.tar"), "t")
    assert parse_image("docker-archive:a.tar") == DockerArchiveImage(Path("a.tar"))
    assert parse_image("docker-archive:a.tar:x:1") == DockerArchiveImage(
        Path("a.tar"), parse_reference("x:1")
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("docker-daemon:app:1", "docker save"),
        ("containers-storage:app", "podman save"),
        ("oci:", "write oci:PATH"),
        ("oci:dir:", "write oci:PATH or oci:PATH:TAG"),
        ("docker-archive:a\0b", "docker-archive:PATH"),
        ("docker-archive:f:Not A Name", "not a"),
        ("docker://", "is empty"),
        ("./layout", "write oci:DIRECTORY"),
        ("/images/app.tar:1", "oci-archive:FILE"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(BadReference, match=hint):
        parse_image(text)
