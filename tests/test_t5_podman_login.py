"""Private images under Podman: lazy by the credentials of one pull, which it tells to our helper."""

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.lab_foreign import REPOSITORY, storage
from tests.support.lab_registry import docker_registry
from tests.support.podman import podman
from tests.support.podman_release import release
from tests.support.runner import executable
from tests.support.service import Daemon, running_daemon

SECRET = "p0d-s3cret"
HELPER = f"{executable()}-auth-helper"


@pytest.fixture
def private(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """An eStargz image that only "user" may pull."""
    users = tmp_path / "htpasswd"
    users.write_bytes(subprocess.check_output(["htpasswd", "-Bbn", "user", SECRET]))
    settings = {"auth": {"htpasswd": {"realm": "lab", "path": str(users)}}}
    kept = storage(lab, "estargz-optimized")
    with docker_registry(kept, read_only=True, settings=settings) as address:
        yield f"{address}/{REPOSITORY}:latest"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "d", flags=["--layer-store", str(tmp_path / "store")]) as daemon:
        yield daemon


@pytest.mark.parametrize("helped", [True, False])
def test_a_private_image_is_lazy_by_the_credentials_of_its_pull(lab, private, daemon, tmp_path, helped):
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\nexec {shlex.quote(HELPER)} --daemon {shlex.quote(str(daemon.socket))}\n")
    helper.chmod(0o755)
    with podman(
        release(lab, "5.4"),
        registries=[private.partition("/")[0]],
        layer_stores=[tmp_path / "store"],
        auth_helper=helper if helped else None,
    ) as engine:
        engine.pull(private, "--creds", f"user:{SECRET}")
        assert len(daemon.ask("mounts")) == (len(engine.layers()) if helped else 0)
        assert engine.start(private, "cat", "/etc/debian_version").strip()
    assert SECRET not in daemon.log.read_text()


def help_with(told: bytes, socket: Path) -> tuple[int, str]:
    """The helper's exit code, and what it says."""
    done = subprocess.run([HELPER, "--daemon", socket], input=told, capture_output=True, check=False)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("told", [b"", b"[]", b'{"a": "s3cret"}', b"s3cret", b"[" * 100_000])
def test_what_is_no_credentials_is_refused_in_a_line_without_it(tmp_path, told):
    assert help_with(told, tmp_path / "nobody") == (
        64,
        "lazyfs-auth-helper: standard input holds no credentials of a pull; Podman and CRI-O give them\n",
    )


def test_a_daemon_that_is_away_is_said_soon(tmp_path):
    told = b'{"registry.example/app:1": {"username": "user", "password": "s3cret"}}'
    code, said = help_with(told, tmp_path / "nobody")
    assert code == 75
    assert said.startswith("lazyfs-auth-helper: no data daemon answers at ")
    assert "s3cret" not in said
    assert said.count("\n") == 1


def test_who_pulls_without_credentials_has_none_to_tell(tmp_path):
    assert help_with(b'{"registry.example/app:1": {}}', tmp_path / "nobody") == (0, "")
