"""What an HTTP status means to us, the same for documents and for ranges."""

import json
import re
from typing import Final, Protocol

from lazyfs.errors import LazyfsError, NotFound, RangeRefused, SourceError, Unauthorized
from lazyfs.source.http.refusals import speaks_tls
from lazyfs.source.http.retry import RETRIABLE_STATUSES, Transient, parse_retry_after
from lazyfs.source.http.urls import origin_of, shown

EXCERPT_BYTES: Final = 16_384  # of an error's body

_CODE = re.compile(r"[A-Z][A-Z_]{1,39}", re.ASCII)


class Answer(Protocol):
    """The head of an HTTP answer, and the first bytes of its body where it is an error's."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def url(self) -> str:
        """Where it came from."""

    @property
    def excerpt(self) -> bytes:
        """Up to EXCERPT_BYTES of the body; b"" where it is content."""

    def header(self, name: str) -> str:
        """The value of a header, the first if there are several; "" if there is none."""

    def headers(self, name: str) -> list[str]:
        """All values of a header."""

    def close(self) -> None:
        """Be done with it. Harmless when repeated."""


def failure(answer: Answer, what: str) -> LazyfsError | Transient:
    """The error for an answer that is not the wanted one.

    Of the body only the error codes of distribution-spec are shown: a server could echo a secret in its text.

    Args:
        answer: what came.
        what: what was wanted, for the message.
    """
    status = answer.status
    codes = _codes(answer.excerpt)
    said = f"HTTP {status}" + (f" {codes}" if codes else "")
    url = shown(answer.url)
    if status in RETRIABLE_STATUSES:
        return Transient(said, status=status, retry_after_s=parse_retry_after(answer.header("retry-after")))
    if status in (401, 403):
        return Unauthorized(
            f"{what}: refused ({said}); check the name, or log in: lazyfs login", url=url, status=status
        )
    if status in (404, 410):
        return NotFound(
            f"{what}: not found ({said}); check the name, or log in if it is private: lazyfs login",
            url=url,
            status=status,
        )
    if status == 400 and answer.url.startswith("http:") and b"HTTPS" in answer.excerpt:
        return speaks_tls(origin_of(answer.url))  # as Go's and nginx's servers answer
    if status == 416:
        return RangeRefused(f"{what}: the range was refused ({said})", url=url, status=status)
    return SourceError(f"{what}: unexpected answer ({said}); is this a registry?", url=url, status=status)


def _codes(body: bytes) -> str:
    """The error codes in a registry's answer, comma-separated."""
    try:
        said = json.loads(body)
        codes = [error["code"] for error in said["errors"][:3]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return ", ".join(code for code in codes if isinstance(code, str) and _CODE.fullmatch(code))
