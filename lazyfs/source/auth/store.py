"""Keeping credentials where docker, podman and lazyfs find them: in a helper, or in a file's `auths`.

Files are replaced as a whole and keep all that is not about the registry.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio
from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.errors import ConfigError
from lazyfs.oci.json_fields import Fields
from lazyfs.source.auth.credentials import (
    TOKEN_USER,
    Credentials,
    helper_for,
    normal_key,
    read_credentials,
    server_key,
)
from lazyfs.source.auth.helper import HelperFailed, ask_helper, have_helper_forget, tell_helper

_HELPER_TIMEOUT_S: Final = 30.0


class Kept(Struct, frozen=True):
    """Where credentials went.

    Attributes:
        place: a helper's program, or a file.
        encrypted: whether the place is a helper, whose business that is.
    """

    place: str
    encrypted: bool


async def keep_login(paths: Sequence[Path], registry: str, credentials: Credentials) -> Kept:
    """Keep credentials so that a look-up in `paths` finds them.

    They go into the first file that has any for the registry already, which would hide those of later
    files, else into the last; or into the helper that this file names.

    Args:
        paths: files in Docker's or containers' form, in the order of look-ups; at least one.
        registry: as it stands in references.
        credentials: a user and password, or an identity token.

    Raises:
        ConfigError: a file cannot be read or written, or a helper fails.
    """
    path, config = await trio.to_thread.run_sync(_choose, paths, registry)
    helper = _helper(config, path, registry)
    if helper:
        user = TOKEN_USER if credentials.identity_token else credentials.username
        secret = credentials.identity_token or credentials.password
        with _helper_errors(registry):
            await tell_helper(helper, server_key(registry), user, secret, _HELPER_TIMEOUT_S)
    # An empty entry tells that a helper has the rest, as Docker's own does.
    entry = {} if helper else _entry(credentials)
    await trio.to_thread.run_sync(_replace, path, _with_entry(_values(path), registry, entry))
    return Kept(f"docker-credential-{helper}" if helper else str(path), bool(helper))


async def forget_login(paths: Sequence[Path], registry: str) -> list[str]:
    """Remove the registry's credentials from all files and the helpers they name; the places that had any.

    Raises:
        ConfigError: a file cannot be read or written, or a helper fails.
    """
    places = []
    for path in paths:
        config = await trio.to_thread.run_sync(read_credentials, path)
        if config is None:
            continue
        helper = _helper(config, path, registry)
        if helper:
            with _helper_errors(registry):
                if await ask_helper(helper, server_key(registry), _HELPER_TIMEOUT_S):
                    await have_helper_forget(helper, server_key(registry), _HELPER_TIMEOUT_S)
                    places.append(f"docker-credential-{helper}")
        if _entries(config, path, registry):
            await trio.to_thread.run_sync(_replace, path, _with_entry(_values(path), registry, None))
            places.append(str(path))
    return places


@contextmanager
def _helper_errors(registry: str) -> Iterator[None]:
    try:
        yield
    except HelperFailed as error:
        raise ConfigError(f"credentials for {registry}: {error}") from None


def _choose(paths: Sequence[Path], registry: str) -> tuple[Path, Fields]:
    """The file to write, and what it holds."""
    for path in paths:
        config = read_credentials(path)
        if config is not None and (_entries(config, path, registry) or path == paths[-1]):
            return path, config
    return paths[-1], Fields({}, str(paths[-1]))


def _helper(config: Fields, path: Path, registry: str) -> str:
    try:
        return helper_for(config, registry)
    except FormatError as error:
        raise ConfigError(f"{path}: {error.what}") from None


def _entries(config: Fields, path: Path, registry: str) -> list[str]:
    """The keys of `auths` that stand for the registry as a whole."""
    wanted = normal_key(server_key(registry))
    try:
        return [key for key in config.keys("auths") if normal_key(key) == wanted]
    except FormatError as error:
        raise ConfigError(f"{path}: {error.what}") from None


def _entry(credentials: Credentials) -> dict[str, str]:
    """An entry as Docker writes it."""
    pair = f"{credentials.username}:{credentials.password}"
    entry = {"auth": base64.b64encode(pair.encode()).decode()}
    return entry | ({"identitytoken": credentials.identity_token} if credentials.identity_token else {})


def _values(path: Path) -> dict[str, Any]:
    """All of a file that `read_credentials` accepted, or that does not exist."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return values


def _with_entry(values: dict[str, Any], registry: str, entry: dict[str, str] | None) -> bytes:
    """The file with this entry and no other for the registry; None is to have none."""
    wanted = normal_key(server_key(registry))
    auths = {key: value for key, value in (values.get("auths") or {}).items() if normal_key(key) != wanted}
    if entry is not None:
        auths[server_key(registry)] = entry
    return json.dumps({**values, "auths": auths}, indent="\t", ensure_ascii=False).encode() + b"\n"


def _replace(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all; where `path` is a link, behind it."""
    try:
        target = path.resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                with suppress(OSError):  # root keeps the file its owner's
                    there = target.stat()
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise ConfigError(f"{path}: credentials cannot be written: {why}") from None
