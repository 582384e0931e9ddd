"""A slow link: clients live in a network namespace of their own, behind shaped interfaces and a delay.

    servers, this machine's namespace          clients, the link's namespace
      registry, at `server_ip`   == veth, tbf ==   bench.delay, at 127.0.0.1   --   lazyfs, curl, ...

Only the network is separate: files, mounts and processes are this machine's. The namespace lives as long as
the processes in it; its keeper and the delays end with this process, however that ends.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Final, NamedTuple

from bench.measure import MethodFailed

_REPOSITORY: Final = Path(__file__).parents[1]
_BURST: Final = "256kb"
_QUEUE: Final = "100ms"
_START_S: Final = 10.0
_SUBNETS: Final = 1 << 15  # of four addresses each, in 198.18.0.0/15, which RFC 2544 gives to benchmarks


class Moved(NamedTuple):
    """Bytes on the link so far, with the headers of Ethernet, IP and TCP.

    Attributes:
        down: from the servers to the clients.
        up: the other way.
    """

    down: int
    up: int


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is up.

    Attributes:
        server_ip: where servers of this machine are to listen, to be reached from the clients' namespace.
        rate_mbit: of each direction.
        delay_s: that each direction takes.
        namespace: the clients' network namespace, as a file.
        interface: the servers' end.
    """

    server_ip: str
    rate_mbit: float
    delay_s: float
    namespace: Path
    interface: str

    @property
    def bytes_per_s(self) -> float:
        """What a direction carries at most."""
        return self.rate_mbit * 1e6 / 8

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The command, to run as a client."""
        return ["nsenter", f"--net={self.namespace}", "--", *map(str, command)]

    @contextmanager
    def port(self, server: str, *, listen_port: int = 0) -> Iterator[str]:
        """The address, "127.0.0.1:PORT", at which clients reach `server` over this link, with its delay.

        Args:
            server: "HOST:PORT", the host being `server_ip`.
            listen_port: the port to use; any if 0.

        Raises:
            MethodFailed: it does not listen.
        """
        command = [sys.executable, "-m", "bench.delay", server, str(self.delay_s), str(listen_port)]
        with _until_closed(self.command(command)) as process:
            assert process.stdout is not None
            number = process.stdout.readline().strip()
            if not number:
                raise MethodFailed("the link's proxy does not listen")
            yield f"127.0.0.1:{number}"

    def moved(self) -> Moved:
        """Bytes on the link so far, by the interface's counters."""
        counters = Path("/sys/class/net") / self.interface / "statistics"
        down, up = (int((counters / f"{which}_bytes").read_text()) for which in ("tx", "rx"))
        return Moved(down, up)


@contextmanager
def slow_link(rate_mbit: float, delay_s: float) -> Iterator[Link]:
    """A link of `rate_mbit` that takes `delay_s` in each direction.

    Raises:
        MethodFailed: not root, or iproute2 is not installed.
    """
    if missing := [tool for tool in ("ip", "tc", "nsenter", "unshare") if not which(tool, path=_path())]:
        raise MethodFailed(f"{', '.join(missing)} not installed: scripts/setup bench")
    with _until_closed(["unshare", "--net", "cat"]) as keeper:
        namespace = Path(f"/proc/{keeper.pid}/ns/net")
        _wait_until_apart(namespace)
        number = keeper.pid % _SUBNETS
        subnet = f"198.{18 + (number >> 14)}.{(number >> 6) & 255}"
        server_ip, client_ip = (f"{subnet}.{((number & 63) << 2) + host}" for host in (1, 2))
        server_end, client_end = f"bench{keeper.pid}", "uplink"
        link = Link(server_ip, rate_mbit, delay_s, namespace, server_end)
        peer = ["peer", "name", client_end, "netns", str(keeper.pid)]
        _run(["ip", "link", "add", server_end, "type", "veth", *peer])
        try:
            _run(["ip", "address", "add", f"{server_ip}/30", "dev", server_end])
            _run(["ip", "link", "set", server_end, "up"])
            _run(link.command(["ip", "link", "set", "lo", "up"]))
            _run(link.command(["ip", "address", "add", f"{client_ip}/30", "dev", client_end]))
            _run(link.command(["ip", "link", "set", client_end, "up"]))
            shape = ["root", "tbf", "rate", f"{rate_mbit}mbit", "burst", _BURST, "latency", _QUEUE]
            _run(["tc", "qdisc", "add", "dev", server_end, *shape])
            _run(link.command(["tc", "qdisc", "add", "dev", client_end, *shape]))
            yield link
        finally:
            _run(["ip", "link", "delete", server_end])


@contextmanager
def _until_closed(command: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    """A child that ends when its standard input does: with this block, or when this process is gone."""
    process = subprocess.Popen(
        command, cwd=_REPOSITORY, env=_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.communicate()


def _wait_until_apart(namespace: Path) -> None:
    """Until the keeper has left this process's namespace."""
    own = Path("/proc/self/ns/net").readlink()
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        try:
            if namespace.readlink() != own:
                return
        except OSError:
            break
        time.sleep(0.005)
    raise MethodFailed("no network namespace: a slow link needs root")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MethodFailed(f"{command[0]}: {done.stderr.strip()[-200:]}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
