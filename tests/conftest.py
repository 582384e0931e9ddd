"""What every test gets: a log without surprises, no mount left behind, the laboratory when asked for."""

import gc
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from trio.testing import MockClock

from tests.support.containers import Containers, until
from tests.support.lab import Lab, LabRegistry, default_lab, serve
from tests.support.mounts import mounts_below, unmount_lazily
from tests.support.runner import LazyfsRunner

LAB_FIXTURES = frozenset({"lab", "lab_image", "registry", "unpacked"})


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the log guard; take interrupts, which shells have background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    settings.register_profile("lazyfs", deadline=None)  # how long an example takes, the machine decides
    settings.load_profile("lazyfs")
    config.addinivalue_line(
        "markers", "expect_log(pattern): the test logs a WARNING or worse that matches, or it fails"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `lab` whatever uses the laboratory, so that `-m "not lab"` runs anywhere."""
    for item in items:
        if LAB_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("lab")


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what all tests share: it stopped all threads for half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_guard(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that logs a warning it does not expect, or does not log one it expects."""
    yield
    expected = [str(marker.args[0]) for marker in request.node.iter_markers("expect_log")]
    messages = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.WARNING
    ]
    surprises = [text for text in messages if not any(re.search(pattern, text) for pattern in expected)]
    absent = [pattern for pattern in expected if not any(re.search(pattern, text) for text in messages)]
    if surprises or absent:
        lines = [f"unexpected: {text}" for text in surprises] + [f"never logged: {text}" for text in absent]
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture(autouse=True)
def mount_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something mounted below its `tmp_path`, and take it away."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    tmp_path: Path = request.getfixturevalue("tmp_path")
    yield
    _take_away(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def mount_guard_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail if something is still mounted below any temporary directory of this process, and take it away."""
    yield
    _take_away(tmp_path_factory.getbasetemp())


def _take_away(top: Path) -> None:
    left = mounts_below(top)
    for point in left:
        unmount_lazily(point)
    if left:
        pytest.fail("left mounted: " + ", ".join(map(str, left)), pytrace=False)


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """A clock that goes on by itself, as a registry's threads do, and can be put forward."""
    mock_clock.rate = 1
    return mock_clock


@pytest.fixture
def lazyfs(tmp_path: Path) -> LazyfsRunner:
    """The command line, with a home and a cache below `tmp_path`."""
    return LazyfsRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture(scope="session")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> LazyfsRunner:
    """The command line on another machine, for `index --push`; a layer is indexed once for all tests."""
    place = tmp_path_factory.mktemp("publisher")
    return LazyfsRunner(home=place / "home", cache_dir=place / "cache")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The real images of `tests/support/lab.py`. What is missing there is made at first use."""
    return default_lab()


@pytest.fixture(scope="session")
def lab_image(lab: Lab) -> Callable[[str], Path]:
    """From an image's name to its OCI layout, where its tag is "latest"."""
    return lab.image


@pytest.fixture(scope="session")
def unpacked(lab: Lab) -> Callable[[str], Path]:
    """From an image's name to its root as `umoci unpack` writes it; read only."""
    return lab.unpacked


@pytest.fixture(scope="session")
def registry(lab: Lab) -> Iterator[LabRegistry]:
    """A real registry with the laboratory's images, read only: one process per test process, one storage.

    Ask `registry.reference(name)` for an image's name there.
    """
    with serve(lab) as running:
        yield running


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Containers:
    """One home and cache for the containers of all tests of a file: what an image costs, it costs once."""
    top = tmp_path_factory.mktemp("run")
    return Containers(LazyfsRunner(home=top / "home", cache_dir=top / "cache"))


@pytest.fixture
def nothing_left(containers: Containers) -> Iterator[None]:
    """Whatever a test does with containers, nothing of them stays."""
    yield
    until(lambda: not containers.left(), f"{containers.left()} go")
    assert mounts_below(containers.runner.cache_dir) == []
