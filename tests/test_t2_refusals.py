"""Why a connection does not come about, in words that help, at once where trying again would not."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from msgspec.structs import replace

from lazyfs.errors import ConfigError, NotFound, Unreachable
from lazyfs.oci.reference import parse_reference
from lazyfs.source.http.proxy import Proxy
from lazyfs.source.http.refusals import final_refusal, reason_of
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.urls import Origin
from lazyfs.source.open import open_registry
from tests.support.registry_client import QUICK, SETTINGS, layer_link
from tests.support.registry_tls import make_authority

HTTPS = Origin("https", "registry.example", 443)
NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
LINK = layer_link(b"data" * 100)


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """Host and port of a server that says this to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(10_000)
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("want", ["manifest", "blob"])
@pytest.mark.parametrize(
    ("plain", "said", "words"),
    [
        (
            True,
            b"HTTP/1.1 400 Bad Request\r\n\r\n<p>sent to HTTPS port</p>",
            "wants TLS, not plain HTTP: leave --plain-http out",
        ),
        (False, b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not answer with TLS: .* give --plain-http"),
    ],
)
async def test_the_wrong_protocol_is_named_at_once(want: str, plain: bool, said: bytes, words: str) -> None:
    with answering(said) as host:
        settings = replace(SETTINGS, plain_http=plain)
        async with open_registry(parse_reference(f"{host}/app"), settings) as source:
            with pytest.raises(Unreachable, match=words):
                await (source.resolve() if want == "manifest" else source.blob(LINK).fetch(0, 1, bytes))
            assert source.statistics().retries == 0


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "in words")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "proxy", "words"),
    [
        (NO_NAME, None, "https://registry.example: no host has this name"),
        (NO_NAME, Proxy("proxy.example", 3128), "the proxy proxy.example: no host has this name"),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), None, "wants another client certificate"),
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), None, "wants another client certificate"),
    ],
)
def test_what_trying_again_cannot_mend_is_final(error: OSError, proxy: Proxy | None, words: str) -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = ExceptionGroup("several", [ValueError("x"), error])
    found = final_refusal(HTTPS, wrapped, proxy)
    assert found
    assert words in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "x"),
        socket.gaierror(socket.EAI_AGAIN, "later"),
        tls_error("UNEXPECTED_EOF_WHILE_READING"),
        TimeoutError(),
    ],
)
def test_what_it_may_mend_is_not(error: OSError) -> None:
    assert final_refusal(HTTPS, error, None) is None


def test_a_reason_is_found_below_what_wraps_it() -> None:
    wrapped = OSError("all attempts failed")
    wrapped.__cause__ = ExceptionGroup("several", [ConnectionRefusedError(111, "to ('::1', 5)")])
    assert reason_of(wrapped) == "Connection refused"
    assert reason_of(TimeoutError()) == "timed out"
    assert reason_of(NO_NAME) == "Name or service not known"
    assert reason_of(ValueError("s3cret")) == "ValueError"


async def test_a_password_for_a_key_is_never_asked_for(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    key = serialization.load_pem_private_key(authority.client_key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"s3cret"),
        )
    )
    settings = replace(SETTINGS, plain_http=False, client_cert=(authority.client_cert, locked))
    with pytest.raises(ConfigError, match="is encrypted"):
        async with open_registry(parse_reference("ghcr.io/a/b"), settings):
            pytest.fail("it was used")


BRIEF = replace(SETTINGS, retry=replace(QUICK, retries_unanswered=1))


async def test_where_nobody_listens_one_is_told_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    async with open_registry(parse_reference(f"{address}/app:latest"), BRIEF) as source:
        with pytest.raises(Unreachable, match="Connection refused; gave up after 2 attempts"):
            await source.resolve()


async def test_a_registry_that_has_answered_is_waited_for() -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with ExitStack() as up:
        address = up.enter_context(answering(head))
        async with open_registry(parse_reference(f"{address}/app:latest"), BRIEF) as source:
            with pytest.raises(NotFound):
                await source.resolve()
            up.close()
            with pytest.raises(Unreachable, match="Connection refused; gave up after 4 attempts"):
                await source.resolve()


def test_the_usual_patience_with_nobody_is_less_than_a_second() -> None:
    policy = RetryPolicy()
    assert sum(policy.first_delay_s * 2**n for n in range(policy.retries_unanswered)) < 1
