"""What `lazyfs daemon` tells of itself, for people and programs."""

from pathlib import Path
from typing import Any

import trio

from lazyfs.cli.output import print_json, shown, write_line, write_table
from lazyfs.service.client import ServiceClient


def tell_of_daemon(socket: Path, *, as_json: bool) -> None:
    """Print what the daemon behind a socket has done, and what it has mounted.

    Raises:
        Unreachable: it does not answer.
    """
    facts = trio.run(_ask, ServiceClient(socket, patience_s=0))
    if as_json:
        print_json(facts)
        return
    reads, source = facts["reads"], facts["source"]
    moved = source["control_bytes"] + source["data_bytes"]
    requests = source["control_requests"] + source["data_requests"]
    for name, value in (
        ("daemon", f"{socket}, process {facts['pid']}"),
        ("fetched", f"{moved} bytes in {requests} requests"),
        ("reads", f"{reads['hits']} from the cache, {reads['misses']} waited for the source"),
        ("failed fetches", reads["failures"]),
        ("to be indexed", f"{facts['indexing']['waiting']} images"),
    ):
        write_line(f"{name:16}{value}")
    rows = [("image", "layers", "state", "driver", "mounted at")]
    for mount in facts["mounts"]:
        state = ": ".join(filter(None, (mount["state"], _shown(mount.get("why", "")))))
        rows.append((_shown(mount["image"]), str(mount["layers"]), state, mount["driver"], mount["path"]))
    write_table(rows, "lrlll")


async def _ask(client: ServiceClient) -> dict[str, Any]:
    return {**await client.statistics(), "mounts": await client.mounts()}


def _shown(text: object) -> str:
    return shown(str(text).encode(errors="surrogateescape"))
