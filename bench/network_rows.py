"""Rows about bytes that come over HTTP: over loopback, and from far away."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import which
from typing import Final, NamedTuple

from bench import workloads
from bench.link import Link, slow_link
from bench.measure import Case, MethodFailed, Row
from bench.methods import DRIVERS, Mounted, lazyfs_mount
from bench.range_clients import CLIENTS
from bench.tree import layers_of
from bench.world import World, drop_caches, drop_content
from tests.support.registry_tls import make_authority

_INFLATERS: Final = ("igzip", "pigz", "gzip")
_LINK_MBIT: Final = 1000
_LINK_DELAY_S: Final = 0.02


def range_rows(world: World) -> Iterator[Row]:
    """What byte ranges cost: plain, and over TLS."""
    files = world.scratch / "tls"
    files.mkdir()
    authority = make_authority(files)
    digest, size = max(world.tree.layers(), key=lambda layer: layer[1])
    plain = f"http://{world.registry}"
    secure = f"https://{world.registry_over_tls(authority.server_cert, authority.server_key)}"
    for name, address, ca_file in (("plain", plain, None), ("TLS", secure, authority.ca_file)):
        url = f"{address}/v2/bench/tree/blobs/{digest}"
        cases = [Case(client, partial(_fetch, client, url, size, ca_file)) for client in CLIENTS]
        note = "1 MiB each, 8 at once, from docker-registry; the client's CPU time"
        yield Row(f"byte ranges, {name}", "MB/CPU-s", cases, note=note)


def _fetch(client: str, url: str, size: int, ca_file: Path | None) -> float:
    command = [sys.executable, "-m", "bench.range_clients", client, url, str(size)]
    done = subprocess.run(
        [*command, *([str(ca_file)] if ca_file else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MethodFailed(done.stderr.strip().splitlines()[-1][:200])
    return float(done.stdout)


class _Remote(NamedTuple):
    """An image whose last layer is the file "big", in the registry.

    Attributes:
        repository: where.
        digest: of that layer.
        size: of its compressed bytes.
    """

    repository: str
    digest: str
    size: int

    def blob(self, registry: str) -> str:
        """The layer's URL."""
        return f"http://{registry}/v2/{self.repository}/blobs/{self.digest}"


def stream_rows(world: World) -> Iterator[Row]:
    """Reading a file of which nothing is local, against streaming its layer."""
    remote = _Remote("bench/tree", *world.tree.layers()[-1])
    url = remote.blob(world.registry)
    cases = [
        *(Case(f"curl | {name} -dc", partial(_pipeline, name, url)) for name in _INFLATERS if which(name)),
        *(_cold_read(world, driver, remote) for driver in DRIVERS),
    ]
    note = f"a layer of {remote.size / 1e6:.0f} MB with one file, over loopback; lazyfs has its index"
    yield Row("read a remote file", "s", cases, note=note)


def _pipeline(inflater: str, url: str, link: Link | None = None) -> None:
    pipeline = f"curl --silent --show-error --fail {url} | {inflater} -dc | cat >/dev/null"
    command = ["bash", "-o", "pipefail", "-c", pipeline]
    _run(link.command(command) if link else command)


def link_rows(world: World) -> Iterator[Row]:
    """Reading files of which nothing is local over a fast link that is long, as a share of its rate."""
    short, long = world.tree.layers()[-1], layers_of(world.long)[-1]
    with (
        slow_link(_LINK_MBIT, _LINK_DELAY_S) as link,
        world.registry_behind(link) as server,
        link.port(server) as address,
    ):
        for remote in (_Remote("bench/tree", *short), _Remote("bench/long", *long)):
            url = remote.blob(address)
            curl = link.command(["curl", "-sSf", "-o", "/dev/null", url])
            inflated = (
                Case(f"curl | {name} -dc", partial(_pipeline, name, url, link))
                for name in _INFLATERS[:1]
                if which(name)
            )
            ours = (_cold_read(world, driver, remote, (address, link)) for driver in DRIVERS)
            cases = [Case("curl", partial(_run, curl)), *inflated, *ours]
            shares = [_as_share(case, remote.size, link) for case in cases]
            link_note = f"{_LINK_MBIT} Mbit/s, {_LINK_DELAY_S * 1e3:.0f} ms each way"
            note = f"a layer of {remote.size / 1e6:.0f} MB with one file; {link_note}"
            yield Row("read a remote file, long link", "% of the link", shares, note=note)


def _as_share(case: Case, size: int, link: Link) -> Case:
    """The case with the share of the link's rate as its value, of which compressed bytes count."""

    def run() -> float:
        start = time.perf_counter()
        case.run()
        return 100 * size / link.bytes_per_s / (time.perf_counter() - start)

    return replace(case, run=run)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _cold_read(world: World, driver: str, remote: _Remote, far: tuple[str, Link] | None = None) -> Case:
    """Each sample has a mount of its own, with no content in its cache.

    Args:
        world: where.
        driver: of the mount.
        remote: what is read.
        far: the registry's address behind a link, and the link; else it is near.
    """
    address, link = far or (world.registry, None)
    at_hand = ExitStack()
    world.stack.push(at_hand)
    mounted: list[Mounted] = []
    cache = world.scratch / f"cold-{driver}-{remote.repository.rpartition('/')[2]}"

    def prepare() -> None:
        at_hand.close()
        if not cache.exists():
            cache.mkdir(mode=0o700)
            world.lazyfs("index", f"{world.registry}/{remote.repository}:latest", cache=cache)
        drop_content(cache)
        reference = f"{address}/{remote.repository}:latest"
        mounted[:] = [at_hand.enter_context(lazyfs_mount(world, driver, reference, cache, link))]
        drop_caches()

    return Case(
        f"lazyfs {driver}",
        lambda: workloads.read_sequentially(mounted[0].root),
        prepare,
        lambda: mounted[0].pids if mounted else (),
    )
