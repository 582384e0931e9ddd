"""What the test registry does wrong, on demand: a script of faults, each for the next matching requests."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Status:
    """Answer this instead."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Stall:
    """Send the head and `after` bytes of the body, then nothing until the registry is released or closed."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class StallHead:
    """Take the request, then send nothing until the registry is released or closed."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Send the head and `after` bytes of the body, then reset the connection; negative: not even the head."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Short:
    """Send the head and all but `missing` bytes of the body, then close."""

    missing: int = 1


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer 200 with the whole blob."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip the bits of the body's byte at `offset`, counted round its end."""

    offset: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """Answer with this header, instead of the one there may be; None leaves it out."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Drip:
    """Send the body in pieces of this size, one per call of the registry's `drip()`."""

    piece: int


@dataclass(frozen=True, slots=True)
class CloseAfter:
    """Answer in full, promise to keep the connection, and close it."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """Legal: send the body in chunks of this size, without its length (RFC 9112, section 7.1)."""

    piece: int


@dataclass(frozen=True, slots=True)
class UntilClose:
    """Legal: send the body without its length, which the end of the connection shows."""


Action = (
    Status
    | Stall
    | StallHead
    | Reset
    | Short
    | IgnoreRange
    | Corrupt
    | Header
    | Drip
    | CloseAfter
    | Chunked
    | UntilClose
)


@dataclass(slots=True)
class Fault:
    """One entry of the script.

    Attributes:
        kind: which requests: "manifest", "blob", "cdn", "token", "upload", "referrers", "tags", "base".
        action: what happens to them.
        times: how many of them; the fault is gone then.
        method: only those with this method.
        skip: how many go through unharmed before.
        path: only those whose path holds this.
    """

    kind: str
    action: Action
    times: int = 1
    method: str | None = None
    skip: int = 0
    path: str = ""


class FaultScript:
    """The faults still to come, in order; the first that matches a request is used. Thread-safe."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        kind: str,
        action: Action,
        *,
        times: int = 1,
        method: str | None = None,
        skip: int = 0,
        path: str = "",
    ) -> None:
        with self._lock:
            self._faults.append(Fault(kind, action, times, method, skip, path))

    def take(self, kind: str, method: str, path: str) -> Action | None:
        """The action for this request, which uses it up."""
        with self._lock:
            for fault in self._faults:
                if fault.kind != kind or fault.method not in (None, method) or fault.path not in path:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault.action
        return None

    @property
    def pending(self) -> int:
        """How many faults have not happened in full."""
        with self._lock:
            return len(self._faults)
