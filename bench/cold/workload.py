r"""What is started: an image, a command, and how one sees that it is ready. As TOML, the built-in ones too.

    [[workload]]
    name = "web"
    image = "docker://registry.example/web:1"    # as skopeo names it; or `recipe`, of bench/cold/recipes
    command = ["web", "--port", "8080"]          # default: the image's own
    environment = { MODE = "test" }
    ready = { http = "http://127.0.0.1:8080/" }
    timeout_s = 120

`ready` is one of

    { line = "1" }                                             a line of its output that contains this
    { exit = 0 }                                               it ends with this code
    { http = "http://127.0.0.1:8080/" }                        an answer below 400
    { tcp = "127.0.0.1:6379", send = "PING\r\n", expect = "PONG" }
    { exec = ["pg_isready"] }                                  a command in the container ends with 0

Containers share the network of the clients; nothing else listens there.

With `--registry`, `image` is a name in that registry, "team/web:1", and `variants` names others that stand
there for methods that need them: `variants = { estargz = "team/web:1-esgz" }`.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

BUILT_IN: Final = Path(__file__).with_name("workloads.toml")
_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TIMEOUT_S: Final = 300.0


class BadWorkload(Exception):
    """A workload file that says something else than it can; the message says where and what."""


@dataclass(frozen=True, slots=True)
class Line:
    """Ready when a line of its output contains `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Ready when it ends with `code`."""

    code: int


@dataclass(frozen=True, slots=True)
class Http:
    """Ready when a GET of `path` is answered below 400."""

    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Tcp:
    """Ready when a connection is made, `send` sent, and `expect` comes back."""

    host: str
    port: int
    send: bytes = b""
    expect: bytes = b""


@dataclass(frozen=True, slots=True)
class Exec:
    """Ready when a command inside the container ends with 0."""

    command: tuple[str, ...]


Ready = Line | Exit | Http | Tcp | Exec


@dataclass(frozen=True, slots=True)
class Workload:
    """One container to start.

    Attributes:
        name: what it is called in results, and its repository in the registry.
        ready: when it counts as ready.
        recipe: which built-in image it uses, or "".
        image: another image, as skopeo names it, or "".
        command: what runs in it; nothing: what the image says.
        environment: on top of the image's.
        variants: names in the user's registry by what was made of the image.
        timeout_s: until it counts as failed.
    """

    name: str
    ready: Ready
    recipe: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = _TIMEOUT_S

    @property
    def ends(self) -> bool:
        """Whether it ends by itself; others are ended when they are ready."""
        return isinstance(self.ready, Line | Exit)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """The workload of a TOML table.

        Raises:
            BadWorkload: a key is unknown, missing, or of another type.
        """
        told = _Table(table, f"workload {table.get('name', '?')!r}")
        workload = cls(
            name=told.text("name"),
            ready=_ready(told.table("ready"), f"{told.where}: ready"),
            recipe=told.text("recipe", ""),
            image=told.text("image", ""),
            command=told.texts("command"),
            environment=told.text_table("environment"),
            variants=told.text_table("variants"),
            timeout_s=told.number("timeout_s", _TIMEOUT_S),
        )
        told.no_more()
        if not _NAME.fullmatch(workload.name):
            raise BadWorkload(f"{told.where}: a name has small letters, digits and single . _ - between them")
        if bool(workload.recipe) == bool(workload.image):
            raise BadWorkload(f"{told.where}: either `image` or `recipe`")
        return workload


def load(path: Path) -> tuple[Workload, ...]:
    """The workloads of a file, in its order.

    Raises:
        BadWorkload: it cannot be read, or says something else than it can.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWorkload(f"{path}: {error}") from error
    tables = document.pop("workload", None)
    if document or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise BadWorkload(f"{path}: a list of [[workload]] and nothing else")
    workloads = tuple(Workload.of(table) for table in tables)
    names = [workload.name for workload in workloads]
    if double := {name for name in names if names.count(name) > 1}:
        raise BadWorkload(f"{path}: more than one workload {', '.join(sorted(double))}")
    return workloads


def _ready(table: Mapping[str, Any], where: str) -> Ready:
    told = _Table(table, where)
    match sorted(set(table) - {"send", "expect"}):
        case ["line"]:
            ready: Ready = Line(told.text("line"))
        case ["exit"]:
            ready = Exit(int(told.number("exit")))
        case ["http"]:
            ready = _http(told.text("http"), where)
        case ["tcp"]:
            host, port = _address(told.text("tcp"), where)
            ready = Tcp(host, port, told.text("send", "").encode(), told.text("expect", "").encode())
        case ["exec"]:
            ready = Exec(told.texts("exec"))
        case _:
            raise BadWorkload(f"{where}: one of line, exit, http, tcp (with send, expect), exec")
    told.no_more()
    return ready


def _http(url: str, where: str) -> Http:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "http" or not host:
        raise BadWorkload(f"{where}: not an http:// URL: {url}")
    return Http(host, port or 80, parts._replace(scheme="", netloc="").geturl() or "/")


def _address(address: str, where: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadWorkload(f"{where}: not HOST:PORT: {address}")
    return host, int(port)


class _Table:
    """A TOML table being read; what was not asked for is an error."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._left = dict(table)
        self.where = where

    def text(self, key: str, default: str | None = None) -> str:
        value = self._left.pop(key, default)
        if not isinstance(value, str) or (not value and default is None):
            raise BadWorkload(f"{self.where}: {key} is to be a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value: Sequence[object] = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise BadWorkload(f"{self.where}: {key} is to be a list of texts")
        return tuple(map(str, value))

    def number(self, key: str, default: float | None = None) -> float:
        value = self._left.pop(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadWorkload(f"{self.where}: {key} is to be a number")
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        value = self._left.pop(key, {})
        if not isinstance(value, dict):
            raise BadWorkload(f"{self.where}: {key} is to be a table")
        return value

    def text_table(self, key: str) -> Mapping[str, str]:
        value = self.table(key)
        if not all(isinstance(text, str) for text in value.values()):
            raise BadWorkload(f"{self.where}: {key} is to be a table of texts")
        return value

    def no_more(self) -> None:
        if self._left:
            raise BadWorkload(f"{self.where}: unknown: {', '.join(sorted(self._left))}")
