"""Whom a name leads to is seen on the connection: who answers for a name may say otherwise a moment later."""

import json
import subprocess
import sys

import pytest

# In a network of its own, which has the address of clouds' metadata services.
ASKS = """
import fcntl, json, socket, struct
import httpx, trio
from lazyfs.errors import LazyfsError
from lazyfs.source.http.control import ControlClient, new_client
from lazyfs.source.counters import Counters
from lazyfs.source.http.retry import Transient
from lazyfs.source.http.settings import SourceSettings

ADDRESS, NAME = "169.254.169.254", "metadata.example"
SIOCSIFFLAGS, SIOCSIFADDR, UP = 0x8914, 0x8916, 0x49

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    packed = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
    fcntl.ioctl(control, SIOCSIFADDR, packed)
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))

class Resolver(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESS, port))]
    async def getnameinfo(self, sockaddr, flags):
        raise AssertionError("nobody asks for names")

async def main(trusted):
    said = bytearray()
    async def answer(stream):
        said.extend(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nsecret")
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=ADDRESS)
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        settings = SourceSettings()
        async with new_client(settings, lambda: None, 5) as httpx_client:
            client = ControlClient(httpx_client, settings, Counters(), frozenset([NAME] if trusted else []))
            try:
                port = listener.socket.getsockname()[1]
                reply = await client.exchange("GET", f"http://{NAME}:{port}/latest", {})
                told = reply.body.decode()
            except (LazyfsError, Transient) as error:
                told = str(error)
        nursery.cancel_scope.cancel()
    print(json.dumps([told, said.decode()]))
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_nothing_is_sent_to_a_link_local_address_by_whatever_name_but_to_hosts_that_the_user_named(trusted):
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", f"{ASKS}\ntrio.run(main, {trusted})"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    told, said = json.loads(done.stdout)
    if trusted:
        assert (told, said[:5]) == ("secret", "GET /")
    else:
        assert "link-local address 169.254.169.254" in told
        assert not said
