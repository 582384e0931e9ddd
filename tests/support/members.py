"""Members of layers in a word each."""

from indexer.toc import Kind, Member


def file(path: bytes, size: int = 1, **attributes) -> Member:
    return Member(path, Kind.REGULAR, size=size, **attributes)


def directory(path: bytes, **attributes) -> Member:
    return Member(path, Kind.DIRECTORY, **{"mode": 0o700, **attributes})


def symlink(path: bytes, link: bytes = b"anywhere") -> Member:
    return Member(path, Kind.SYMLINK, link=link)


def hardlink(path: bytes, link: bytes, **attributes) -> Member:
    return Member(path, Kind.HARDLINK, link=link, **attributes)


def whiteout(path: bytes) -> Member:
    head, slash, name = path.rpartition(b"/")
    return Member(head + slash + b".wh." + name, Kind.REGULAR)


def opaque(path: bytes) -> Member:
    return Member(path + b"/" * bool(path) + b".wh..wh..opq", Kind.REGULAR)
