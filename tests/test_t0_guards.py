"""The guards that every test runs under do catch what they are for."""

import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import mounts_below, unmount_lazily

pytest_plugins = ["pytester"]

CONFTEST = "from tests.conftest import *\n"
LOGGING = """
import logging, pytest

@pytest.fixture
def noisy():
    logging.getLogger("lazyfs").warning("in a fixture")

def test_silent(): logging.getLogger("lazyfs").info("as expected")

def test_warning(): logging.getLogger("lazyfs.cache").warning("disk %s", "full")

def test_setup(noisy): pass

@pytest.mark.expect_log("disk f.*l")
def test_expected(): logging.getLogger("lazyfs.cache").error("disk full")

@pytest.mark.expect_log("disk full")
def test_never(): pass
"""
MOUNTING = """
import subprocess

def test_tidy(tmp_path): pass

def test_leaves(tmp_path):
    for name in ("a b", "a b/c"):
        (tmp_path / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "left", tmp_path / name], check=True)

def test_leaves_elsewhere(tmp_path_factory):
    subprocess.run(["mount", "-t", "tmpfs", "left", tmp_path_factory.mktemp("elsewhere")], check=True)
"""


def run(pytester: pytest.Pytester, source: str) -> dict[str, str]:
    """Outcome and output of each test of `source`, under this suite's own conftest."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(source)
    reports = pytester.inline_run("-p", "no:cacheprovider").getreports("pytest_runtest_logreport")
    return {report.nodeid.rpartition("::")[2]: str(report.longrepr) for report in reports if report.failed}


@pytest.mark.expect_log("disk full")
@pytest.mark.expect_log("in a fixture")
def test_an_unexpected_warning_fails_a_test(pytester: pytest.Pytester) -> None:
    failed = run(pytester, LOGGING)
    assert failed == {
        "test_warning": "unexpected: WARNING lazyfs.cache: disk full",
        "test_setup": "unexpected: WARNING lazyfs: in a fixture",
        "test_never": "never logged: disk full",
    }


def test_a_mount_left_behind_fails_a_test_and_is_taken_away(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    failed = run(pytester, MOUNTING)
    assert failed.keys() == {"test_leaves", "test_leaves_elsewhere"}
    elsewhere = Path(failed["test_leaves_elsewhere"].removeprefix("left mounted: "))
    assert mounts_below(elsewhere) == []
    first, second = failed["test_leaves"].removeprefix("left mounted: ").split(", ")
    assert first == f"{second}/c"
    assert mounts_below(Path(second)) == []


def test_mounts_are_found_innermost_first(tmp_path: Path) -> None:
    points = [tmp_path / "new\nline", tmp_path / "new\nline" / "back\\slash"]
    for point in points:
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "test", point], check=True)
    assert mounts_below(tmp_path) == points[::-1]
    for point in points[::-1]:
        unmount_lazily(point)
    assert mounts_below(tmp_path) == []
