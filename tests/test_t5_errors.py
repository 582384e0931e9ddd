"""Every error of docs/errors.md is what the command line says, with the exit code that stands there."""

import gzip
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.bundles import attach_bundle, signed_bundle
from tests.support.crash import lock_held
from tests.support.errors_page import described_errors
from tests.support.published import new_key, public_pem
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_faults import Corrupt, Reset, StallHead, Status
from tests.support.registry_proxy import ForwardProxy
from tests.support.runner import executable
from tests.support.troubles import GOOD, Done, World, open_world

ERRORS = described_errors()
HEX = "a" * 64
EXPECTED_WARNINGS = {
    "The disk is full": (
        *("lazyfs: cannot keep a document", "lazyfs: the index of layer", "lazyfs: nothing of layer"),
        "lazyfs: cannot keep a metadata image",
    ),
    "Another process is in the way": ("lazyfs: waiting for a lock on ",),
    "A container that the runtime cannot make": ("runc run failed: ",),
    "Changes to another image": ("lazyfs: the image is for linux/s390x: its programs may not run here",),
}
LAYER = GOOD.json["layers"][0]["digest"]
ROOTLESS = '{"image": "app", "digest": "", "mount_points": [], "user_namespace": true}'


def stopped_holder(world: World) -> Done:
    assert index_in(world, "good").returncode == 0
    (entry,) = (world.tmp / "home/.cache/lazyfs/layers").glob("*/*")
    with lock_held(entry):
        return world.run("cat", world.at("good"), "/a")


def index_in(world: World, tag: str) -> Done:
    return world.run("index", world.at(tag))


def ask(world: World, tag: str, *arguments: str, **more) -> Done:
    return world.run("ls", *arguments, world.remote(tag), **more)


def with_fault(world: World, kind: str, fault: object, **env: str) -> Done:
    world.registry.faults.add(kind, fault)
    try:
        return ask(world, "good", env=env)
    finally:
        world.registry.release()


def corrupted_layer(world: World) -> Done:
    world.registry.faults.add("blob", Corrupt(5), path=LAYER)
    return world.run("index", world.remote("good"))


def corrupted_manifest(world: World) -> Done:
    world.registry.faults.add("manifest", Corrupt(50))
    return world.run("ls", f"{world.registry.host}/app@{GOOD.digest}")


def offline_and_lost(world: World) -> Done:
    assert ask(world, "good").returncode == 0
    shutil.rmtree(world.tmp / "home/.cache/lazyfs/documents")
    return ask(world, "good", "--offline")


def in_use(world: World) -> Done:
    with world.mounted() as point:
        held = os.open(point, os.O_RDONLY)
        try:
            return world.run("umount", point)
        finally:
            os.close(held)


def mounted_twice(world: World) -> Done:
    with world.mounted() as point:
        return world.run("mount", world.at("good"), point)


def dead_daemon(world: World) -> Done:
    with world.mounted() as point:
        pid = json.loads(world.run("stats", "--json", point).stdout)["pid"]
        os.kill(pid, signal.SIGKILL)
        return world.run("stats", point)


def without_fuse(world: World) -> Done:
    script = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    inside = ("unshare", "-m", "sh", "-c", script, "sh")
    (world.tmp / "mnt").mkdir()
    return subprocess.run(
        [*inside, executable(), "mount", "--driver", "fuse", world.at("good"), world.tmp / "mnt"],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        env=world.env(),
    )


def cache_in(world: World, prepare: Callable[[Path], object]) -> Done:
    place = world.tmp / "place"
    place.mkdir(mode=0o700)
    prepare(place)
    return world.run("ls", "--cache-dir", place, world.at("good"))


def cache_of_another_version(world: World) -> Done:
    assert world.run("ls", world.at("good")).returncode == 0
    (world.tmp / "home/.cache/lazyfs/version").write_text("99\n")
    return world.run("ls", world.at("good"))


def open_cache(world: World) -> Done:
    assert world.run("ls", world.at("good")).returncode == 0
    (world.tmp / "home/.cache/lazyfs").chmod(0o755)
    return world.run("ls", world.at("good"))


def cache_on(world: World, options: str) -> Done:
    with world.tmpfs(options) as place:
        return world.run("index", "--cache-dir", place / "cache", world.at("good"))


def full_disk(world: World) -> Done:
    with world.tmpfs("size=64k,mode=700") as place:
        cache = place / "cache"
        assert world.run("cache", "usage", "--cache-dir", cache).returncode == 0
        with (place / "fill").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        return world.run("cache", "pin", "--cache-dir", cache, world.at("good"))


def to_tls(world: World, *arguments: str, **env: str) -> Done:
    return world.run("ls", *arguments, f"{world.secure.host}/app:good", env=env)


def by_another_name(world: World) -> Done:
    with ForwardProxy(world.secure.port) as proxy:
        env = {"LAZYFS_CA_FILE": str(world.authority.ca_file), "https_proxy": proxy.url}
        return world.run("ls", "other.example/app:good", env=env)


def without_client_certificate(world: World) -> Done:
    with Registry(tls=world.authority.server_context(want_client=True)) as registry:
        env = {"LAZYFS_CA_FILE": str(world.authority.ca_file)}
        return world.run("ls", "--no-plain-http", f"{registry.host}/app", env=env)


def private(world: World, mode: str, **kept: str) -> Done:
    with world.private(mode) as host:
        world.file("home/.docker/config.json", json.dumps({"auths": {host: kept}}))
        return world.run("ls", f"{host}/app")


def token_service_without_tls(world: World) -> Done:
    access = Access(mode="token", realm="http://127.0.0.1/token")
    with Registry(tls=world.authority.server_context(), access=access) as registry:
        env = {"LAZYFS_CA_FILE": str(world.authority.ca_file)}
        return world.run("ls", "--no-plain-http", f"{registry.host}/app", env=env)


def unsigned(world: World) -> Done:
    key = world.file("key.pub", public_pem(new_key()))
    return ask(world, "good", "--require-signature", "--trusted-key", key)


def signed_by_a_certificate(world: World) -> Done:
    with Registry() as registry:
        registry.push("app", GOOD, tag="1")
        attach_bundle(registry, GOOD.digest, signed_bundle(new_key(), GOOD.digest, certified=True))
        key = world.file("key.pub", public_pem(new_key()))
        return world.run("ls", "--require-signature", "--trusted-key", key, f"{registry.host}/app:1")


def wrong_login(world: World) -> Done:
    with world.private("token") as host:
        return world.run("login", host, "-u", "alice", "--password-stdin", stdin=b"wrong")


def wrong_hosts_file(world: World, text: str) -> Done:
    world.file("certs.d/registry.example/hosts.toml", text)
    return world.run("ls", "registry.example/app", env={"LAZYFS_HOSTS_DIR": str(world.tmp / "certs.d")})


def with_auth_file(world: World, text: str) -> Done:
    with world.private("basic") as host:
        env = {"REGISTRY_AUTH_FILE": str(world.file("auth.json", text))}
        return world.run("ls", f"{host}/app", env=env)


def login_at(world: World, **more) -> Done:
    return world.run("login", world.registry.host, "-u", "a", "--password-stdin", stdin=b"b", **more)


def failing_helper(world: World) -> Done:
    world.file("home/.docker/config.json", '{"credsStore": "absent"}')
    return login_at(world)


def archive_of_layout(world: World) -> Path:
    path = world.tmp / "layout.tar"
    subprocess.run(["tar", "-cf", path, "-C", world.layout, "."], check=True)
    return path


def archive_of_docker(world: World) -> Path:
    world.file(
        "saved/manifest.json", '[{"Config":"c","Layers":[],"RepoTags":["app:1"]},{"RepoTags":["app:2"]}]'
    )
    path = world.tmp / "saved.tar"
    subprocess.run(["tar", "-cf", path, "-C", world.tmp / "saved", "manifest.json"], check=True)
    return path


def contain(world: World, *words: str, options: Sequence[str | Path] = (), tag: str = "good") -> Done:
    return world.run("run", *options, world.at(tag), *words)


def without_a_home(world: World) -> Done:
    env = world.env({"LAZYFS_CACHE_DIR": ""}, home=False)
    return world.run_with(["--reuid=65534", "--clear-groups"], "ls", world.at("good"), env=env)


def changes_to_another(world: World) -> Done:
    options = ("--upper", world.tmp / "kept")
    assert contain(world, "nope", options=options).returncode == 127
    return contain(world, "nope", options=options, tag="other")


def first_file(world: World) -> str:
    return world.run("find", world.at("good"), "-type", "f").stdout.splitlines()[0].lstrip("/")


CASES: dict[str, Callable[[World], Done]] = {
    # 64
    "No such command": lambda w: w.run("mont"),
    "No such option": lambda w: w.run("ls", "--zzz", w.at("good")),
    "Missing argument": lambda w: w.run("ls"),
    "A value that an option does not take": lambda w: w.run("mount", "--driver", "x", w.at("good"), w.tmp),
    "An empty name": lambda w: w.run("ls", ""),
    "An image id instead of a name": lambda w: w.run("ls", HEX),
    "A URL instead of a name": lambda w: w.run("ls", "https://ghcr.io/a/b"),
    "A tag that cannot be one": lambda w: w.run("ls", "app:a b"),
    "A digest that cannot be one": lambda w: w.run("ls", "app@sha256:12"),
    "A name in capitals": lambda w: w.run("ls", "ghcr.io/Team/app"),
    "A name that cannot be one": lambda w: w.run("ls", "ghcr.io/../app"),
    "A host that cannot be one": lambda w: w.run("ls", "host.io:port/app"),
    "An image that docker or podman keeps": lambda w: w.run("ls", "docker-daemon:app:1"),
    "A layout or archive without a path": lambda w: w.run("ls", "oci:"),
    "A path alone": lambda w: w.run("ls", "./layout"),
    "A platform that cannot be one": lambda w: w.run("ls", "--platform", "plan9", w.at("good")),
    "A registry that cannot be one": lambda w: w.run("logout", "alice"),
    "No terminal to ask for a password": lambda w: w.run("login", "ghcr.io"),
    "A password without a user": lambda w: w.run("login", "ghcr.io", "--password-stdin"),
    "An empty password": lambda w: w.run("login", "ghcr.io", "-u", "a", "--password-stdin"),
    "Publishing offline": lambda w: w.run("index", "--push", "--offline", w.remote("good")),
    # 65
    "A layer that is cut short": lambda w: index_in(w, "cut"),
    "A layer that is no tar": lambda w: index_in(w, "no-tar"),
    "A layer that leads out of the image": lambda w: index_in(w, "outward"),
    "A layer that is not what its digest says": corrupted_layer,
    "A layer of another size": lambda w: w.run("index", w.remote("size")),
    "A hard link to nothing": lambda w: index_in(w, "no-target"),
    "A decompression bomb": lambda w: index_in(w, "bomb"),
    "A layer of another compression": lambda w: index_in(w, "xz"),
    "An encrypted layer": lambda w: ask(w, "encrypted"),
    "A layer of an unknown kind": lambda w: ask(w, "unknown"),
    "No image but another artifact": lambda w: ask(w, "chart"),
    "An image of before 2017": lambda w: ask(w, "old"),
    "An image for Windows": lambda w: ask(w, "windows"),
    "A digest that cannot be checked": lambda w: ask(w, "sha512"),
    "A manifest that is no manifest": lambda w: ask(w, "garbage"),
    "A document that is not what its digest says": corrupted_manifest,
    "An archive that is compressed": lambda w: w.run("ls", f"oci-archive:{w.file('x', gzip.compress(b''))}"),
    "An archive that is none": lambda w: w.run("ls", f"docker-archive:{w.file('x.tar', b'x' * 2000)}"),
    "An archive of another kind": lambda w: w.run("ls", f"oci-archive:{archive_of_docker(w)}"),
    "An OCI archive taken for docker's": lambda w: w.run("ls", f"docker-archive:{archive_of_layout(w)}"),
    # 66
    "No such tag": lambda w: ask(w, "nothing"),
    "No such image": lambda w: w.run("ls", f"{w.registry.host}/app@sha256:{HEX}"),
    "A layer that is missing": lambda w: w.run("index", w.remote("missing")),
    "No image for this platform": lambda w: ask(w, "index", "--platform", "linux/amd64"),
    "No such file in the image": lambda w: w.run("cat", w.at("good"), "/nothing"),
    "Not a regular file": lambda w: w.run("cat", w.at("good"), "/d"),
    "A directory without -r": lambda w: w.run("cp", w.at("good"), "/d", w.tmp / "out"),
    "No such layout": lambda w: w.run("ls", f"oci:{w.tmp}/nowhere"),
    "A directory that is no layout": lambda w: w.run("ls", f"oci:{w.tmp}"),
    "No such tag in a layout": lambda w: w.run("ls", w.at("nothing")),
    "A layout with several images": lambda w: w.run("ls", f"oci:{w.layout}"),
    "No such archive": lambda w: w.run("ls", f"oci-archive:{w.tmp}/nowhere.tar"),
    "No such image in an archive": lambda w: w.run("ls", f"docker-archive:{archive_of_docker(w)}:app:3"),
    "Offline, and never seen": lambda w: ask(w, "good", "--offline"),
    "Offline, and not kept": offline_and_lost,
    "Nothing is mounted": lambda w: w.run("umount", w.tmp),
    "Another's mount": lambda w: w.run("umount", "/proc"),
    "No statistics": lambda w: w.run("stats", w.tmp),
    "No published index": lambda w: ask(w, "good", "--index", "registry"),
    # 71
    "The mount point is missing": lambda w: w.run("mount", w.at("good"), w.tmp / "nowhere"),
    "Others may enter the runtime directory": lambda w: w.run("stats", env={"LAZYFS_RUNTIME_DIR": "/"}),
    "The mount point is no directory": lambda w: w.run("mount", w.at("good"), w.file("x", "")),
    "The mount is in use": in_use,
    "No FUSE": without_fuse,
    "The daemon has died": dead_daemon,
    # 73
    "Something is mounted there": mounted_twice,
    # 74
    "The cache directory holds other things": lambda w: cache_in(w, lambda place: (place / "x").touch()),
    "The cache directory is open to others": open_cache,
    "The cache is of another version": cache_of_another_version,
    "The cache directory cannot be used": lambda w: cache_on(w, "ro"),
    "The disk is full": full_disk,
    "The target of a copy cannot be written": lambda w: w.run("cp", w.at("good"), "/a", w.tmp / "no/where"),
    "A layout that cannot be written": lambda w: w.run(
        "index", "--push", "--index-repo", "oci:/proc/layout", w.at("good")
    ),
    # 75
    "No such host": lambda w: w.run("ls", "no-such-host.invalid/app"),
    "No connection": lambda w: w.run("ls", f"{w.nobody}/app"),
    "No answer in time": lambda w: with_fault(w, "manifest", StallHead(), LAZYFS_STALL_TIMEOUT_S="0.1"),
    "The registry is in trouble": lambda w: with_fault(w, "manifest", Status(503)),
    "The connection breaks": lambda w: with_fault(w, "manifest", Reset(-1)),
    "The certificate is not trusted": lambda w: to_tls(w, "--no-plain-http"),
    "The certificate is for another name": by_another_name,
    "HTTPS to a plain registry": lambda w: ask(w, "good", "--no-plain-http"),
    "HTTP to a TLS registry": lambda w: with_fault(
        w, "manifest", Status(400, {}, b"Client sent an HTTP request to an HTTPS server.")
    ),
    "A client certificate is wanted": without_client_certificate,
    "A redirect that is refused": lambda w: with_fault(
        w, "manifest", Status(307, {"Location": "http://169.254.169.254/"})
    ),
    "Something else answers": lambda w: with_fault(w, "manifest", Status(418)),
    "A login where no registry is": lambda w: (
        w.registry.faults.add("base", Status(404)),
        login_at(w),
    )[1],
    "Another process is in the way": stopped_holder,
    # 77
    "A user and password are wanted": lambda w: private(w, "basic"),
    "The kept password is refused": lambda w: private(w, "basic", auth="YWxpY2U6d3Jvbmc="),
    "No token is given": lambda w: private(w, "token"),
    "Access is refused": lambda w: with_fault(w, "manifest", Status(403)),
    "A login is refused": wrong_login,
    "A login of another kind": lambda w: with_fault(
        w, "manifest", Status(401, {"WWW-Authenticate": "Negotiate"})
    ),
    "A token service without TLS": token_service_without_tls,
    "An image that is not signed": unsigned,
    "An image that is signed without a key": signed_by_a_certificate,
    # 78
    "The configuration file is missing": lambda w: ask(w, "good", "--config", str(w.tmp / "nowhere")),
    "The configuration file is not TOML": lambda w: ask(w, "good", *w.config("retries")),
    "An unknown key": lambda w: ask(w, "good", *w.config("retires = 5")),
    "A value of the wrong kind": lambda w: ask(w, "good", *w.config("offline = 1")),
    "A value out of bounds": lambda w: ask(w, "good", *w.config("span_size_kib = 1")),
    "A variable with a wrong value": lambda w: ask(w, "good", env={"LAZYFS_OFFLINE": "perhaps"}),
    "No home": without_a_home,
    "A certificate file that is missing": lambda w: to_tls(w, "--no-plain-http", LAZYFS_CA_FILE="/nowhere"),
    "A certificate file that is none": lambda w: to_tls(
        w, "--no-plain-http", LAZYFS_CA_FILE=str(w.file("ca.crt", "x"))
    ),
    "A client certificate that does not fit its key": lambda w: to_tls(
        w,
        "--no-plain-http",
        LAZYFS_CLIENT_CERT=str(w.authority.client_cert),
        LAZYFS_CLIENT_KEY=str(w.authority.server_key),
    ),
    "A proxy that cannot be used": lambda w: ask(w, "good", env={"HTTPS_PROXY": "socks5://proxy:1080"}),
    "No directory of mirrors": lambda w: ask(w, "good", "--hosts-dir", str(w.tmp / "nowhere")),
    "A file of mirrors that is wrong": lambda w: wrong_hosts_file(w, "[host.m]\nskip_verify = 1"),
    "Nobody may be asked for tags": lambda w: wrong_hosts_file(w, 'server = "m"\ncapabilities = ["pull"]'),
    "A file of credentials that is wrong": lambda w: with_auth_file(w, "["),
    "A login that cannot be kept": lambda w: login_at(
        w, env={"REGISTRY_AUTH_FILE": str(w.file("x", "").parent / "x/auth.json")}
    ),
    "A credential helper that fails": failing_helper,
    "A key or a policy that is missing": lambda w: ask(w, "good", "--trusted-key", str(w.tmp / "nowhere")),
    "No key to check signatures with": lambda w: ask(w, "good", "--require-signature"),
    "No command to run": contain,
    "A user that the image does not know": lambda w: contain(w, "x", options=("--user", "nobodyelse")),
    "A group that the image does not know": lambda w: contain(w, "x", options=("--user", "0:nogroup")),
    "A volume that is not there": lambda w: contain(w, "x", options=("-v", f"{w.tmp}/absent:/x")),
    "A volume that makes no sense": lambda w: contain(w, "x", options=("-v", "x")),
    "No runtime": lambda w: contain(w, "x", options=("--runtime", "none")),
    "A container that the runtime cannot make": lambda w: contain(
        w, "/v/x", options=("--runtime", "runc", "-v", f"{w.tmp}:/v", "-v", f"{w.tmp}:/a")
    ),
    "No such capability": lambda w: contain(w, "x", options=("--cap-drop", "FLY")),
    "A capability that we have not ourselves": lambda w: w.run_with(
        ["--bounding-set=-bpf"], "run", "--cap-add", "bpf", w.at("good"), "x"
    ),
    "No seccomp profile": lambda w: contain(w, "x", options=("--security-opt", f"seccomp={w.file('p', '')}")),
    "A security option that is none": lambda w: contain(w, "x", options=("--security-opt", "apparmor=x")),
    "No such container": lambda w: w.run("exec", "absent", "id"),
    "A name that no container can have": lambda w: contain(w, "x", options=("--name", "a/b")),
    "Changes to another image": changes_to_another,
    "Changes that were made without root": lambda w: w.run(
        "commit", w.file("k/container.json", ROOTLESS).parent, "oci:o:1"
    ),
    "No place for changes": lambda w: contain(w, "x", options=("--upper", w.file("up/x", "").parent)),
    "Nothing to commit": lambda w: w.run("commit", w.tmp / "absent", f"oci:{w.tmp}/out:1"),
    "A change that is none": lambda w: w.run("commit", "--change", "RUN x", w.tmp, f"oci:{w.tmp}/out:1"),
    "A command that is a directory": lambda w: contain(w, "/"),
    "A command without permission": lambda w: contain(w, "/" + first_file(w)),
    "No such command in the container": lambda w: contain(w, "nope"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as world:
        yield world


def test_every_error_of_the_page_is_produced_and_the_page_has_them_all() -> None:
    assert list(CASES) == list(ERRORS)


@pytest.mark.parametrize("title", ERRORS)
def test_an_error_says_what_the_page_says(title: str, shared: World, tmp_path: Path) -> None:
    error = ERRORS[title]
    done = CASES[title](replace(shared, tmp=tmp_path))
    assert shared.registry.faults.pending == 0
    *warnings, line = done.stderr.splitlines() or [""]
    assert error.matches(line), f"{done.stderr}\nwhere the page has\n{error.wordings}"
    assert all(warning.startswith(EXPECTED_WARNINGS.get(title, "no warning")) for warning in warnings)
    assert done.stdout == ""
    assert done.returncode == error.exit_code
    assert error.advice
