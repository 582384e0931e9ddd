"""Who a container's process is, by the image's own passwd and group files.

The rules are those of docker (moby/sys/user, `GetExecUser`): a number is looked up as a number, a name must
be known, and the supplementary groups count only where no group is named.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from lazyfs.errors import ContainerError

LARGEST_ID: Final = 2**32 - 2
MAX_ACCOUNTS_BYTES: Final = 4 << 20
"""How much of such a file is worth reading."""


class Account(NamedTuple):
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str


class Group(NamedTuple):
    """A line of group(5)."""

    name: str
    gid: int
    members: tuple[str, ...]


class Identity(Struct, frozen=True):
    """Who a process is.

    Attributes:
        uid: its user.
        gid: its group.
        groups: its supplementary groups.
        home: the user's directory; "/" where none is known.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def identify(user: str, passwd: bytes, group: bytes) -> Identity:
    """The identity that `user` means, written USER[:GROUP] in names or numbers; "" is root.

    Args:
        user: as `docker run --user` and an image's configuration write it.
        passwd: the image's /etc/passwd, or b"".
        group: its /etc/group, or b"".

    Raises:
        ContainerError: a name is not known there, or a number cannot be an id.
    """
    wanted, _, wanted_group = user.partition(":")
    account = _account(wanted or "0", passwd)
    if wanted_group:
        return Identity(account.uid, _group_id(wanted_group, group), (), account.home)
    groups = tuple(one.gid for one in parse_groups(group) if account.name in one.members)
    return Identity(account.uid, account.gid, groups, account.home)


def _account(wanted: str, passwd: bytes) -> Account:
    number = _number(wanted)
    for account in parse_accounts(passwd):
        if account.uid == number if number is not None else account.name == wanted:
            return account
    if number is None:
        raise ContainerError(f"the image's /etc/passwd has no user {wanted!r}")
    return Account("", _checked(number, wanted), 0, "/")


def _group_id(wanted: str, group: bytes) -> int:
    number = _number(wanted)
    if number is not None:
        return _checked(number, wanted)
    found = next((one.gid for one in parse_groups(group) if one.name == wanted), None)
    if found is None:
        raise ContainerError(f"the image's /etc/group has no group {wanted!r}")
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _checked(number: int, text: str) -> int:
    if number > LARGEST_ID:
        raise ContainerError(f"{text} is no user or group id: they end at {LARGEST_ID}")
    return number


def parse_accounts(passwd: bytes) -> Iterator[Account]:
    """The lines that make sense."""
    for fields in _lines(passwd, 7):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and max(uid, gid) <= LARGEST_ID:
            yield Account(fields[0], uid, gid, fields[5] if fields[5].startswith("/") else "/")


def parse_groups(group: bytes) -> Iterator[Group]:
    """The lines that make sense."""
    for fields in _lines(group, 4):
        gid = _number(fields[2])
        if gid is not None and gid <= LARGEST_ID:
            yield Group(fields[0], gid, tuple(filter(None, fields[3].split(","))))


def _lines(data: bytes, count: int) -> Iterator[list[str]]:
    """The fields of each line; those that are missing at its end are empty."""
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.strip().split(":")
        if fields[0] and not fields[0].startswith("#"):
            yield [*fields, *[""] * (count - len(fields))]
