"""The data daemon's socket: whoever may open it, and whatever they say there."""

import json
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from lazyfs.errors import CacheError, MountError, NotFound, Unauthorized, Unreachable
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.client import ServiceClient
from lazyfs.service.server import answer_questions, is_at, listen

ORDER = ChainOrder("app", "", 1, "sha256:" + "1" * 64, "")


async def echo(question: Mapping[str, Any]) -> Mapping[str, Any]:
    match question["do"]:
        case "list":
            return {"mounts": [question]}
        case "mount":
            raise NotFound("no such\nimage\x1b[31m")
        case "release":
            raise {"data": Unauthorized, "disk": CacheError, "kernel": MountError}[question["name"]]("no")
        case "keep":
            return {"released": question["names"]}
        case _:
            raise ZeroDivisionError


@asynccontextmanager
async def serving(path: Path, answer=echo) -> AsyncIterator[ServiceClient]:
    with listen(path) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_questions, listener, answer)
            yield ServiceClient(path, patience_s=0)
            nursery.cancel_scope.cancel()


async def said_to(path: Path, data: bytes) -> bytes:
    """What comes back until the end, for these bytes and no more."""
    async with await trio.open_unix_socket(path) as stream:
        try:
            await stream.send_all(data)
            stream.socket.shutdown(socket.SHUT_WR)
            return b"".join([piece async for piece in stream])
        except (trio.BrokenResourceError, OSError):
            return b""


@pytest.mark.expect_log("no")
async def test_errors_come_as_one_line_and_as_their_kind(tmp_path):
    async with serving(tmp_path / "s") as client:
        with pytest.raises(NotFound, match=r"no such image\\x1b\[31m"):
            await client.mount(ORDER)
        for name, kind in (("data", Unauthorized), ("disk", CacheError), ("kernel", MountError)):
            with pytest.raises(kind):
                await client.release(name)


@pytest.mark.expect_log("a bug")
async def test_a_bug_in_one_answer_does_not_touch_the_others(tmp_path):
    async with serving(tmp_path / "s") as client:
        with pytest.raises(Exception, match="a bug: ZeroDivisionError"):
            await client.assess(ORDER)
        assert await client.mounts() == [{"do": "list"}]


GARBAGE = {
    "nothing": b"",
    "an empty line": b"\n",
    "half a line": b"{",
    "null": b"null\n",
    "a list": b"[]\n",
    "no end": b'{"do": "list"}',
    "bytes": b"\xff" * 100 + b"\n",
    "depth": b"{" * 500_000 + b"\n",
    "length": b"x" * (2 << 20),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_gets_an_error_or_nothing_and_harms_nobody(tmp_path, garbage):
    async with serving(tmp_path / "s") as client:
        answer = await said_to(tmp_path / "s", garbage)
        assert not answer or json.loads(answer)["code"] in {64, 70}
        assert await client.mounts() == [{"do": "list"}]


async def test_those_who_say_nothing_are_hung_up_on(tmp_path, autojump_clock):
    async with serving(tmp_path / "s") as client, await trio.open_unix_socket(tmp_path / "s") as silent:
        await silent.send_all(b'{"do"')
        assert await client.mounts() == [{"do": "list"}]
        assert await silent.receive_some() == b""


async def test_who_does_not_listen_to_the_answer_is_hung_up_on(tmp_path, autojump_clock):
    async def talk(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"mounts": ["x" * 1000] * 10_000}

    async with serving(tmp_path / "s", talk), await trio.open_unix_socket(tmp_path / "s") as deaf:
        await deaf.send_all(b'{"do": "list"}\n')
        await trio.sleep(60)
        received = 0
        try:
            async for piece in deaf:
                received += len(piece)
        except trio.BrokenResourceError:
            pass
        assert received < 10_000_000


async def test_hundreds_may_ask_at_once(tmp_path):
    async with serving(tmp_path / "s") as client:
        answers = []

        async def ask(number: int) -> None:
            answers.append(await client.keep([str(number)]))

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(ask, number)
        assert len(answers) == 300


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that others may enter, whatever those of pytest are."""
    with TemporaryDirectory() as place:
        Path(place).chmod(0o711)
        yield Path(place)


async def test_others_are_not_answered_even_if_they_can_open_the_socket(open_place):
    path = open_place / "s"
    async with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o666)
        asking = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            's.sendall(b\'{"do": "list"}\\n\'); print(len(s.recv(100)))'
        )
        command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", asking]
        done = await trio.run_process(
            [*command, str(path)], capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
        assert done.stdout == b"0\n" or b"ConnectionResetError" in done.stdout or b"BrokenPipe" in done.stdout


async def test_a_new_socket_takes_the_place_of_an_old_one(tmp_path):
    path = tmp_path / "below" / "s"
    with listen(path) as old:
        assert is_at(old, path)
        assert not is_at(old, tmp_path / "other")
        async with serving(path) as client:
            assert await client.mounts() == [{"do": "list"}]


async def test_a_client_waits_for_a_daemon_that_comes_back(tmp_path, nursery):
    path = tmp_path / "s"
    answers = []

    async def ask() -> None:
        answers.append(await ServiceClient(path, patience_s=60).mounts())

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    with listen(path) as listener:  # which hangs up without an answer, as one that is killed does
        server = trio.socket.from_stdlib_socket(listener)
        connection, _ = await server.accept()
        connection.close()
    async with serving(path):
        with trio.fail_after(30):
            while not answers:  # noqa: ASYNC110  # it asks again when it likes
                await trio.sleep(0.01)
    assert answers == [[{"do": "list"}]]


async def test_patience_counts_from_when_a_daemon_is_missed(tmp_path, nursery, autojump_clock):
    """One that is restarted while it works on a long question is asked again."""
    path = tmp_path / "s"
    answers = []

    async def ask() -> None:
        answers.append(await ServiceClient(path, patience_s=3).mounts())

    with listen(path) as listener:
        nursery.start_soon(ask)
        connection, _ = await trio.socket.from_stdlib_socket(listener).accept()
        with connection:
            await connection.recv(1000)
            await trio.sleep(10)  # by a clock that jumps
    async with serving(path):
        while not answers:  # noqa: ASYNC110  # it asks again when it likes
            await trio.sleep(0.01)
    assert answers == [[{"do": "list"}]]


async def test_a_client_does_not_wait_for_ever(tmp_path, autojump_clock):
    with pytest.raises(Unreachable, match="no data daemon answers"):
        await ServiceClient(tmp_path / "s", patience_s=5).mounts()


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"mounts": 5}\n', b""])
async def test_a_client_believes_no_nonsense(tmp_path, line, nursery):
    with listen(tmp_path / "s") as listener:
        server = trio.socket.from_stdlib_socket(listener)

        async def answer() -> None:
            connection, _ = await server.accept()
            with connection:
                await connection.recv(1000)
                await connection.send(line)

        nursery.start_soon(answer)
        with pytest.raises(Unreachable):
            await ServiceClient(tmp_path / "s", patience_s=0).mounts()
