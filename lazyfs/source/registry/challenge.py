"""What a registry asks for when it answers 401: parsing `WWW-Authenticate` (RFC 9110, section 11.6.1)."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART = re.compile(
    rf"""\s*(?:,\s*)?(?:
        (?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))
        |(?P<scheme>{_WORD})(?=\s|,|$)
    )""",
    re.VERBOSE | re.ASCII,
)
_MAX_LENGTH = 8192


class Challenge(NamedTuple):
    """One way to authenticate.

    Attributes:
        scheme: "bearer", "basic", …, in lower case.
        parameters: by name in lower case.
    """

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in the values of all `WWW-Authenticate` headers, in order, up to what is unreadable."""
    return [challenge for header in headers for challenge in _parse(header[:_MAX_LENGTH])]


def _parse(header: str) -> Iterator[Challenge]:
    position = 0
    current: Challenge | None = None
    while found := _PART.match(header, position):
        position = found.end()
        if found["scheme"]:
            if current:
                yield current
            current = Challenge(found["scheme"].lower(), {})
        elif current:
            value = (
                re.sub(r"\\(.)", r"\1", found["quoted"]) if found["quoted"] is not None else found["plain"]
            )
            current.parameters.setdefault(found["name"].lower(), value)
    if current:
        yield current


class BearerChallenge(NamedTuple):
    """Where to get a bearer token, and for what (distribution-spec's token authentication).

    Attributes:
        realm: URL of the token service.
        service: whom the token is for, or "".
        scopes: what it is to allow.
    """

    realm: str
    service: str
    scopes: tuple[str, ...]


def bearer_challenge(challenges: Iterable[Challenge]) -> BearerChallenge | None:
    """The first challenge that offers bearer tokens, if one does."""
    for challenge in challenges:
        realm = challenge.parameters.get("realm")
        if challenge.scheme == "bearer" and realm:
            scopes = tuple(challenge.parameters.get("scope", "").split())
            return BearerChallenge(realm, challenge.parameters.get("service", ""), scopes)
    return None


def offers_basic(challenges: Iterable[Challenge]) -> bool:
    """Whether a user's name and password would do."""
    return any(challenge.scheme == "basic" for challenge in challenges)
