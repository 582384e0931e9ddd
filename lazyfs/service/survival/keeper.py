"""The process that keeps what must not die with the daemon: its descriptors. It knows not what they are.

    python -m lazyfs.service.survival.keeper DESCRIPTOR     of a file with what the daemon is to do

It starts the daemon as its child, holds what that has stored (`descriptors`), and when the child dies without
having been told to, starts another that gets all of it. Small on purpose: nothing here can fail for a reason
that has to do with images. Under a service manager that keeps descriptors, what is stored is passed on to it,
and so outlives this process too. Without one, the daemon hands it to the next keeper (`handover`).

A daemon whose event loop stands still is as good as dead: one that has given signs of life, and then gives
none for as long as it was told, is killed. We give such signs to the service manager ourselves.

    SIGTERM, SIGINT   passed on as SIGTERM: the daemon unmounts everything and ends, and so do we. With
                      "leave" as for SIGHUP
    SIGHUP            passed on: the daemon ends and leaves everything mounted, for the next one
"""

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.service.survival import descriptors, handover
from lazyfs.service.survival.descriptors import Message

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 10.0
_LONGEST_IN_USE_S: Final = 1.0  # after one that was ready: while there is none, every reader waits
_WELL_AFTER_S: Final = 30.0
_HOPELESS: Final = 5
"""Deaths in a row before a daemon was ready, after which what was kept is given up; as many more end us."""

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Blocked in a new daemon until it can handle them."""

_LONGEST: Final = 1 << 20
_KILLED: Final = 128  # as the shell counts
_COMMAND: Final = ("-P", "-m", "lazyfs.service.worker")


class Keeper:
    """Keeps descriptors, and a daemon.

    Args:
        told: descriptor of the file that tells the daemon what to do.
        kept: what an earlier keeper left with the service manager, by name.
        manager: the service manager, if there is one.
        leave: leave everything mounted in the end.
        hung_after_s: how long a daemon may give no sign of life; 0 for as long as it likes.
        beat_s: how often that is looked after, and the manager gets a sign of life.
    """

    def __init__(
        self,
        told: int,
        kept: dict[str, int],
        manager: socket.socket | None,
        *,
        leave: bool,
        hung_after_s: float,
        beat_s: float,
    ) -> None:
        self._told = told
        self._kept = kept
        self._manager = manager
        self._leave = leave
        self._hung_after_s = hung_after_s
        self._beat_s = beat_s
        self._silent: int | None = None  # beats missed since the last sign of life; None before the first
        self._child = 0
        self._ending = 0
        self._is_ready = False

    def run(self) -> int:
        """Keep a daemon running until told to end; returns its exit code."""
        pause, deaths = _FIRST_PAUSE_S, 0
        while True:
            begun = time.monotonic()
            code = self._run_one()
            if self._ending or code == 0 or not (self._is_ready or self._kept):
                return code  # or it could not even begin: that is for people to see
            deaths = 0 if self._is_ready else deaths + 1
            if deaths == 2 * _HOPELESS:
                return code
            if deaths == _HOPELESS:
                self._give_up()
            pause = _FIRST_PAUSE_S if time.monotonic() - begun > _WELL_AFTER_S else pause
            sys.stderr.write(f"lazyfs: the daemon's process ended with {code}, another one is started\n")
            pause = min(pause, _LONGEST_IN_USE_S if self._is_ready else _LONGEST_PAUSE_S)
            self._sleep(pause)
            pause *= 2

    def _sleep(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        while not self._ending and time.monotonic() < until:
            time.sleep(_FIRST_PAUSE_S)

    def end(self, number: int, _frame: object = None) -> None:
        """Tell the daemon to end, and end with it."""
        leave = self._leave or number == signal.SIGHUP
        self._ending = self._ending or (signal.SIGHUP if leave else signal.SIGTERM)
        if self._child:
            os.kill(self._child, self._ending)

    def _run_one(self) -> int:
        """Have one daemon run to its end; returns its exit code, or minus the signal that killed it."""
        self._is_ready = False
        self._silent = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self._child = self._start(theirs.fileno())
            if self._ending:
                os.kill(self._child, self._ending)
            self._listen(ours, self._child)
            ended, self._child = self._child, 0
            return os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])

    def _start(self, theirs: int) -> int:
        # In the child until it knows what to do with them: until then our own handlers are there.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return child
        try:
            environment = dict(os.environ)
            environment.pop("NOTIFY_SOCKET", None)
            descriptors.pass_on(environment, list(self._kept), os.getpid())
            numbers = _moved([*self._kept.values(), theirs, self._told])
            command = [sys.executable, *_COMMAND, *map(str, numbers[-2:])]
            os.execve(sys.executable, command, environment)  # noqa: S606  # the environment says its own pid
        finally:
            os._exit(127)

    def _listen(self, ours: socket.socket, child: int) -> None:
        """Hear what the child has to say until it is dead."""
        ours.setblocking(False)
        death = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(death, select.POLLIN)
            poll.register(ours, select.POLLIN)
            next_beat = time.monotonic()
            while True:
                if time.monotonic() >= next_beat:
                    self._beat(child)
                    next_beat = time.monotonic() + self._beat_s
                events = dict(poll.poll(1000 * max(0.0, next_beat - time.monotonic())))
                if ours.fileno() in events and not self._hear_all(ours):
                    poll.unregister(ours)
                if death in events:
                    return
        finally:
            os.close(death)

    def _beat(self, child: int) -> None:
        """Give a sign of life, and see whether the child does.

        Beats are counted, not seconds: where both of us were frozen, the child may speak first.
        """
        self._tell_manager(descriptors.ALIVE)
        if self._silent is None or not self._hung_after_s:
            return
        self._silent += 1
        if self._silent > self._hung_after_s / self._beat_s:
            self._silent = None
            sys.stderr.write(
                f"lazyfs: the daemon's process gave no sign of life for {self._hung_after_s:g} s\n"
            )
            os.kill(child, signal.SIGKILL)

    def _tell_manager(self, data: bytes, sent: Sequence[int] = ()) -> None:
        if self._manager is not None:
            with suppress(OSError):
                descriptors.send(self._manager, data, sent)

    def _hear_all(self, ours: socket.socket) -> bool:
        """Hear what there is; False if there will be no more."""
        while True:
            try:
                message = descriptors.receive(ours)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if message is None:
                return False
            self._hear(message)

    def _hear(self, message: Message) -> None:
        lines = message.lines
        if "WATCHDOG" in lines:
            self._silent = 0
            return
        self._tell_manager(message.data, message.descriptors)
        name = lines.get("FDNAME", "")
        self._is_ready = self._is_ready or lines.get("READY") == "1"
        keep = "FDSTORE" in lines and name and message.descriptors
        if keep or "FDSTOREREMOVE" in lines:
            self._drop(name)
        if keep:
            self._kept[name] = message.descriptors[0]
        for descriptor in message.descriptors[1 if keep else 0 :]:
            os.close(descriptor)

    def _drop(self, name: str) -> None:
        descriptor = self._kept.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def _give_up(self) -> None:
        """Let go of what no daemon could go on with."""
        sys.stderr.write("lazyfs: no daemon could go on with what was mounted; it is mounted anew\n")
        for name in list(self._kept):
            self._drop(name)
            self._tell_manager(descriptors.remove(name))


def _moved(wanted: Sequence[int]) -> list[int]:
    """Puts these descriptors at FIRST and the numbers after it, to be inherited; the new numbers."""
    numbers = [descriptors.FIRST + position for position in range(len(wanted))]
    apart = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, numbers[-1] + 1) for number in wanted]
    for old, new in zip(apart, numbers, strict=True):
        os.dup2(old, new)
    return numbers


def main() -> int:
    """Keep the daemon that the file behind the descriptor in argv tells of."""
    told = int(sys.argv[1])
    os.set_inheritable(told, False)
    options = json.loads(os.pread(told, _LONGEST, 0))
    kept = descriptors.inherited(os.environ, os.getpid()) | handover.claim(Path(options["root"]))
    manager = descriptors.supervisor(os.environ)
    hung_after_s = float(options["hung_after_s"])
    beat_s = descriptors.beat_s(hung_after_s)
    wanted_s = descriptors.watchdog_s(os.environ, os.getpid())
    keeper = Keeper(
        told,
        kept,
        manager,
        leave="--leave" in sys.argv[2:],
        hung_after_s=hung_after_s,
        beat_s=min(beat_s, wanted_s) if wanted_s else beat_s,
    )
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, keeper.end)
    code = keeper.run()
    return code if code >= 0 else _KILLED - code


if __name__ == "__main__":
    sys.exit(main())
