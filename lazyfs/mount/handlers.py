"""What is served through pyfuse3: nothing is ever written, and nothing but FUSEError leaves a handler.

pyfuse3 ends the mount when a handler raises anything else, so each one passes through `answering`.
"""

import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import FileHandleT, FlagT, FUSEError, InodeT

from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import FailureLog, Refused

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="ReadOnlyOperations")


def answering(
    handler: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A handler that answers whatever goes wrong inside it with the errno of the one table."""

    @functools.wraps(handler)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Refused as refused:
            raise FUSEError(refused.errno) from refused
        except Exception as error:
            shown = ", ".join(repr(value) for value in args if isinstance(value, (int, bytes)))
            raise FUSEError(self.failures.errno_for(error, f"{handler.__name__}({shown})")) from error

    return guarded


async def _refuse(*_args: Any, **_kwargs: Any) -> Any:
    raise FUSEError(errno.EROFS)


class ReadOnlyOperations(pyfuse3.Operations):
    """Refuses every change, and spares the kernel the requests that have nothing to tell us.

    What pyfuse3's own class answers with ENOSYS is asked once and then never again: flush, fsync, fsyncdir,
    access and poll succeed, or are decided by the kernel, from then on.

    Attributes:
        contents: where reads lead.
        failures: where what goes wrong is turned into errno, and logged.
    """

    def __init__(self, contents: Contents, log: logging.Logger) -> None:
        self.contents = contents
        self.failures = FailureLog(log)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    write = create = setxattr = removexattr = _refuse

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Nothing: inodes stay for as long as the mount does."""

    async def release(self, fh: FileHandleT) -> None:
        """Nothing: a file handle is its inode number."""

    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Opens for reading; what the kernel has cached of the file stays valid.

        Raises:
            FUSEError: EROFS, if it is to be written.
        """
        del ctx
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)
