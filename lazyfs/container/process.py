"""What a container's process is: the image's configuration and what the user wants otherwise."""

import json
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field

from lazyfs.container.confinement import Confinement
from lazyfs.container.given import DEFAULT_SHM, Device, Tmpfs, Volume
from lazyfs.container.image_user import Identity
from lazyfs.errors import ContainerError
from lazyfs.oci.config import DEFAULT_PATH

_HOSTNAME: Final = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]{0,61}[0-9A-Za-z])?", re.ASCII)


class ImageProcess(Struct, frozen=True):
    """What an image's configuration says of its process; see `lazyfs.oci.config.ImageConfig`."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "ImageProcess":
        """What `lazyfs.daemon` tells of an image's process."""
        return cls(
            env=tuple(told["env"]),
            entrypoint=tuple(told["entrypoint"]),
            cmd=tuple(told["cmd"]),
            user=str(told["user"]),
            working_dir=str(told["working_dir"]),
            stop_signal=str(told["stop_signal"]),
        )


class Wishes(Struct, frozen=True):
    """What the user wants of a container. None, and empty values, leave it to the image.

    Attributes:
        command: the words after the image's name.
        entrypoint: what stands before them; () is nothing.
        env: NAME=VALUE pairs.
        user: USER[:GROUP].
        working_dir: where the process starts.
        hostname: the container's name for itself.
        network: "host" or "none".
        read_only: nothing but volumes and kernel file systems can be written.
        terminal: the process has a terminal of its own.
        volumes: what of the host is shown.
        tmpfs: directories in memory.
        devices: what of the host's can be used.
        shm_size: bytes that /dev/shm holds.
        confinement: what it is kept from.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str | None = None
    working_dir: str | None = None
    hostname: str = ""
    network: str = "host"
    read_only: bool = False
    terminal: bool = False
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Device, ...] = ()
    shm_size: int = DEFAULT_SHM
    confinement: Confinement = field(default_factory=Confinement)


def arguments_of(image: ImageProcess, wishes: Wishes) -> tuple[str, ...]:
    """What is executed: entrypoint and command. A new entrypoint makes the image's command void.

    Raises:
        ContainerError: there is nothing to execute.
    """
    entrypoint = image.entrypoint if wishes.entrypoint is None else wishes.entrypoint
    default = image.cmd if wishes.entrypoint is None else ()
    arguments = (*entrypoint, *(wishes.command or default))
    if not arguments or not arguments[0]:
        raise ContainerError("the image says no command: give one after its name")
    return arguments


def checked_hostname(name: str) -> str:
    """`name`, which is fit to be a host's: it stands in /etc/hosts, and in what is mailed and logged.

    Raises:
        ContainerError: it is not made of at most 63 letters, digits, "-" and "." (RFC 1123, section 2.1).
    """
    if not _HOSTNAME.fullmatch(name):
        raise ContainerError(f"--hostname is at most 63 letters, digits, '-' and '.', not {name[:80]!r}")
    return name


def environment_of(image: ImageProcess, wishes: Wishes, identity: Identity, hostname: str) -> tuple[str, ...]:
    """NAME=VALUE pairs, each name once: the usual ones, then the image's, then the user's."""
    usual = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}", *(["TERM=xterm"] if wishes.terminal else [])]
    values: dict[str, str] = {}
    for pair in (*usual, f"HOME={identity.home}", *image.env, *wishes.env):
        name, equals, value = pair.partition("=")
        if name and equals:
            values[name] = value
    return tuple(f"{name}={value}" for name, value in values.items())


def working_dir_of(image: ImageProcess, wishes: Wishes) -> str:
    """Where the process starts, absolute.

    Raises:
        ContainerError: what is wanted is not.
    """
    directory = wishes.working_dir or image.working_dir or "/"
    if not directory.startswith("/"):
        if wishes.working_dir:
            raise ContainerError(f"the working directory {directory!r} does not begin with /")
        return "/" + directory  # as docker reads such an image
    return directory


def parse_entrypoint(text: str) -> tuple[str, ...]:
    """One word, or several as a JSON array; "" is none.

    Raises:
        ContainerError: an array of other things.
    """
    if not text.startswith("["):
        return (text,) if text else ()
    return tuple(json_words(text))


def json_words(text: str) -> list[str]:
    """The words of a JSON array of strings.

    Raises:
        ContainerError: it is something else.
    """
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ContainerError(f"{text!r} is no JSON array of strings")
    return words


def parse_env(text: str, environment: Mapping[str, str]) -> Iterable[str]:
    """NAME=VALUE as it is, NAME with its value in `environment` if it has one there."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ContainerError(f"{text!r}: write NAME=VALUE or NAME")
    if equals:
        return (text,)
    return (f"{name}={environment[name]}",) if name in environment else ()


def parse_env_file(text: str, environment: Mapping[str, str]) -> Sequence[str]:
    """The pairs of a file with one a line; empty lines and comments with # count nothing, as for docker."""
    lines = (line.removesuffix("\r").lstrip() for line in text.split("\n"))
    return [
        pair for line in lines if line and not line.startswith("#") for pair in parse_env(line, environment)
    ]


def signal_number(name: str) -> int:
    """The number of a signal by name, with or without SIG, or by number (image-spec `config.md`, StopSignal).

    Raises:
        ContainerError: there is none.
    """
    text = name.upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    if text.isascii() and text.isdigit() and 0 < int(text[:4]) < signal.NSIG:
        return int(text[:4])
    known = signal.Signals.__members__.get(f"SIG{base}")
    more = int(offset[:3]) if plus and offset.isascii() and offset.isdigit() else 0
    if known is None or (plus and not more) or known + more >= signal.NSIG:
        raise ContainerError(f"there is no signal {name!r}")
    return known + more
