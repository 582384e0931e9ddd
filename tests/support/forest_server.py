"""A process that answers for a forest over a descriptor it is handed: it can be killed, and another goes on.

    with forest_server(device_fd, [(content, "stalled")]) as first:
        first.process.kill()
        with forest_server(device_fd, [(content, "local")], first.said()) as second: ...

The files are numbers 2, 3, ... as a new `Forest` gives them. `python -m tests.support.forest_server` is the
process; its log tells of each read that reaches a layer.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio
from msgspec.structs import asdict

from lazyfs.mount.answers import Negotiated
from lazyfs.mount.forest import Forest, VirtualFile
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.wire_init import InitFlag
from tests.support.mount_server import PATIENCE_S, REPOSITORY, Behaviour, FakeLayer, Server

Settled = dict[str, int]


@contextmanager
def forest_server(
    device_fd: int, files: Sequence[tuple[Path, Behaviour]], settled: Settled | None, log: Path
) -> Iterator[Server]:
    """A server of these files; `settled` is what its predecessor said. It does not outlive the block."""
    arguments = {"fd": device_fd, "files": [(str(path), how) for path, how in files], "settled": settled}
    command = [sys.executable, "-m", "tests.support.forest_server", json.dumps(arguments)]
    with log.open("a") as stderr:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, pass_fds=[device_fd], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        yield Server(process, Path("/"), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _virtual_file(path: str, behaviour: Behaviour) -> VirtualFile:
    content = Path(path).read_bytes()
    return VirtualFile(FakeLayer(content, behaviour), len(content))


async def _main(arguments: dict) -> None:
    forest = Forest()
    for path, behaviour in arguments["files"]:
        forest.add(_virtual_file(path, behaviour))
    told = arguments["settled"]
    predecessor = told and Negotiated(told["minor"], InitFlag(told["offered"]))
    session = RawSession(arguments["fd"], ForestAnswers(forest, PATIENCE_S), predecessor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.answer)
        await session.initialised.wait()
        assert session.negotiated is not None
        print(json.dumps(asdict(session.negotiated)), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s")
    trio.run(_main, json.loads(sys.argv[1]))
