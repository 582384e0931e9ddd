"""What can go wrong outside the formats. Each face has one table from these to its own codes.

    LazyfsError
      BadReference        an image name that cannot be one
      ConfigError         a configuration file, variable or flag that cannot be used
      NotTrusted          the image, or its index, is not signed by whom it must be, or was found to lie
      SourceError         a registry, layout or archive did not give what was asked
        Unauthorized      it wants other credentials
        NotFound          it has no such thing
        RangeRefused      it cannot serve this byte range
        Unreachable       it did not answer in time, or not at all
        NotWritable       it is a directory of this machine, and cannot be written
      WrongKind           a path of an image leads to another kind of thing than was asked for
      CacheError          the cache cannot be used; reading goes on without it where that is possible
        CacheBusy         another process has had a part of it locked for too long
      MountError          the kernel or fusermount3 refused
        AlreadyMounted    something is mounted there
        NotMounted        nothing of ours is mounted there
      ContainerError      a container cannot be made, run or committed
        CommandNotFound   it has no such program
        CommandRefused    what it has there cannot be executed

Content that breaks its format or digest raises `indexer.errors.IndexerError`.
"""


class LazyfsError(Exception):
    """The root of what lazyfs raises. Messages say what to do next and never hold a secret."""


class BadReference(LazyfsError):
    """An image name that cannot be one."""


class ConfigError(LazyfsError):
    """A configuration file, variable or flag that cannot be used."""


class NotTrusted(LazyfsError):
    """The image, or its index, is not signed by whom it must be, or was found to lie."""


class SourceError(LazyfsError):
    """A registry, layout or archive did not give what was asked.

    Attributes:
        url: what was asked, without credentials or query; or a path.
        status: HTTP status, or None.
    """

    def __init__(self, message: str, *, url: str = "", status: int | None = None) -> None:
        self.url = url
        self.status = status
        super().__init__(message)


class Unauthorized(SourceError):
    """The source wants other credentials."""


class NotFound(SourceError):
    """The source has no such thing."""


class RangeRefused(SourceError):
    """The source cannot serve this byte range."""


class Unreachable(SourceError):
    """The source did not answer in time, or not at all."""


class NotWritable(SourceError):
    """The source is a directory of this machine, and cannot be written."""


class WrongKind(LazyfsError):
    """A path of an image leads to another kind of thing than was asked for: a directory, not a file."""


class CacheError(LazyfsError):
    """The cache cannot be used."""


class CacheBusy(CacheError):
    """Another process has had a part of the cache locked for too long."""


class MountError(LazyfsError):
    """The kernel or fusermount3 refused."""


class AlreadyMounted(MountError):
    """Something is mounted there already."""


class NotMounted(MountError):
    """Nothing of ours is mounted there."""


class ContainerError(LazyfsError):
    """A container cannot be made, run or committed."""


class CommandNotFound(ContainerError):
    """A container has no such program."""


class CommandRefused(ContainerError):
    """What a container has under a program's name cannot be executed."""
