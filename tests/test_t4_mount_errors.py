"""From what happened to errno, and one line of log per burst."""

import errno
import logging

import pytest
import trio

from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from lazyfs.errors import (
    BadReference,
    CacheError,
    ConfigError,
    LazyfsError,
    MountError,
    NotFound,
    RangeRefused,
    SourceError,
    Unauthorized,
    Unreachable,
)
from lazyfs.mount.errors import QUIET_S, FailureLog, errno_of

LOG = logging.getLogger("tests.mount")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotFound("x"), errno.ENOENT),
        (Unauthorized("x"), errno.EACCES),
        (trio.TooSlowError(), errno.ETIMEDOUT),
        (Unreachable("x"), errno.EIO),
        (RangeRefused("x"), errno.EIO),
        (SourceError("x"), errno.EIO),
        (CacheError("x"), errno.EIO),
        (BadReference("x"), errno.EIO),
        (ConfigError("x"), errno.EIO),
        (MountError("x"), errno.EIO),
        (LazyfsError("x"), errno.EIO),
        (DigestMismatch("x", "sha256:0", "sha256:1"), errno.EIO),
        (FormatError("x", 7), errno.EIO),
        (LimitExceeded("x"), errno.EIO),
        (Unsupported("x"), errno.EIO),
        (IndexerError("x"), errno.EIO),
        (OSError(errno.ENOSPC, "full"), errno.EIO),
        (PermissionError(errno.EACCES, "our own disk"), errno.EIO),
        (ZeroDivisionError("x"), None),
        (KeyError("x"), None),
        (ExceptionGroup("x", [NotFound("x")]), None),
    ],
)
def test_each_kind_of_error_has_its_errno_and_a_bug_has_none(error, expected):
    assert errno_of(error) == expected


@pytest.mark.expect_log(r"cannot answer read")
async def test_a_burst_is_one_line_and_the_next_line_counts_it(autojump_clock, caplog):
    failures = FailureLog(LOG)
    with caplog.at_level(logging.WARNING):
        for attempt in range(1000):
            error = Unreachable(f"no route, attempt {attempt}")
            assert failures.errno_for(error, f"read({attempt})") == errno.EIO
            await trio.sleep(QUIET_S / 10)
        await trio.sleep(QUIET_S)
        failures.errno_for(Unreachable("again"), "read(1)")
        await trio.sleep(QUIET_S)
        failures.errno_for(Unreachable("and again"), "read(2)")
    assert [record.getMessage() for record in caplog.records] == [
        "cannot answer read(0): no route, attempt 0 [EIO]",
        "cannot answer read(1): again [EIO] (999 more like the last one)",
        "cannot answer read(2): and again [EIO]",
    ]


@pytest.mark.expect_log(r"cannot answer read")
async def test_different_errnos_do_not_hide_each_other(autojump_clock, caplog):
    failures = FailureLog(LOG)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert failures.errno_for(trio.TooSlowError("no answer within 1 s"), "read(1)") == errno.ETIMEDOUT
            assert failures.errno_for(Unauthorized("sign in"), "read(2)") == errno.EACCES
    assert [record.getMessage() for record in caplog.records] == [
        "cannot answer read(1): no answer within 1 s [ETIMEDOUT]",
        "cannot answer read(2): sign in [EACCES]",
    ]
    assert "unsaid={110: 2, 13: 2}" in repr(failures)


@pytest.mark.expect_log(r"a bug, while answering lookup")
async def test_every_bug_is_logged_with_its_trace(caplog):
    failures = FailureLog(LOG)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert failures.errno_for(ZeroDivisionError("oops"), "lookup(1)") == errno.EIO
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all("ZeroDivisionError: oops" in (record.exc_text or "") for record in caplog.records)
