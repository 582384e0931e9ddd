"""Rows about bytes that come over loopback HTTP."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shutil import which
from typing import Final

from bench import workloads
from bench.measure import Case, MethodFailed, Row
from bench.methods import DRIVERS, Mounted, lazyfs_mount
from bench.range_clients import CLIENTS
from bench.world import World, drop_caches, drop_content
from tests.support.registry_tls import make_authority

_INFLATERS: Final = ("igzip", "pigz", "gzip")


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


def stream_rows(world: World) -> Iterator[Row]:
    """Reading a file of which nothing is local, against streaming its layer."""
    digest, size = world.tree.layers()[-1]
    url = f"http://{world.registry}/v2/bench/tree/blobs/{digest}"
    cases = [
        *(Case(f"curl | {name} -dc", partial(_pipeline, name, url)) for name in _INFLATERS if which(name)),
        *(_cold_read(world, driver) for driver in DRIVERS),
    ]
    note = f"a layer of {size / 1e6:.0f} MB with one file, over loopback; lazyfs has its index"
    yield Row("read a remote file", "s", cases, note=note)


def _pipeline(inflater: str, url: str) -> None:
    command = f"curl --silent --show-error --fail {url} | {inflater} -dc | cat >/dev/null"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)


def _cold_read(world: World, driver: str) -> Case:
    """Each sample has a mount of its own, with no content in its cache."""
    at_hand = ExitStack()
    world.stack.push(at_hand)
    mounted: list[Mounted] = []
    cache = world.scratch / f"cold-{driver}"

    def prepare() -> None:
        at_hand.close()
        reference = f"{world.registry}/bench/tree:latest"
        if not cache.exists():
            cache.mkdir(mode=0o700)
            world.lazyfs("index", reference, cache=cache)
        drop_content(cache)
        mounted[:] = [at_hand.enter_context(lazyfs_mount(world, driver, reference, cache))]
        drop_caches()

    return Case(
        f"lazyfs {driver}",
        lambda: workloads.read_sequentially(mounted[0].root),
        prepare,
        lambda: mounted[0].pids if mounted else (),
    )
