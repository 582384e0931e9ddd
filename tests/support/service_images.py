"""Images with published indexes, and containers over their chains."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.config import chain_ids
from tests.support.lab import Lab, push_layout
from tests.support.lab_build import LEAVE_OTHERS
from tests.support.runner import LazyfsRunner
from tests.support.service import orders_of

ALL_CONTENT = "find usr etc -xdev -type f -print0 | sort -z | xargs -0 cat"


class Published(NamedTuple):
    """An image in a registry with its index beside it."""

    reference: str
    orders: list[ChainOrder]

    @property
    def whole(self) -> ChainOrder:
        return self.orders[-1]


def published(lab: Lab, address: str, name: str, place: Path) -> Published:
    reference = f"{address}/lab/{name}:latest"
    push_layout(lab.image(name), reference)
    lazyfs = LazyfsRunner(home=place / "home", cache_dir=place / "cache")
    lazyfs("index", "--push", reference)
    facts = json.loads(lazyfs("inspect", "--json", reference).stdout)
    layers = [layer["digest"] for layer in facts["manifest"]["layers"]]
    ids = chain_ids(facts["config"]["rootfs"]["diff_ids"])
    return Published(reference, orders_of(reference, facts["digest"], layers, ids))


@contextmanager
def container(chain: Path, command: str, within: Sequence[str] = ()) -> Iterator[subprocess.Popen]:
    """A process in an overlay over a chain, in a mount namespace of its own, as a runtime makes it.

    Of other mounts it keeps what the overlay holds. With the words `within` before its command.
    """
    script = f"""
        set -e
        mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work /mnt/merged
        mount -t overlay -o lowerdir={chain},upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/merged
        cd /mnt/merged && {{ {LEAVE_OTHERS}; }} && echo ready >&2
        {command}
    """
    shell = [*within, "unshare", "--mount", "sh", "-c", script]
    process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stderr.readline() == b"ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def content_of(root: Path) -> bytes:
    return subprocess.run(["sh", "-c", ALL_CONTENT], cwd=root, check=True, capture_output=True).stdout
