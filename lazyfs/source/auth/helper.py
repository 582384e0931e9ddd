"""The protocol of docker-credential-helpers: a program that keeps registries' credentials.

Secrets go through pipes, never on a command line.
"""

import json
import re
import subprocess

import trio

from indexer.errors import FormatError
from lazyfs.oci.json_fields import parse_object

_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_NOT_FOUND = b"credentials not found in native keychain"


class HelperFailed(Exception):
    """The helper cannot be asked or gave no sense; the message shows nothing of what it said."""


async def ask_helper(suffix: str, server: str, timeout_s: float) -> tuple[str, str] | None:
    """User and secret that `docker-credential-SUFFIX` has for a server; None if it has none.

    Args:
        suffix: which helper.
        server: the key it knows the registry by.
        timeout_s: how long it may take.

    Raises:
        HelperFailed: there is no such helper, it failed, took too long, or answered nonsense.
    """
    said = await _run(suffix, "get", server.encode(), timeout_s)
    if said is None:
        return None
    try:
        answer = parse_object(said, "helper")
        return answer.text("Username", ""), answer.text("Secret", "")
    except FormatError:
        raise HelperFailed(f"{_program(suffix)} gave an answer that cannot be read") from None


async def tell_helper(suffix: str, server: str, username: str, secret: str, timeout_s: float) -> None:
    """Have the helper keep a secret.

    Raises:
        HelperFailed: as for `ask_helper`.
    """
    told = json.dumps({"ServerURL": server, "Username": username, "Secret": secret}).encode()
    await _run(suffix, "store", told, timeout_s)


async def have_helper_forget(suffix: str, server: str, timeout_s: float) -> None:
    """Have the helper forget a server's secret; harmless if it has none.

    Raises:
        HelperFailed: as for `ask_helper`.
    """
    await _run(suffix, "erase", server.encode(), timeout_s)


def _program(suffix: str) -> str:
    if not _SUFFIX.fullmatch(suffix):
        raise HelperFailed("the configured credential helper has no possible name")
    return f"docker-credential-{suffix}"


async def _run(suffix: str, verb: str, told: bytes, timeout_s: float) -> bytes | None:
    """What the helper says to a verb; None if it knows of no such credentials."""
    program = _program(suffix)
    try:
        with trio.fail_after(timeout_s):
            done = await trio.run_process(
                [program, verb], stdin=told, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
    except trio.TooSlowError:
        raise HelperFailed(f"{program} did not answer in {timeout_s:g} s") from None
    except OSError as error:
        raise HelperFailed(f"{program} cannot be run: {error.strerror}") from None
    if done.returncode:
        if _NOT_FOUND in done.stdout:
            return None
        raise HelperFailed(f"{program} failed with exit code {done.returncode}")
    return done.stdout
