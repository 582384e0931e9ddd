"""An index travels: pushed from one cache, used from another, by the commands a user has."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.digest import sha256_digest
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.images import build_image, build_index
from tests.support.lab import push_layout
from tests.support.lab_registry import docker_registry
from tests.support.published import change_member, hide, index_of, new_key, public_pem, put, sign
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

CONTENT = os.urandom(300_000)
IMAGE = build_image([tar(file(b"large", CONTENT), file(b"motd", b"hello\n"))])


@pytest.fixture
def elsewhere(lazyfs: LazyfsRunner, tmp_path: Path) -> LazyfsRunner:
    """The command line on another machine: same home, another cache."""
    return replace(lazyfs, cache_dir=tmp_path / "elsewhere")


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    point = tmp_path / "mnt"
    point.mkdir()
    return point


@pytest.fixture
def mounted(elsewhere: LazyfsRunner, mount_point: Path) -> Iterator[Callable[..., Path]]:
    """Mounts an image elsewhere, until the test ends."""

    def mount(*arguments: str) -> Path:
        elsewhere("mount", *arguments, mount_point)
        return mount_point

    yield mount
    elsewhere("umount", mount_point)


def stats(lazyfs: LazyfsRunner, point: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lazyfs("stats", point, "--json").stdout)
    return answer


def published(lazyfs: LazyfsRunner, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lazyfs("index", "--push", "--json", *arguments).stdout)
    return answer


@pytest.mark.lab
def test_docker_registry_keeps_an_index_by_which_other_machines_mount_at_once(
    lazyfs: LazyfsRunner,
    elsewhere: LazyfsRunner,
    lab_image: Callable[[str], Path],
    tmp_path: Path,
    mount_point: Path,
) -> None:
    storage = tmp_path / "storage"
    with docker_registry(storage) as address:
        reference = f"{address}/postgres:1"
        push_layout(lab_image("postgres"), reference)
        facts = published(lazyfs, reference)
        assert facts["published"]["new"]
        before = {path: path.stat().st_mtime_ns for path in storage.rglob("*") if path.is_file()}
        again = published(lazyfs, reference)
        assert again["published"] == {"digest": facts["published"]["digest"], "new": False}
        assert {path: path.stat().st_mtime_ns for path in storage.rglob("*") if path.is_file()} == before

        def raw(name: str) -> bytes:
            inspect = [
                "skopeo",
                "inspect",
                "--raw",
                "--tls-verify=false",
                f"docker://{address}/postgres{name}",
            ]
            return subprocess.run(inspect, capture_output=True, check=True).stdout

        artifact = json.loads(raw(f"@{facts['published']['digest']}"))
        (link,) = json.loads(raw(f":{fallback_tag(facts['digest'])}"))["manifests"]
        assert link["digest"] == facts["published"]["digest"]
        assert link["artifactType"] == artifact["artifactType"] == "application/vnd.lazyfs.index.v1+json"

        elsewhere("mount", reference, mount_point)
        try:
            first = stats(elsewhere, mount_point)
            heads = [one for one in artifact["layers"] if one["mediaType"] == "application/vnd.lazyfs.toc.v1"]
            config = json.loads(raw(f"@{facts['digest']}"))["config"]
            wanted = sum(one["size"] for one in heads) + config["size"]
            assert first["source"]["data_bytes"] == wanted
            # The tag, the API that is not there, the tag in its place, the artifact; configuration and heads.
            assert first["source"]["control_requests"] == 4
            assert first["source"]["data_requests"] == len(heads) + 1
            assert first["source"]["token_requests"] == first["source"]["retries"] == 0
            assert first["bytes"] < first["image_bytes"] / 100
            with (mount_point / "usr/lib/os-release").open("rb") as some:
                assert len(some.read(4096)) > 100
            assert stats(elsewhere, mount_point)["bytes"] <= 2_500_000
        finally:
            elsewhere("umount", mount_point)


@pytest.mark.lab
def test_a_registry_with_the_referrers_api_costs_exactly_what_it_must(
    lazyfs: LazyfsRunner,
    elsewhere: LazyfsRunner,
    lab_image: Callable[[str], Path],
    mounted: Callable[..., Path],
    mount_point: Path,
) -> None:
    with Registry() as registry:
        digest = push_from_layout(registry, lab_image("nginx"))
        reference = f"{registry.host}/nginx:1"
        artifact = published(lazyfs, reference)["published"]["digest"]
        registry.journal.clear()
        mounted(reference)
        assert [(seen.kind, seen.status) for seen in registry.seen if seen.kind != "blob"] == [
            ("manifest", 200),
            ("referrers", 200),
            ("manifest", 200),
        ]
        with registry.store.lock:
            links = json.loads(registry.store.manifest("nginx", artifact)[1].data)["layers"]
            config = json.loads(registry.store.manifest("nginx", digest)[1].data)["config"]
        heads = [link for link in links if link["mediaType"] == "application/vnd.lazyfs.toc.v1"]
        assert registry.requests["GET", "blob"] == len(heads) + 1
        assert registry.journal.bytes_sent["blob"] == config["size"] + sum(link["size"] for link in heads)
        first = stats(elsewhere, mount_point)
        assert first["bytes"] == sum(registry.journal.bytes_sent.values())
        assert first["bytes"] < first["image_bytes"] / 100
        (mount_point / "etc/passwd").read_bytes()
        assert registry.requests["GET", "blob"] <= len(heads) + 1 + 2  # a span, and its window


def push_from_layout(registry: Registry, layout: Path) -> str:
    """Store the image of a layout as nginx:1; its digest. No request is made."""
    blobs = layout / "blobs" / "sha256"
    (link,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = (blobs / link["digest"][7:]).read_bytes()
    document = json.loads(manifest)
    for one in (document["config"], *document["layers"]):
        registry.put_blob("nginx", (blobs / one["digest"][7:]).read_bytes())
    return registry.put_manifest("nginx", "1", link["mediaType"], manifest)


# Small images, real commands


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, tag="1")
        yield running


def tag(registry: Registry) -> str:
    return f"{registry.host}/app:1"


def pulled(registry: Registry) -> bool:
    return any(seen.target.endswith(sha256_digest(IMAGE.layers[0])) for seen in registry.seen)


def test_nothing_is_built_elsewhere(
    lazyfs: LazyfsRunner, registry: Registry, mounted: Callable[..., Path]
) -> None:
    published(lazyfs, tag(registry))
    registry.journal.clear()
    mounted(tag(registry), "--index", "registry")
    assert not pulled(registry)


def test_inspect_knows_of_an_index_that_was_published(
    lazyfs: LazyfsRunner, elsewhere: LazyfsRunner, registry: Registry
) -> None:
    assert json.loads(elsewhere("inspect", "--json", tag(registry)).stdout)["indexed"] is False
    published(lazyfs, tag(registry))
    registry.journal.clear()
    told = elsewhere("inspect", tag(registry)).stdout.splitlines()
    assert "indexed     yes: mounts are immediate" in told
    assert sum(line.endswith("  an index of lazyfs that was found") for line in told) == len(IMAGE.layers)
    assert not pulled(registry)
    assert json.loads(elsewhere("--offline", "inspect", "--json", tag(registry)).stdout)["indexed"] is True


def test_an_index_repository_of_ones_own_serves_images_that_are_read_only(
    lazyfs: LazyfsRunner, registry: Registry, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    before = dict(registry.store.manifests)
    place = f"oci:{tmp_path / 'indexes'}"
    assert published(lazyfs, tag(registry), "--index-repo", place)["published"]["new"]
    assert not published(lazyfs, tag(registry), "--index-repo", place)["published"]["new"]
    assert registry.store.manifests == before
    registry.journal.clear()
    point = mounted(f"{registry.host}/app@{IMAGE.digest}", "--index-repo", place, "--index", "registry")
    assert (point / "motd").read_bytes() == b"hello\n"


def test_all_platforms_get_an_index_each(lazyfs: LazyfsRunner, registry: Registry) -> None:
    arm = build_image([tar(file(b"motd", b"arm\n"))], platform="linux/arm64")
    windows = build_image([tar(file(b"motd", b"no\n"))], platform="windows/amd64")
    registry.push("app", build_index([IMAGE, arm, windows]), tag="2")
    facts = json.loads(
        lazyfs("index", "--push", "--all-platforms", "--json", f"{registry.host}/app:2").stdout
    )
    assert [(one["digest"], one["platform"]) for one in facts] == [
        (IMAGE.digest, "linux/amd64"),
        (arm.digest, "linux/arm64"),
    ]
    with registry.store.lock:
        for image in (IMAGE, arm):
            assert len(registry.store.referrers("app", image.digest, None)) == 1


def test_verify_says_what_is_wrong_and_exits_with_65(
    lazyfs: LazyfsRunner, elsewhere: LazyfsRunner, registry: Registry
) -> None:
    assert "found elsewhere, true" not in lazyfs("verify", tag(registry)).stdout
    put(registry, "app", index_of(IMAGE, hide(b"motd")))
    told = elsewhere("verify", tag(registry), exit_code=65)
    assert "LIES" in told.stdout
    assert "'motd': in the layer, and not in the index" in told.stdout
    after = json.loads(elsewhere("verify", "--json", tag(registry)).stdout)
    assert [(one["passed"], one["origin"]) for one in after] == [(True, "made now")]
    (note,) = (elsewhere.cache_dir / "quarantine").iterdir()
    assert json.loads(note.read_text())["layer"] == sha256_digest(IMAGE.layers[0])


def test_an_unsigned_index_beside_a_pinned_image_is_not_used(
    elsewhere: LazyfsRunner, registry: Registry, mounted: Callable[..., Path]
) -> None:
    put(registry, "app", index_of(IMAGE, hide(b"motd")))
    pinned = f"{registry.host}/app@{IMAGE.digest}"
    refused = elsewhere("ls", "--index", "registry", pinned, exit_code=66).stderr.splitlines()
    assert "--trust-index uses it all the same" in refused[0]
    assert "was published that may be used here" in refused[1]
    point = mounted(pinned)
    assert (point / "motd").read_bytes() == b"hello\n"
    assert pulled(registry)


def test_what_must_be_signed_and_is_not_exits_with_77(
    elsewhere: LazyfsRunner,
    registry: Registry,
    tmp_path: Path,
    mounted: Callable[..., Path],
    mount_point: Path,
) -> None:
    key, file_ = new_key(), tmp_path / "team.pub"
    file_.write_bytes(public_pem(key))
    demand = ("--require-signature", "--trusted-key", str(file_))
    refused = elsewhere("mount", *demand, tag(registry), mount_point, exit_code=77)
    assert "is not signed by" in refused.stderr
    assert elsewhere("ls", *demand, tag(registry), exit_code=77).stdout == ""
    sign(registry, "app", IMAGE.digest, key)
    assert (mounted(*demand, tag(registry)) / "motd").read_bytes() == b"hello\n"


def test_a_demand_without_a_key_exits_with_78(elsewhere: LazyfsRunner, registry: Registry) -> None:
    assert "no key" in elsewhere("ls", "--require-signature", tag(registry), exit_code=78).stderr


@pytest.mark.parametrize("driver", ["fuse", "erofs"])
def test_once_a_lie_is_found_out_reads_answer_eio(
    elsewhere: LazyfsRunner, registry: Registry, mounted: Callable[..., Path], driver: str
) -> None:
    put(registry, "app", index_of(IMAGE, change_member(b"motd", mode=0o4755)))
    point = mounted(tag(registry), "--driver", driver)
    assert (point / "large").read_bytes() == CONTENT
    assert (point / "motd").read_bytes() == b"hello\n"
    while not (audit := stats(elsewhere, point)["audit"])["lying"]:
        assert audit["audited"] == 0
    with pytest.raises(OSError, match="Input/output") as caught:
        read_past_the_page_cache(point / "large")
    assert caught.value.errno == errno.EIO
    told = elsewhere("ls", tag(registry))
    assert "it lied about layer" in told.stderr


def read_past_the_page_cache(path: Path) -> bytes:
    with path.open("rb") as some:
        os.posix_fadvise(some.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return some.read()


def test_the_truth_is_audited_while_it_is_mounted(
    lazyfs: LazyfsRunner, elsewhere: LazyfsRunner, registry: Registry, mounted: Callable[..., Path]
) -> None:
    published(lazyfs, tag(registry))
    point = mounted(tag(registry))
    assert (point / "large").read_bytes() == CONTENT
    while stats(elsewhere, point)["audit"]["audited"] == 0:
        pass
    assert stats(elsewhere, point)["audit"] == {"layers": 1, "audited": 1, "lying": []}
    assert (point / "motd").read_bytes() == b"hello\n"
