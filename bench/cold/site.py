"""Between clients and registry: how far, how fast, and what passed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from bench.cold.tap import Tap, tap
from bench.link import Link, slow_link


class BadDistance(ValueError):
    """No name of a distance; the message says what is one."""


class Distance(NamedTuple):
    """How far away the registry is.

    Attributes:
        rate_mbit: of each direction; 0: nothing limits it, and nothing delays it.
        delay_s: that each direction takes.
    """

    rate_mbit: float
    delay_s: float

    @property
    def name(self) -> str:
        """Like "100mbit-20ms", or "loopback"."""
        if not self.rate_mbit:
            return "loopback"
        whole = self.rate_mbit % 1000 == 0
        rate = f"{self.rate_mbit / 1000:g}gbit" if whole else f"{self.rate_mbit:g}mbit"
        return f"{rate}-{self.delay_s * 1000:g}ms"

    @classmethod
    def of(cls, name: str) -> Self:
        """The distance of a name like "100mbit-20ms", "1gbit-1ms" or "loopback".

        Raises:
            BadDistance: it is none.
        """
        if name == "loopback":
            return cls(0, 0)
        rate, _, delay = name.partition("-")
        try:
            times = 1000 if rate.endswith("gbit") else 1
            distance = cls(
                float(rate.removesuffix("gbit").removesuffix("mbit")) * times,
                float(delay.removesuffix("ms")) / 1000,
            )
        except ValueError:
            distance = cls(0, 0)
        if not (
            rate.endswith("bit")
            and delay.endswith("ms")
            and 0 < distance.rate_mbit < 1e6
            and 0 <= distance.delay_s < 60
        ):
            raise BadDistance(f"{name}: no distance like 100mbit-20ms, 1gbit-1ms or loopback")
        return distance


@dataclass(frozen=True, slots=True)
class Site:
    """A registry at a distance.

    Attributes:
        address: where clients reach the registry, "127.0.0.1:PORT".
        tap: counts what passes.
        link: the clients' network; None: this machine's.
    """

    address: str
    tap: Tap
    link: Link | None

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command, to run in the clients' network."""
        return self.link.command(command) if self.link else list(command)

    @property
    def network(self) -> Path:
        """The clients' network namespace."""
        return self.link.namespace if self.link else Path("/proc/self/ns/net")


@contextmanager
def site(distance: Distance, upstream: str) -> Iterator[Site]:
    """A plain HTTP registry, "HOST:PORT", moved away.

    Raises:
        MethodFailed: a link needs root and iproute2.
    """
    with ExitStack() as stack:
        if not distance.rate_mbit:
            near = stack.enter_context(tap(upstream, "127.0.0.1"))
            yield Site(near.address, near, None)
            return
        link = stack.enter_context(slow_link(distance.rate_mbit, distance.delay_s))
        counter = stack.enter_context(tap(upstream, link.server_ip))
        yield Site(stack.enter_context(link.port(counter.address)), counter, link)
