"""Why no connection came about, in words that say what to do, and whether trying again could help."""

import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from errno import ECONNREFUSED
from typing import Final

from lazyfs.errors import Unreachable
from lazyfs.source.http.proxy import Proxy
from lazyfs.source.http.urls import Origin

# What OpenSSL says of an answer that is not TLS, by version (ssl/record, `ssl_get_next_record`).
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}
)
_HOSTNAME_MISMATCH: Final = frozenset(
    {62, 64}
)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_SPEAK_TLS: Final = "leave --plain-http out, or for a loopback host give --no-plain-http"


def final_refusal(origin: Origin, error: BaseException, proxy: Proxy | None) -> Unreachable | None:
    """The error for a connection that the next attempt would not get either; None if it might.

    Args:
        origin: who was to answer.
        error: why it did not.
        proxy: what the connection goes through.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(origin, cause)
        if isinstance(cause, ssl.SSLError):
            return _tls_refusal(origin, cause.reason or "")
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            name = f"the proxy {proxy.host}" if proxy else str(origin)
            return Unreachable(f"{name}: no host has this name; check its spelling", url=str(origin))
    return None


def speaks_tls(origin: Origin) -> Unreachable:
    """The error for a server that was asked over HTTP and wants TLS."""
    return Unreachable(f"{origin} wants TLS, not plain HTTP: {_SPEAK_TLS}", url=str(origin))


def was_refused(error: BaseException) -> bool:
    """Whether nobody listens where a connection was to be made, in contrast to nobody answering."""
    return any(isinstance(cause, OSError) and cause.errno == ECONNREFUSED for cause in _causes(error))


def way_to(origin: Origin, proxy: Proxy | None) -> str:
    """Where a connection was to lead, in words; without the proxy's password."""
    return f"{origin} through the proxy {proxy.origin}" if proxy else str(origin)


def reason_of(error: BaseException) -> str:
    """Why a connection failed, in few words and without what was sent on it."""
    for cause in _causes(error):
        if isinstance(cause, TimeoutError):
            return "timed out"
        if isinstance(cause, http.client.RemoteDisconnected):
            return "closed without an answer"
        if isinstance(cause, http.client.HTTPException):
            return f"not HTTP ({type(cause).__name__})"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what led to it, and what led to that."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            for one in cause.exceptions:
                yield from _causes(one)
        cause = cause.__cause__ or cause.__context__


def _untrusted(origin: Origin, error: ssl.SSLCertVerificationError) -> Unreachable:
    """The error for a server whose certificate does not convince."""
    if error.verify_code in _HOSTNAME_MISMATCH:
        advice = "use a name that the certificate is for"
    elif error.verify_code in _EXPIRED:
        advice = "its owner must renew it, or this machine's clock is wrong"
    else:
        advice = "name the authority that signed it in `ca_file` (LAZYFS_CA_FILE)"
    return Unreachable(
        f"{origin}: its certificate is not trusted ({error.verify_message}); {advice}", url=str(origin)
    )


def _tls_refusal(origin: Origin, reason: str) -> Unreachable | None:
    if reason in _NOT_TLS:
        said = f"{origin} does not answer with TLS: if it is meant to speak plain HTTP, give --plain-http"
    elif "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE")):
        why = reason.lower().replace("_", " ")
        said = (
            f"{origin} wants another client certificate ({why}); name yours in `client_cert` and `client_key`"
        )
    else:
        return None
    return Unreachable(said, url=str(origin))
