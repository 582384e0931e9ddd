"""`lazyfs login` and `logout` as they are typed, private images after them, and secrets only where kept."""

import base64
import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.credential_helper import install_helper
from tests.support.images import build_image
from tests.support.quick_runner import QuickRunner
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import file, tar

PASSWORD, IDENTITY = "s3cret-passw0rd", "s3cret-1dentity"
IMAGE = build_image([tar(file(b"hello", b"hello\n"))])
AS_ALICE = ("-u", "alice", "--password-stdin")


@pytest.fixture
def lazyfs(tmp_path: Path) -> QuickRunner:
    return QuickRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture
def basic() -> Iterator[Registry]:
    """A registry that shows its image to alice alone, by Basic authentication."""
    with Registry(access=Access(mode="basic", users={"alice": PASSWORD})) as registry:
        registry.push("app", IMAGE)
        yield registry


@pytest.fixture
def token() -> Iterator[Registry]:
    """The same by bearer tokens, with an identity token for who logs in."""
    access = Access(
        mode="token",
        users={"alice": PASSWORD},
        anonymous_pull=False,
        offers_identity=IDENTITY,
        identity_tokens={IDENTITY: "alice"},
    )
    with Registry(access=access) as registry:
        registry.push("app", IMAGE)
        yield registry


@pytest.fixture(params=["basic", "token"])
def private(request: pytest.FixtureRequest) -> Registry:
    """The one and the other."""
    found: Registry = request.getfixturevalue(request.param)
    return found


def login(lazyfs: LazyfsRunner, registry: Registry, password: str = PASSWORD, **more):
    return lazyfs("login", registry.host, *AS_ALICE, input=f"{password}\n", **more)


def docker_config(lazyfs: LazyfsRunner) -> Path:
    return lazyfs.home / ".docker" / "config.json"


def written(directory: Path) -> Iterator[tuple[Path, bytes]]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def test_after_a_login_private_images_are_there_and_after_a_logout_not(private, lazyfs):
    reference = f"{private.host}/app"
    assert "lazyfs login" in lazyfs("ls", reference, exit_code=77).stderr
    done = login(lazyfs, private)
    assert done.stdout == f"logged in to {private.host} as alice; kept in {docker_config(lazyfs)}\n"
    assert "is not encrypted" in done.stderr
    assert lazyfs("cat", reference, "/hello").stdout == "hello\n"
    again = lazyfs("logout", private.host)
    assert again.stdout == f"forgot {private.host} in {docker_config(lazyfs)}\n"
    assert lazyfs("logout", private.host).stderr == f"lazyfs: nothing was kept for {private.host}\n"
    lazyfs("inspect", reference, exit_code=77)


def test_a_wrong_password_is_not_kept(basic, lazyfs):
    assert PASSWORD[:6] not in login(lazyfs, basic, "s3cret-wrong", exit_code=77).stderr
    assert not docker_config(lazyfs).exists()


def test_no_secret_is_written_but_where_it_is_kept(private, lazyfs, tmp_path):
    loud = {"LAZYFS_LOG_LEVEL": "debug"}
    point = tmp_path / "mnt"
    point.mkdir()
    told = [login(lazyfs, private, env=loud), lazyfs("cat", f"{private.host}/app", "/hello", env=loud)]
    told.append(lazyfs("mount", f"{private.host}/app", point, env=loud))
    told += [lazyfs("umount", point), lazyfs("ls", f"{private.host}/app:none", env=loud, exit_code=66)]
    told.append(login(lazyfs, private, "s3cret-wrong", env=loud, exit_code=77))
    kept = docker_config(lazyfs)
    assert kept.stat().st_mode & 0o777 == 0o600
    pair = base64.b64encode(f"alice:{PASSWORD}".encode())
    secrets = [b"s3cret", pair, b"token-", base64.b64encode(b"alice:s3cret-wrong")]
    outputs = [(Path(f"output of {done.args[1]}"), (done.stdout + done.stderr).encode()) for done in told]
    found = [
        (path, secret)
        for path, data in [*written(tmp_path), *outputs, *written(Path("/run/lazyfs"))]
        for secret in secrets
        if secret in data and path != kept
    ]
    assert found == []
    assert (pair in kept.read_bytes()) is (private.access.mode == "basic")
    assert (IDENTITY.encode() in kept.read_bytes()) is (private.access.mode == "token")


def test_a_helper_that_docker_is_told_of_keeps_the_login(basic, lazyfs, tmp_path):
    vault = install_helper(tmp_path / "bin")
    env = {"PATH": f"{vault.directory}:{os.environ['PATH']}"}
    docker_config(lazyfs).parent.mkdir(parents=True)
    docker_config(lazyfs).write_text(json.dumps({"credsStore": "vault", "currentContext": "x"}))
    done = login(lazyfs, basic, env=env)
    assert done.stdout.endswith("kept in docker-credential-vault\n")
    assert done.stderr == ""
    assert vault.held == {basic.host: {"Username": "alice", "Secret": PASSWORD}}
    assert lazyfs("cat", f"{basic.host}/app", "/hello", env=env).stdout == "hello\n"
    lazyfs("logout", basic.host, env=env)
    assert vault.held == {}
    assert json.loads(docker_config(lazyfs).read_bytes()) == {
        "credsStore": "vault",
        "currentContext": "x",
        "auths": {},
    }


def test_another_file_can_be_named(basic, lazyfs, tmp_path):
    for number, env in enumerate(
        [
            {"REGISTRY_AUTH_FILE": str(tmp_path / "0.json")},
            {"DOCKER_CONFIG": str(tmp_path / "1")},
            {"LAZYFS_AUTH_FILES": str(tmp_path / "2.json")},
        ]
    ):
        login(lazyfs, basic, env=env)
        assert lazyfs("cat", f"{basic.host}/app", "/hello", env=env).stdout == "hello\n"
        place = tmp_path / ("1/config.json" if number == 1 else f"{number}.json")
        assert basic.host in json.loads(place.read_bytes())["auths"]
    assert not docker_config(lazyfs).exists()


def test_who_asks_for_no_password_is_told(lazyfs):
    with Registry() as registry:
        registry.push("app", IMAGE)
        assert "not known" in login(lazyfs, registry).stderr


def test_at_a_terminal_the_password_is_asked_for_and_not_shown(basic, lazyfs):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", executable(), "login", basic.host],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=lazyfs.environment(),
    ) as process:
        os.close(theirs)
        shown = b""
        for question, answer in ((b"Username", b"alice"), (b"Password", PASSWORD.encode())):
            while question not in shown:
                shown += os.read(ours, 1000)
            os.write(ours, answer + b"\n")
        while b"logged in" not in shown:
            shown += os.read(ours, 1000)
        while _more(ours):
            pass
        assert process.wait() == 0
    os.close(ours)
    assert PASSWORD.encode() not in shown
    assert b"alice" in shown


def _more(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1000)
    except OSError:  # the other side has gone
        return b""
