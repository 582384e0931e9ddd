"""Becoming root of a user namespace of one's own (user_namespaces(7), subuid(5), newuidmap(1))."""

import errno
import os
import pwd
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from lazyfs.container.image_user import Identity
from lazyfs.container.kernel import NEW_MOUNTS, NEW_USERS, unshare
from lazyfs.errors import ContainerError

USER_NAMESPACES_HELP: Final = (
    "run it as root, or see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone "
    "and, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns"
)
"""What may keep an ordinary user from having a user namespace."""


class IdRange(NamedTuple):
    """Ids of the machine that belong to a user: a line of subuid(5)."""

    first: int
    number: int


def parse_subordinates(text: str, names: set[str]) -> IdRange | None:
    """The first range that belongs to one of the names, which may be a number."""
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit() and int(count):
            return IdRange(int(first), int(count))
    return None


def become_root() -> None:
    """Enter a user and mount namespace in which we are root, with as many other ids as we are given.

    Without ranges in /etc/subuid and /etc/subgid, or newuidmap, root is the only user there.

    Raises:
        ContainerError: the machine does not allow it.
    """
    uid, gid = os.getuid(), os.getgid()
    ranges = _subordinates(uid)
    ready, go = os.pipe()
    helper = os.fork() if ranges else 0
    if ranges and not helper:
        os.close(go)
        os._exit(_map_from_outside(ready, os.getppid(), uid, gid, *ranges))
    os.close(ready)
    try:
        unshare(NEW_USERS | NEW_MOUNTS)
    except OSError as error:
        raise ContainerError(
            "containers without root take a user namespace, which this machine refuses "
            f"({error.strerror}): {USER_NAMESPACES_HELP}"
        ) from error
    finally:
        with suppress(BrokenPipeError):
            os.write(go, b"x")
        os.close(go)
        mapped = bool(helper) and os.waitpid(helper, 0)[1] == 0
    if not mapped:
        _map_ourselves(uid, gid)


def _subordinates(uid: int) -> tuple[IdRange, IdRange] | None:
    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    found = []
    for file in ("/etc/subuid", "/etc/subgid"):
        with suppress(OSError):
            found.append(parse_subordinates(Path(file).read_text(), names))
    if len(found) == 2 and found[0] and found[1]:
        return found[0], found[1]
    return None


def _map_from_outside(ready: int, pid: int, uid: int, gid: int, uids: IdRange, gids: IdRange) -> int:
    os.read(ready, 1)
    for program, own, more in (("newuidmap", uid, uids), ("newgidmap", gid, gids)):
        words = [program, pid, 0, own, 1, 1, *more]
        try:
            done = subprocess.run(list(map(str, words)), check=False)  # it says itself what is wrong
        except OSError:
            return errno.ENOENT
        if done.returncode != 0:
            return done.returncode
    return 0


def _map_ourselves(uid: int, gid: int) -> None:
    try:
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise ContainerError(
            f"cannot give our user namespace ids: {error.strerror}: {USER_NAMESPACES_HELP}"
        ) from error


def check_mapped(identity: Identity) -> Identity:
    """The identity as far as ids of the machine stand behind it; supplementary groups may get lost.

    Raises:
        ContainerError: none stands behind its user or group.
    """
    for kind, number in (("uid", identity.uid), ("gid", identity.gid)):
        if not _is_mapped(kind, number):
            raise ContainerError(
                f"no {kind} of this machine stands behind {number} of the container: give yourself a range "
                f"in /etc/sub{kind} (usermod --add-sub{kind}s) and newuidmap (package uidmap), or be root"
            )
    may_set = Path("/proc/self/setgroups").read_text().strip() != "deny"
    groups = tuple(group for group in identity.groups if may_set and _is_mapped("gid", group))
    return Identity(identity.uid, identity.gid, groups, identity.home)


def _is_mapped(kind: str, number: int) -> bool:
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    return any(
        first <= number < first + count for first, _, count in (map(int, line.split()) for line in lines)
    )
