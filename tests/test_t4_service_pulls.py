"""Credentials of pulls: kept by whoever keeps the daemon's descriptors, and told to nobody else."""

import os
import socket
from collections.abc import Iterator, Mapping

import pytest

from lazyfs.errors import BadReference
from lazyfs.service.pulls import PullCredentials
from lazyfs.service.survival import descriptors
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.source.auth.credentials import Credentials

IMAGE = "registry.example/team/app:1"
NAME = ("registry.example", "team/app")
ALICE, BOB = ({"username": name, "password": f"{name}-s3cret"} for name in ("alice", "bob"))


class KeeperDouble:
    """Does with what it is told what the keeper does, for as many daemons as wanted."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self._sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets[0].setblocking(False)

    def daemon(self) -> PullCredentials:
        """A new one, which inherits what is kept."""
        self.hear()
        inherited = {name: os.dup(descriptor) for name, descriptor in self.kept.items()}
        return PullCredentials(Supervisor(self._sockets[1], inherited))

    def hear(self, most: int = 100) -> None:
        for _ in range(most):
            try:
                message = descriptors.receive(self._sockets[0])
            except BlockingIOError:
                return
            assert message is not None
            name = message.lines["FDNAME"]
            if name in self.kept:
                os.close(self.kept.pop(name))
            if message.descriptors:
                (self.kept[name],) = message.descriptors

    def close(self) -> None:
        for descriptor in self.kept.values():
            os.close(descriptor)
        for each in self._sockets:
            each.close()


@pytest.fixture
def keeper() -> Iterator[KeeperDouble]:
    keeper = KeeperDouble()
    yield keeper
    keeper.close()


def of(entry: Mapping[str, str]) -> Credentials:
    return Credentials(entry["username"], entry["password"])


async def test_the_next_daemon_knows_them(keeper: KeeperDouble) -> None:
    first = keeper.daemon()
    assert [first.log_in(IMAGE, entry) for entry in (ALICE, BOB, BOB)] == [True, True, False]
    second = keeper.daemon()
    assert await second.given.lookup(*NAME) == of(BOB)
    second.log_out(IMAGE, BOB)
    assert await keeper.daemon().given.lookup(*NAME, [of(BOB)]) == of(ALICE)
    assert await keeper.daemon().given.lookup(*NAME) == of(ALICE)
    assert len(keeper.kept) == 1


async def test_a_daemon_that_died_between_keeping_and_dropping_loses_nothing(keeper: KeeperDouble) -> None:
    daemon = keeper.daemon()
    daemon.log_in(IMAGE, ALICE)
    daemon.log_in(IMAGE, BOB)
    keeper.hear(2)  # not that the first is to be dropped
    assert len(keeper.kept) == 2
    again = keeper.daemon()
    assert await again.given.lookup(*NAME, [of(BOB)]) == of(ALICE)
    again.log_out(IMAGE, ALICE)
    keeper.hear()
    assert len(keeper.kept) == 1


@pytest.mark.expect_log("cannot be read")
async def test_what_another_release_kept_is_no_obstacle(
    keeper: KeeperDouble, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.kept["credentials-7"] = os.memfd_create("other")
    os.write(keeper.kept["credentials-7"], b'{"registry.example/team/app": [{"s3cret": 1}]}')
    daemon = keeper.daemon()
    assert "s3cret" not in caplog.text
    assert daemon.log_in(IMAGE, ALICE)
    assert await keeper.daemon().given.lookup(*NAME) == of(ALICE)
    assert list(keeper.kept) == ["credentials-8"]


def test_nothing_is_kept_before_there_is_anything(keeper: KeeperDouble) -> None:
    daemon = keeper.daemon()
    assert not daemon.log_in(IMAGE, {})
    daemon.log_out(IMAGE, ALICE)
    keeper.hear()
    assert keeper.kept == {}


@pytest.mark.parametrize(
    ("image", "server", "is_for_it"),
    [
        ("registry.example/team/app", "registry.example", True),
        ("registry.example/team/app", "https://registry.example/v2/", True),
        ("registry.example:5000/team/app", "registry.example:5000", True),
        ("registry.example/team/app", "other.example", False),
        ("registry.example/team/app", "registry.example.evil", False),
        ("python", "https://index.docker.io/v1/", True),
        ("docker.io/library/python:3", "registry-1.docker.io", True),
        ("python", "registry.example", False),
    ],
)
def test_what_is_for_another_server_is_not_taken(
    keeper: KeeperDouble, image: str, server: str, is_for_it: bool
) -> None:
    assert keeper.daemon().log_in(image, {**ALICE, "serveraddress": server}) is is_for_it


@pytest.mark.parametrize(
    ("image", "entry"),
    [
        ("registry.example/UPPER", ALICE),
        (IMAGE, {"auth": "s3cret, which is no base64"}),
        (IMAGE, {"username": ["s3cret"]}),
        (IMAGE, {"registrytoken": "s3cret\n"}),
        (IMAGE, {"registrytoken": "s3crét"}),
        (IMAGE, {"username": "a", "password": "s3cret" * 20_000}),
    ],
)
def test_what_makes_no_sense_is_refused_without_being_shown(
    keeper: KeeperDouble, image: str, entry: Mapping[str, str]
) -> None:
    daemon = keeper.daemon()
    for attempt in (daemon.log_in, daemon.log_out):
        with pytest.raises(BadReference) as caught:
            attempt(image, entry)
        assert "s3cret" not in str(caught.value)
