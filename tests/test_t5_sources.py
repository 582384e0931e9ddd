"""Where images come from, as users meet it: mirrors, certificates, credentials, foreign layers, archives."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from indexer.digest import sha256_digest
from tests.support.credential_helper import install_helper
from tests.support.images import BuiltDocument, build_image, compress, encode, write_layout
from tests.support.quick_runner import QuickRunner, run_quickly
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_faults import Reset
from tests.support.registry_tls import TestAuthority, make_authority
from tests.support.tars import file, tar

BIG = bytes(range(256)) * 1200
HELLO = tar(file(b"hello", b"hello\n"))
WORLD = tar(file(b"hello", b"world\n"))
IMAGE = build_image([HELLO])


@pytest.fixture
def lazyfs(tmp_path: Path) -> QuickRunner:
    return QuickRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr."""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["index", "--push", "{}/app:1"],
        ["index", "--push", "--index-repo", "{}/indexes", "oci:nowhere"],
        ["optimize", "--push", "{}/app:1", "program"],
        ["commit", ".", "{}/app:1"],
        ["commit", "--push-index", "--index-repo", "{}/indexes", ".", "oci:new"],
    ],
)
def test_offline_nothing_is_published(lazyfs, words):
    with Registry() as registry:
        command, *rest = [word.format(registry.host) for word in words]
        done = lazyfs(command, "--offline", *rest, exit_code=64)
        assert complaint(done).endswith("is in a registry, and offline none is asked: leave --offline out")
        assert not registry.requests


def test_offline_no_content_is_fetched(lazyfs):
    with Registry() as registry:
        registry.push("app", IMAGE)
        lazyfs("index", f"{registry.host}/app")
        shutil.rmtree(lazyfs.cache_dir / "layers")
        registry.requests.clear()
        assert lazyfs("--offline", "ls", f"{registry.host}/app").stdout == "hello\n"
        done = lazyfs("--offline", "cat", f"{registry.host}/app", "/hello", exit_code=66)
        assert done.stderr.endswith("is not in the cache; try without --offline\n")
        assert not registry.requests


# Mirrors


def with_mirror(place: Path, mirror: Registry, home: Registry) -> dict[str, str]:
    """The environment in which registry.example is at `home`, with a mirror before it."""
    directory = place / "registry.example"
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(f'server = "{home.base_url}"\n[host."{mirror.base_url}"]\n')
    return {"LAZYFS_HOSTS_DIR": str(place)}


def test_a_mount_goes_on_when_its_mirror_dies(lazyfs, tmp_path):
    contents = [os.urandom(100_000) for _ in range(10)]
    image = build_image([tar(*(file(b"f%d" % n, data) for n, data in enumerate(contents)))])
    point = tmp_path / "mnt"
    point.mkdir()
    with Registry() as mirror, Registry() as home:
        for registry in (mirror, home):
            registry.push("app", image)
        env = with_mirror(tmp_path / "certs.d", mirror, home) | {"LAZYFS_SPAN_SIZE_KIB": "64"}
        lazyfs("index", "registry.example/app", env=env)
        subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)
        lazyfs("mount", "registry.example/app", point, env=env)
        try:
            assert (point / "f0").read_bytes() == contents[0]
            assert home.requests["GET", "blob"] == 0
            mirror.faults.add("blob", Reset(1000), times=99)
            assert (point / "f9").read_bytes() == contents[9]
            asked = mirror.requests["GET", "blob"]
            for number in (2, 7, 4):
                assert (point / f"f{number}").read_bytes() == contents[number]
            assert mirror.requests["GET", "blob"] == asked
            assert home.requests["GET", "blob"] >= 4
        finally:
            lazyfs("umount", point)


def test_the_directory_of_mirrors_can_be_given_in_three_ways(lazyfs, tmp_path):
    with Registry() as mirror, Registry() as home:
        mirror.push("app", IMAGE)
        env = with_mirror(tmp_path / "certs.d", mirror, home)
        directory = env["LAZYFS_HOSTS_DIR"]
        config = lazyfs.home / ".config/lazyfs/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(f'hosts_dir = "{directory}"')
        name = "registry.example/app"
        assert lazyfs("cat", name, "/hello", env=env).stdout == "hello\n"
        lazyfs("cat", name, "/hello", "--hosts-dir", directory)
        environment = lazyfs.environment()
        del environment["LAZYFS_HOSTS_DIR"]
        done = run_quickly(["cat", name, "/hello", "--cache-dir", str(lazyfs.cache_dir)], environment)
        assert (done.returncode, done.stdout) == (0, "hello\n")
        assert mirror.requests["GET", "manifest"] == 3


# Credentials that stand in files already


def auths(registry: Registry, **entry: str) -> dict[str, object]:
    return {"auths": {registry.host: entry}}


@pytest.mark.parametrize("way", ["password", "identity", "registry token", "helper", "identity in a helper"])
def test_private_images_are_read_with_what_docker_or_podman_kept(way, lazyfs, tmp_path):
    access = Access(
        mode="token", users={"alice": "pw"}, identity_tokens={"idt": "alice"}, anonymous_pull=False
    )
    vault = install_helper(tmp_path / "bin")
    with Registry(access=access) as registry:
        registry.push("app", IMAGE)
        _, granted = access.answer("GET", "scope=repository:app:pull", b"", "Basic " + pair("alice:pw"))
        config = {
            "password": auths(registry, auth=pair("alice:pw")),
            "identity": auths(registry, auth=pair("alice:"), identitytoken="idt"),
            "registry token": auths(registry, registrytoken=granted["token"]),
        }.get(way, {"credsStore": "vault"})
        user, secret = ("alice", "pw") if way == "helper" else ("<token>", "idt")
        (vault.directory / "vault.vault").write_text(
            json.dumps({registry.host: {"Username": user, "Secret": secret}})
        )
        place = lazyfs.home / ("run/containers/auth.json" if way == "password" else ".docker/config.json")
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(config))
        env = {
            "PATH": f"{vault.directory}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(lazyfs.home / "run"),
        }
        assert lazyfs("cat", f"{registry.host}/app", "/hello", env=env).stdout == "hello\n"


def pair(text: str) -> str:
    return b64encode(text.encode()).decode()


# Certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return make_authority(tmp_path_factory.mktemp("tls"))


def test_an_authority_and_a_client_certificate_of_ones_own(authority, lazyfs):
    with Registry(tls=authority.server_context(want_client=True)) as registry:
        registry.push("app", IMAGE)
        env = {
            "LAZYFS_CA_FILE": str(authority.ca_file),
            "LAZYFS_CLIENT_CERT": str(authority.client_cert),
            "LAZYFS_CLIENT_KEY": str(authority.client_key),
        }
        done = lazyfs("cat", "--no-plain-http", f"{registry.host}/app", "/hello", env=env)
        assert done.stdout == "hello\n"


# Foreign layers


def test_a_foreign_layer_comes_from_its_own_url(lazyfs):
    with Registry() as registry, Registry() as elsewhere:
        document = IMAGE.json
        layer = document["layers"][0]
        layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        elsewhere.put_blob("files", IMAGE.layers[0])
        layer["urls"] = [f"{elsewhere.base_url}/v2/files/blobs/{layer['digest']}"]
        registry.put_blob("app", IMAGE.config)
        registry.put_manifest("app", "latest", IMAGE.media_type, encode(document))
        assert lazyfs("cat", f"{registry.host}/app", "/hello").stdout == "hello\n"
        assert elsewhere.requests["GET", "blob"] == 1


# Archives


def write_tar(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def saved(images: Sequence[tuple[Sequence[str] | None, BuiltDocument, Sequence[str]]]) -> dict[str, bytes]:
    """`manifest.json` and the configurations: names, image, and the names of its layers' files."""
    members, entries = {}, []
    for names, image, layers in images:
        config = f"{sha256_digest(image.config)[7:]}.json"
        members[config] = image.config
        entries.append({"Config": config, "RepoTags": names, "Layers": list(layers)})
    return members | {"manifest.json": json.dumps(entries).encode()}


def test_an_archived_layout_with_several_images_wants_a_tag_and_says_which(lazyfs, tmp_path):
    layout = write_layout(tmp_path / "layout", {"one": IMAGE, "two": build_image([WORLD])})
    archive = tmp_path / "images.tar"
    subprocess.run(["tar", "-cf", archive, "-C", layout, "."], check=True)
    assert lazyfs("cat", f"oci-archive:{archive}:one", "/hello").stdout == "hello\n"
    assert lazyfs("cat", f"oci-archive:{archive}:two", "/hello").stdout == "world\n"
    said = complaint(lazyfs("cat", f"oci-archive:{archive}", "/hello", exit_code=66))
    assert said.endswith("name one of its images; it has one, two")
    said = complaint(lazyfs("cat", f"oci-archive:{archive}:three", "/hello", exit_code=66))
    assert said.endswith("no image 'three'; it has one, two")
    assert "oci-archive:" in complaint(lazyfs("ls", f"docker-archive:{archive}", exit_code=65))


def test_a_saved_archive_with_several_images_wants_a_name_and_says_which(lazyfs, tmp_path):
    members = saved(
        [
            (["app:1", "app:latest"], IMAGE, ["a.tar"]),
            (["ghcr.io/other/app:2"], build_image([WORLD]), ["b.tar"]),
        ]
    )
    archive = write_tar(tmp_path / "saved.tar", members | {"a.tar": HELLO, "b.tar": compress(WORLD, "gzip")})
    for name in ("app:1", "app", "docker.io/library/app:latest"):
        assert lazyfs("cat", f"docker-archive:{archive}:{name}", "/hello").stdout == "hello\n"
    name = f"docker-archive:{archive}:ghcr.io/other/app:2"
    assert lazyfs("cat", name, "/hello").stdout == "world\n"
    said = complaint(lazyfs("ls", f"docker-archive:{archive}", exit_code=66))
    assert said.endswith("name one of its images; it has app:1, app:latest, ghcr.io/other/app:2")
    said = complaint(lazyfs("ls", f"docker-archive:{archive}:app:3", exit_code=66))
    assert "no image docker.io/library/app:3; it has app:1" in said
    assert "docker-archive:" in complaint(lazyfs("ls", f"oci-archive:{archive}", exit_code=65))


def test_the_layout_of_old_dockers_is_read(lazyfs, tmp_path):
    """A directory per layer, equal layers as links, and `repositories` beside `manifest.json`."""
    lower, upper = "1" * 64, "2" * 64
    image = build_image([HELLO, WORLD, HELLO], compression="none", dialect="docker")
    layers = [f"{lower}/layer.tar", f"{upper}/layer.tar", f"{'3' * 64}/layer.tar"]
    members = saved([(None, image, layers)]) | {
        f"{lower}/VERSION": b"1.0",
        f"{lower}/json": b"{}",
        layers[0]: HELLO,
        layers[1]: WORLD,
        "repositories": b"{}",
    }
    archive = write_tar(tmp_path / "old.tar", members, {layers[2]: f"../{lower}/layer.tar"})
    assert lazyfs("cat", f"docker-archive:{archive}", "/hello").stdout == "hello\n"
    assert "images without names" in complaint(lazyfs("ls", f"docker-archive:{archive}:app", exit_code=66))
