"""Asks the data daemon. One that is being restarted is waited for: nothing that is asked is done twice."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from msgspec import Struct

from lazyfs.errors import (
    BadReference,
    CacheError,
    ConfigError,
    LazyfsError,
    MountError,
    NotFound,
    SourceError,
    Unauthorized,
    Unreachable,
)
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.protocol import MAX_LINE, decoded, encoded, order_fields

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
_ASSESS_S: Final = 45.0
_MOUNT_S: Final = 900.0
_OTHERS_S: Final = 120.0

# The kinds of errors by their exit codes (`lazyfs.exit_codes`), as far as a caller may tell them apart.
_KINDS: Final[Mapping[int, type[LazyfsError]]] = {
    64: BadReference,
    65: SourceError,
    66: NotFound,
    71: MountError,
    73: MountError,
    74: CacheError,
    75: Unreachable,
    77: Unauthorized,
    78: ConfigError,
}


class Assessment(Struct, frozen=True):
    """Whether an image can be shown lazily.

    Attributes:
        lazy: whether it can.
        why: why not, in words.
    """

    lazy: bool
    why: str = ""


class MountedChain(Struct, frozen=True):
    """A mounted tree.

    Attributes:
        name: the mount's name.
        path: where it is, absolute.
        driver: who presents it: "erofs" or "fuse".
    """

    name: str
    path: Path
    driver: str


class ServiceClient:
    """The data daemon, as those see it who order chains from it. Any number of tasks may ask at once.

    Args:
        socket: where the daemon listens.
        patience_s: for how many seconds a daemon that is not there, or dies before it answers, is waited for.
        again: called each time a question is asked once more for that.
    """

    def __init__(
        self, socket: Path, patience_s: float = 30.0, again: Callable[[], None] = lambda: None
    ) -> None:
        self._again = again
        self._socket = socket
        self._patience_s = patience_s

    def __repr__(self) -> str:
        return f"ServiceClient({str(self._socket)!r})"

    async def assess(self, order: ChainOrder) -> Assessment:
        """Whether indexes are to be had for the whole image of an order.

        Raises:
            Unreachable: the daemon does not answer.
            LazyfsError: it cannot tell.
        """
        answer = await self._ask(_ASSESS_S, {"do": "assess", "order": order_fields(order)})
        return Assessment(lazy=_of(answer, "lazy", bool), why=str(answer.get("why", "")))

    async def mount(self, order: ChainOrder) -> MountedChain:
        """The mount of the ordered layers, made if there is none.

        Raises:
            Unreachable: the daemon does not answer, or cannot reach the image's registry.
            LazyfsError: it cannot be mounted.
        """
        answer = await self._ask(_MOUNT_S, {"do": "mount", "order": order_fields(order)})
        name, path, driver = (_of(answer, field, str) for field in ("name", "path", "driver"))
        return MountedChain(name, Path(path), driver)

    async def release(self, name: str) -> None:
        """Unmount what has this name, if anything does.

        Raises:
            Unreachable: the daemon does not answer.
            LazyfsError: it cannot be unmounted.
        """
        await self._ask(_OTHERS_S, {"do": "release", "name": name})

    async def keep(self, names: Collection[str]) -> list[str]:
        """Release all mounts but these, and those of layers alone; the names of those released.

        Raises:
            Unreachable: the daemon does not answer.
            LazyfsError: something cannot be unmounted.
        """
        answer = await self._ask(_OTHERS_S, {"do": "keep", "names": sorted(names)})
        return [str(name) for name in _of(answer, "released", list)]

    async def index(self, order: ChainOrder) -> bool:
        """Have the image of an order indexed in the background; whether that was not under way already.

        Raises:
            Unreachable: the daemon does not answer.
            LazyfsError: it cannot be queued.
        """
        answer = await self._ask(_OTHERS_S, {"do": "index", "order": order_fields(order)})
        return _of(answer, "queued", bool)

    async def log_in(self, image: str, entry: Mapping[str, str], *, proved: bool = False) -> bool:
        """Give the credentials by which an image is pulled.

        Args:
            image: its name.
            entry: as one of `auths` in docker's `config.json`, perhaps with "serveraddress".
            proved: whether something of it came by them.

        Returns:
            Whether they were not known.

        Raises:
            Unreachable: the daemon does not answer.
            BadReference: these are none.
        """
        question = {"do": "log_in", "image": image, "entry": dict(entry), "proved": proved}
        answer = await self._ask(_OTHERS_S, question)
        return _of(answer, "new", bool)

    async def log_out(self, image: str, entry: Mapping[str, str]) -> None:
        """Take credentials back: the image could not be pulled by them.

        Raises:
            Unreachable: the daemon does not answer.
            BadReference: these are none.
        """
        await self._ask(_OTHERS_S, {"do": "log_out", "image": image, "entry": dict(entry)})

    async def mounts(self) -> list[dict[str, Any]]:
        """What is mounted: name, path, driver, order and state of each.

        Raises:
            Unreachable: the daemon does not answer.
        """
        return list(_of(await self._ask(_OTHERS_S, {"do": "list"}), "mounts", list))

    async def statistics(self) -> dict[str, Any]:
        """What the daemon has done so far.

        Raises:
            Unreachable: the daemon does not answer.
        """
        return await self._ask(_OTHERS_S, {"do": "stats"})

    async def explain(self, image: str = "", paths: Collection[str] = ()) -> list[dict[str, Any]]:
        """How images are read, and what that has cost: those of a name, or mounted at one of `paths`, or all.

        Raises:
            Unreachable: the daemon does not answer.
            NotFound: it knows no such image.
        """
        question = {"do": "explain", "image": image, "paths": list(paths)}
        return list(_of(await self._ask(_OTHERS_S, question), "images", list))

    async def _ask(self, timeout_s: float, question: Mapping[str, Any]) -> dict[str, Any]:
        line = await self._answer(timeout_s, encoded(question))
        try:
            answer = decoded(line)
        except BadReference:
            raise Unreachable(f"what answers at {self._socket} is no data daemon") from None
        if "error" in answer:
            raise _KINDS.get(answer.get("code", 0), LazyfsError)(str(answer["error"]))
        return answer

    async def _answer(self, timeout_s: float, question: bytes) -> bytes:
        """The line that answers a question, asked again while nobody listens, or who listened is gone.

        Patience counts from when that is seen first: who listened may have worked on it for long.
        """
        pause = _FIRST_PAUSE_S
        deadline = math.inf
        try:
            with trio.fail_after(timeout_s):
                while True:
                    try:
                        return await self._converse(question)
                    except (OSError, trio.BrokenResourceError) as error:
                        deadline = min(deadline, trio.current_time() + self._patience_s)
                        if trio.current_time() + pause > deadline:
                            raise Unreachable(f"no data daemon answers at {self._socket}: {error}") from error
                    await trio.sleep(pause)
                    self._again()
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        except trio.TooSlowError:
            raise Unreachable(f"the data daemon gave no answer within {timeout_s:g} s") from None

    async def _converse(self, question: bytes) -> bytes:
        async with await trio.open_unix_socket(self._socket) as stream:
            await stream.send_all(question)
            pieces: list[bytes] = []
            size = 0
            while not pieces or not pieces[-1].endswith(b"\n"):
                pieces.append(await stream.receive_some(1 << 16))
                size += len(pieces[-1])
                if not pieces[-1]:
                    raise trio.BrokenResourceError("it hung up")
                if size > 16 * MAX_LINE:
                    raise Unreachable(f"what answers at {self._socket} does not end")
            return b"".join(pieces)


def _of(answer: Mapping[str, Any], field: str, kind: type[T]) -> T:
    value = answer.get(field)
    if not isinstance(value, kind):
        raise Unreachable(f"the data daemon's answer has no {field}")
    return value
