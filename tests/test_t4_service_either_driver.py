"""Which driver the daemon takes once the first choice has failed."""

import errno
import logging
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.errors import AlreadyMounted, LazyfsError, MountError, NotFound
from lazyfs.mount.syscalls import MountRefused
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.drivers.either import FirstThatWorks
from lazyfs.service.ledger import Entry

ENTRY = Entry("name", ChainOrder("app", "", 1, "sha256:" + "1" * 64, ""))


class Scripted:
    """Fails as it is told, then works."""

    def __init__(self, name: str, *errors: Exception) -> None:
        self._name = name
        self._errors = list(errors)

    @asynccontextmanager
    async def mounted(self, entry, mount_point, note):
        del entry, mount_point, note
        if self._errors:
            raise self._errors.pop(0)
        yield self._name


async def taken(driver: FirstThatWorks) -> str:
    async with driver.mounted(ENTRY, Path("/mnt"), None) as name:
        return name


def refused(number: int) -> MountRefused:
    return MountRefused("erofs", OSError(number, ""), "")


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOTBLK, errno.EPERM])
async def test_what_the_kernel_cannot_do_is_not_tried_again(number, caplog):
    driver = FirstThatWorks(Scripted("erofs", refused(number)), Scripted("fuse"))
    with caplog.at_level(logging.CRITICAL):
        assert [await taken(driver) for _ in range(2)] == ["fuse", "fuse"]


@pytest.mark.parametrize(
    "error", [refused(errno.EINVAL), refused(errno.ENOSPC), MountError("too many files")]
)
async def test_one_tree_that_fails_does_not_decide_for_all(error, caplog):
    driver = FirstThatWorks(Scripted("erofs", error), Scripted("fuse"))
    with caplog.at_level(logging.CRITICAL):
        assert [await taken(driver) for _ in range(2)] == ["fuse", "erofs"]


@pytest.mark.parametrize("error", [AlreadyMounted("it is"), NotFound("no such image")])
async def test_what_no_driver_can_mend_is_told(error):
    driver = FirstThatWorks(Scripted("erofs", error), Scripted("fuse"))
    with pytest.raises(LazyfsError, match=str(error)):
        await taken(driver)
