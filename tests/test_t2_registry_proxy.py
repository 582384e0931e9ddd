"""Registries behind a proxy: documents and blobs both go through it, and nothing else does."""

import base64
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from indexer.digest import sha256_digest
from lazyfs.errors import Unreachable
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platform import parse_platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.http.proxy import proxy_rules
from lazyfs.source.open import open_registry
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, image_of
from tests.support.registry_proxy import ForwardProxy
from tests.support.registry_tls import TestAuthority, make_authority

AMD64 = parse_platform("linux/amd64")
IMAGE = build_image([b"layer" * 1000], compression="none")
SECRET = "s3cret"
NAME = parse_reference("registry.test/app:1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: TestAuthority) -> Iterator[Registry]:
    tls = authority.server_context() if request.param == "https" else None
    with Registry(tls=tls) as running:
        running.push("app", IMAGE, "1")
        yield running


async def test_everything_goes_through_the_proxy(server: Registry, authority: TestAuthority) -> None:
    plain = server.base_url.startswith("http:")
    with ForwardProxy(server.port) as proxy:
        url = proxy.url.replace("//", f"//user:{SECRET}@")
        rules = proxy_rules({"http_proxy": url, "https_proxy": url})
        settings = replace(SETTINGS, proxy=rules, plain_http=plain, ca_file=authority.ca_file)
        async with open_registry(NAME, settings) as source:
            image = await image_of(source, AMD64)
            blob = source.blob(image.layers[0].descriptor)
            assert await blob.fetch(5, 4000, bytes) == (b"layer" * 1000)[5:4000]
            assert SECRET not in repr(settings) + repr(source)
    pair = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert set(proxy.authorizations) == {f"Basic {pair}"}
    if plain:
        assert all(line.startswith("GET http://registry.test/v2/app/") for line in proxy.requests)
    else:
        # One connection for documents, one for blobs.
        assert [line.rpartition(" ")[0] for line in proxy.requests] == ["CONNECT registry.test:443"] * 2
    assert not any("proxy-authorization" in seen.headers for seen in server.seen if not plain)


async def test_loopback_is_never_behind_a_proxy(server: Registry, authority: TestAuthority) -> None:
    with ForwardProxy(server.port) as proxy:
        rules = proxy_rules({"all_proxy": proxy.url})
        plain = server.base_url.startswith("http:")
        settings = replace(SETTINGS, proxy=rules, plain_http=plain, ca_file=authority.ca_file)
        async with open_registry(parse_reference(f"{server.host}/app:1"), settings) as source:
            await image_of(source, AMD64)
        assert proxy.requests == []


async def test_a_proxy_may_be_given_by_an_ipv6_address() -> None:
    settings = replace(SETTINGS, proxy=proxy_rules({"all_proxy": "http://[::1]:1"}))
    async with open_registry(NAME, settings) as source:
        with pytest.raises(Unreachable, match="cannot connect"):
            await source.resolve()


async def test_a_proxy_that_is_not_there_is_named_without_its_password(server: Registry) -> None:
    with ForwardProxy(server.port) as proxy:
        address = proxy.url.removeprefix("http://")
    settings = replace(SETTINGS, proxy=proxy_rules({"all_proxy": f"http://me:secret@{address}"}))
    told = rf"cannot connect to https://registry\.test through the proxy http://{address}: Connection refused"
    async with open_registry(NAME, settings) as source:
        with pytest.raises(Unreachable, match=told):
            await source.resolve()
        layer = Descriptor("application/vnd.oci.image.layer.v1.tar", sha256_digest(b"x"), 1)
        with pytest.raises(Unreachable, match=told):
            await source.blob(layer).fetch(0, 1, bytes)
