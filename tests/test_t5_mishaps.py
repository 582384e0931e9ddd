"""A real mount of a private image while its registry misbehaves: every read is right, or an error in time."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_faults import (
    Corrupt,
    Header,
    IgnoreRange,
    Reset,
    Short,
    Stall,
    StallHead,
    Status,
)
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

LAYERS, FILES, READERS = 3, 150, 64
SIZE = 70_000  # more than a span, so that most reads need the network; a layer is below 4 MiB
DEADLINE_S = 4.0
SLACK_S = 10.0  # of a busy machine
IN_ORDER = frozenset({0, errno.EIO, errno.ETIMEDOUT})
RNG = random.Random(7)
CONTENT = [RNG.randbytes(SIZE) for _ in range(FILES)]
MORE = [RNG.randbytes(SIZE // 2) for _ in range(READERS)]
IMAGE = build_image(
    [
        tar(*(file(b"f%d" % number, CONTENT[number]) for number in range(layer, FILES, LAYERS)))
        for layer in range(LAYERS)
    ]
    + [tar(*(file(b"f%d" % (FILES + number), data) for number, data in enumerate(MORE)))]
)
IMPATIENT = {
    "LAZYFS_SPAN_SIZE_KIB": "64",
    "LAZYFS_STALL_TIMEOUT_S": "0.5",
    "LAZYFS_RETRIES": "4",
    "LAZYFS_MAX_CONNECTIONS": "64",
}


@dataclass
class Mounted:
    """A mount with its index local and its content not, and the registry behind it.

    Attributes:
        registry: the registry.
        point: where it is mounted.
        cold: numbers of files nobody has read yet.
        failed: numbers of files that could not be read at first.
    """

    registry: Registry
    point: Path
    cold: list[int] = field(default_factory=lambda: RNG.sample(range(FILES), FILES), repr=False)
    failed: set[int] = field(default_factory=set)

    def read(self, number: int) -> int:
        """Read a file: 0 if it is right, or the errno that came in time; nothing else ever happens."""
        begin = time.monotonic()
        try:
            data = (self.point / f"f{number}").read_bytes()
        except OSError as error:
            self.failed.add(number)
            problem = error.errno or -1
        else:
            assert data == (CONTENT + MORE)[number]
            problem = 0
        assert problem in IN_ORDER
        assert time.monotonic() - begin < DEADLINE_S + SLACK_S
        return problem

    def read_all(self, numbers: list[int]) -> list[int]:
        """Read files at once, each in a thread of its own."""
        begin = threading.Barrier(len(numbers))

        def read(number: int) -> int:
            begin.wait()
            return self.read(number)

        with ThreadPoolExecutor(len(numbers)) as pool:
            return list(pool.map(read, numbers))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        while self.registry.faults.pending:
            for kind in KINDS:
                self.registry.faults.take(kind, "GET", "")
        self.registry.release()


KINDS = ("blob", "cdn", "token")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    place = tmp_path_factory.mktemp("mishaps")
    lazyfs = LazyfsRunner(home=place / "home", cache_dir=place / "cache")
    access = Access(mode="token", users={"alice": "s3cret"}, anonymous_pull=False)
    with Registry(access=access, cdn=True) as registry:
        registry.push("app", IMAGE)
        reference = f"{registry.host}/app"
        (lazyfs.home / ".docker").mkdir(parents=True)
        auths = {registry.host: {"auth": b64encode(b"alice:s3cret").decode()}}
        (lazyfs.home / ".docker" / "config.json").write_text(json.dumps({"auths": auths}))
        lazyfs("index", reference, env=IMPATIENT)
        subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)
        point = place / "mnt"
        point.mkdir()
        lazyfs("mount", "--read-timeout", str(DEADLINE_S), reference, point, env=IMPATIENT)
        found = Mounted(registry, point)
        try:
            yield found
            found.heal()
            end = time.monotonic() + SLACK_S
            while any(map(found.read, sorted(found.failed))) and time.monotonic() < end:
                pass  # a failure is answered again for a second
            assert not any(map(found.read, sorted(found.failed)))
        finally:
            registry.release()
            lazyfs("umount", "--lazy", point)


def add(kind: str, *actions: object, times: int = 1) -> Callable[[Registry], None]:
    def work(registry: Registry) -> None:
        for action in actions:
            registry.faults.add(kind, action, times=times)  # type: ignore[arg-type]

    return work


def expire(registry: Registry) -> None:
    registry.cdn.expire()


def expire_all(registry: Registry) -> None:
    registry.cdn.expire()
    registry.access.expire_tokens()


HARMLESS: dict[str, Callable[[Registry], None]] = {
    "a stall": add("cdn", Stall(5000)),
    "silence": add("cdn", StallHead()),
    "a reset": add("cdn", Reset(100), Reset(-1)),
    "short bodies": add("cdn", Short(20_000), Short(1)),
    "200 for a range": add("cdn", IgnoreRange()),
    "429": add("cdn", Status(429, {"Retry-After": "1"})),
    "5xx": add("cdn", Status(500), Status(503)),
    "a signed URL that expired": expire,
    "a token that expired": expire_all,
    "a token service that is busy": lambda registry: (
        expire_all(registry),
        add("token", Status(503))(registry),
    )[0],
    "storage that moved": add("cdn", Status(404)),
    "a range that is wrong": add(
        "cdn", Header("Content-Range", "bytes 0-1/*"), Header("Content-Range", None)
    ),
}
HARMFUL: dict[str, Callable[[Registry], None]] = {
    "wrong bytes": add("cdn", Corrupt(3000)),
    "416": add("cdn", Status(416)),
    "an encoded body": add("cdn", Header("Content-Encoding", "gzip")),
    "storage that stays silent": add("cdn", StallHead(), times=99),
    "no access any more": lambda registry: (
        expire_all(registry),
        add("token", Status(403), times=99)(registry),
    )[0],
    "a redirect to nowhere": lambda registry: (
        expire(registry),
        add("blob", Status(307, {"Location": "http://169.254.169.254/x"}), times=9)(registry),
    )[0],
}


@pytest.mark.parametrize("mishap", HARMLESS)
def test_a_mishap_that_passes_is_not_noticed(mishap: str, mounted: Mounted) -> None:
    HARMLESS[mishap](mounted.registry)
    assert mounted.read(mounted.cold.pop()) == 0
    mounted.heal()


@pytest.mark.parametrize("mishap", HARMFUL)
def test_a_mishap_that_stays_ends_in_an_error_in_time(mishap: str, mounted: Mounted) -> None:
    number = mounted.cold.pop()
    HARMFUL[mishap](mounted.registry)
    mounted.read(number)
    mounted.heal()
    assert mounted.read(mounted.cold.pop()) == 0


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_leaves_reads_right_or_failed_in_time(seed: int, mounted: Mounted) -> None:
    rng = random.Random(seed)
    registry = mounted.registry
    for _ in range(rng.randint(4, 10)):
        action = rng.choice(
            [
                *(Stall(rng.randrange(9000)), StallHead(), Reset(rng.randrange(-1, 9000)), Short(500)),
                *(IgnoreRange(), Status(416), Status(429, {"Retry-After": "0"}), Status(503), Status(403)),
                *(Corrupt(rng.randrange(9000)), Header("Content-Length", None), Header("Content-Range", "x")),
            ]
        )
        kind = "cdn" if isinstance(action, Corrupt | Header) else rng.choice(KINDS)
        registry.faults.add(kind, action, times=rng.randint(1, 2), skip=rng.randrange(3))
    if rng.random() < 0.7:
        expire_all(registry)
    mounted.read_all([mounted.cold.pop() for _ in range(8)])
    mounted.heal()
    assert mounted.read_all([mounted.cold.pop() for _ in range(4)]) == [0] * 4


def wait_until_quiet(registry: Registry) -> None:
    """Until nothing more was asked for a while."""
    asked = -1
    while asked != len(registry.seen):
        asked = len(registry.seen)
        time.sleep(0.3)


def test_64_readers_renew_one_token_and_one_redirect(mounted: Mounted) -> None:
    registry = mounted.registry
    assert mounted.read(FILES) == 0  # so that there is something to renew
    wait_until_quiet(registry)  # what comes beside it is asked for by the old redirect
    expire_all(registry)
    registry.journal.clear()
    assert mounted.read_all(list(range(FILES, FILES + READERS))) == [0] * READERS
    assert registry.requests["GET", "token"] == 1
    answers = [seen.status for seen in registry.seen if seen.kind == "blob"]
    assert answers == [401, 307]  # the dead token is found out once, and the new place once
    assert registry.requests["GET", "cdn"] > 1


@pytest.mark.parametrize(("ignored", "code"), [(False, -signal.SIGINT), (True, 0)])
def test_an_interrupt_while_a_command_is_imported_leaves_no_traceback(tmp_path, ignored, code):
    interrupting = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); sys.exit(0)"
    (tmp_path / "click.py").write_text(interrupting)
    program = "from lazyfs.cli import main; main()"
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " if ignored else ""
    done = subprocess.run(
        [sys.executable, "-c", before + program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
