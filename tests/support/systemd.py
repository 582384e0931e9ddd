"""Debian's systemd as PID 1 of namespaces of its own, over this machine's files, with units of ours alone.

It has a tree of control groups below one of ours, and `/run`, `/var/lib` and `/var/cache` of its own.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support.mount_server import wait_until

_TARGETS: Final = ("sysinit", "basic", "shutdown", "multi-user", "network-online")

_INIT: Final = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for place in /run /var/lib /var/cache; do mount -t tmpfs -o mode=755 tmpfs $place; done
mkdir /var/lib/lazyfs /var/cache/lazyfs
mount --bind "$PLACE/lib" /var/lib/lazyfs
mount --bind "$PLACE/cache" /var/cache/lazyfs
exec env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH="$PLACE/units" \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
"""


class Systemd:
    """A systemd that runs.

    Attributes:
        pid: it, as others see it.
    """

    def __init__(self, pid: int, place: Path) -> None:
        self.pid = pid
        self._place = place

    @property
    def within(self) -> Sequence[str]:
        """Words before a command that is to run among its services."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup"]

    def path(self, path: str | Path) -> Path:
        """What its services know as `path`."""
        return Path(f"/proc/{self.pid}/root/{path}")

    def ctl(self, *words: str) -> str:
        """What `systemctl WORDS` says."""
        done = subprocess.run(
            [*self.within, "systemctl", "--no-pager", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"systemctl {shlex.join(words)}: {done.stderr}{self.said()}"
        return done.stdout

    def facts(self, unit: str) -> Mapping[str, str]:
        """What systemd knows of a unit."""
        lines = (line.partition("=") for line in self.ctl("show", unit).splitlines())
        return {name: value for name, _, value in lines}

    def processes(self, unit: str) -> set[int]:
        """The processes of a unit, as its neighbours count them."""
        words = [*self.within, "cat", f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return {int(line) for line in done.stdout.split()}

    def said(self) -> str:
        """What it and its services have said."""
        return "".join(path.read_text() for path in sorted(self._place.glob("*.log")))


@contextmanager
def running_systemd(place: Path, units: Mapping[str, str]) -> Iterator[Systemd]:
    """A systemd that knows these units, by their files' names, and has started none. All ends with it."""
    for name in ("lib", "cache", "units"):
        (place / name).mkdir(parents=True)
    for name in _TARGETS:
        (place / "units" / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for name, text in units.items():
        (place / "units" / name).write_text(text)
        more = place / "units" / f"{name}.d"
        more.mkdir()
        (more / "log.conf").write_text(f"[Service]\nStandardError=append:{place}/{name}.log\n")
    group = _control_groups() / f"lazyfs-test-{os.getpid()}"
    group.mkdir()
    namespaces = ("--pid", "--mount", "--cgroup", "--uts", "--ipc")
    script = f'echo $$ >{group}/cgroup.procs; exec unshare {shlex.join(namespaces)} --fork sh -c "$INIT"'
    try:
        with (place / "systemd.log").open("wb") as log:
            outer = subprocess.Popen(
                ["sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"INIT": _INIT, "PLACE": str(place)},
            )
        try:
            systemd = Systemd(_child(outer.pid), place)
            private = systemd.path("/run/systemd/private")
            wait_until(lambda: private.is_socket() or outer.poll() is not None)
            assert outer.poll() is None, systemd.said()
            yield systemd
        finally:
            for child in _children(outer.pid):
                os.kill(child, signal.SIGKILL)  # and so all in its namespace
            with suppress(ProcessLookupError):
                os.killpg(outer.pid, signal.SIGKILL)
            outer.wait()
    finally:
        wait_until(lambda: _removed(group))


def _control_groups() -> Path:
    """Where version 2 of control groups is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[words.index("-") + 1] == "cgroup2":
            return Path(words[4])
    raise AssertionError("version 2 of control groups is not mounted")


def _child(pid: int) -> int:
    wait_until(lambda: len(_children(pid)) == 1)
    return _children(pid)[0]


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _removed(group: Path) -> bool:
    for path in [*sorted(group.rglob("*/"), reverse=True), group]:
        with suppress(OSError):
            path.rmdir()
    return not group.exists()
