"""Against Debian's docker-registry: our client reads from it, and our test registry answers like it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from msgspec.structs import replace

from indexer.digest import sha256_digest
from lazyfs.errors import NotFound, Unauthorized
from lazyfs.oci.platform import parse_platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.auth.credentials import Credentials, StaticCredentials
from lazyfs.source.open import open_registry
from tests.support.images import build_image, build_index, descriptor_of, encode, write_layout
from tests.support.lab_registry import docker_registry
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, image_of
from tests.support.registry_faults import FaultScript
from tests.support.registry_routes import Request, Routed, ranged
from tests.support.registry_server import Gates, Journal, Server

pytestmark = pytest.mark.lab

AMD64 = parse_platform("linux/amd64")
LAYER = bytes(range(256)) * 4000
IMAGE = build_image([LAYER, b"upper"], compression="none")
INDEX = build_index([build_image([b"x"], platform="linux/arm64"), IMAGE])


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path / "storage") as address:
        yield address


async def push(layout: Path, target: str, *options: str) -> None:
    command = [
        "skopeo",
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
        *options,
    ]
    await trio.run_process([*command, f"oci:{layout}:1", f"docker://{target}"])


async def check_reading(address: str, **settings: Any) -> None:
    async with open_registry(
        parse_reference(f"{address}/team/app:1"), replace(SETTINGS, **settings)
    ) as source:
        probed = await source.resolve(probe=True)
        image = await image_of(source, AMD64)
        assert probed == await source.resolve()
        assert probed.digest == INDEX.digest
        assert image.descriptor.digest == IMAGE.digest
        blob = source.blob(image.layers[0].descriptor)
        assert await blob.fetch(1000, 300_000, bytes) == LAYER[1000:300_000]
        pulled = bytearray()
        await blob.pull(pulled.extend)
        assert pulled == LAYER
        assert source.statistics().retries == 0
    async with open_registry(
        parse_reference(f"{address}/team/app:2"), replace(SETTINGS, **settings)
    ) as source:
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            await source.resolve()


async def test_what_skopeo_pushed_is_read(real: str, tmp_path: Path) -> None:
    await push(write_layout(tmp_path / "layout", {"1": INDEX}), f"{real}/team/app:1")
    await check_reading(real)


async def test_a_registry_with_passwords_lets_its_user_in(tmp_path: Path) -> None:
    users = tmp_path / "htpasswd"
    done = await trio.run_process(["htpasswd", "-Bbn", "user", "pass:word"], capture_stdout=True)
    users.write_bytes(done.stdout)
    settings = {"auth": {"htpasswd": {"realm": "lab", "path": str(users)}}}
    with docker_registry(tmp_path / "storage", settings=settings) as address:
        layout = write_layout(tmp_path / "layout", {"1": INDEX})
        await push(layout, f"{address}/team/app:1", "--dest-creds", "user:pass:word")
        await check_reading(address, credentials=StaticCredentials(address, Credentials("user", "pass:word")))
        for credentials in (Credentials("user", "wrong"), Credentials()):
            provider = StaticCredentials(address, credentials)
            with pytest.raises(Unauthorized):
                await check_reading(address, credentials=provider)


class Files:
    """Serves the files of a registry's storage, as a CDN in front of it would."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def answer(self, request: Request) -> Routed:
        data = (self._root / request.path.lstrip("/")).read_bytes()
        return Routed("cdn", ranged(data, request.headers.get("range")))


async def test_a_registry_that_redirects_is_followed(tmp_path: Path) -> None:
    storage, journal = tmp_path / "storage", Journal()
    with Server(Files(storage), FaultScript(), journal, Gates()) as cdn:
        redirect = {"name": "redirect", "options": {"baseurl": cdn.base_url}}
        with docker_registry(storage, settings={"middleware": {"storage": [redirect]}}) as address:
            await push(write_layout(tmp_path / "layout", {"1": INDEX}), f"{address}/team/app:1")
            journal.clear()
            await check_reading(address)
    assert journal.requests["GET", "cdn"] == 3  # configuration, range, pull


class Call(NamedTuple):
    """One request; {name} stands for what an answer before gave."""

    method: str
    path: str
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


MANIFEST = {"Content-Type": IMAGE.media_type}
LAYER_DIGEST, CONFIG_DIGEST = sha256_digest(LAYER), sha256_digest(IMAGE.config)
UPPER_DIGEST = sha256_digest(b"upper")
ABSENT = sha256_digest(b"absent")
ATTACHED = encode(IMAGE.json | {"subject": descriptor_of(IMAGE.data, IMAGE.media_type)})

CALLS = [
    Call("GET", "/v2/"),
    Call("GET", "/v2/app/tags/list"),
    Call("GET", "/v2/app/manifests/1"),
    Call("HEAD", "/v2/app/manifests/1"),
    Call("GET", f"/v2/app/blobs/{ABSENT}"),
    Call("POST", "/v2/app/blobs/uploads/"),
    Call("PUT", f"{{location}}&digest={ABSENT}", {}, b"not that"),
    Call("POST", "/v2/app/blobs/uploads/"),
    Call("PUT", f"{{location}}&digest={CONFIG_DIGEST}", {}, IMAGE.config),
    Call("POST", "/v2/app/blobs/uploads/"),
    Call("PATCH", "{location}", {"Content-Range": "0-999999"}, LAYER[:1_000_000]),
    Call("GET", "{location}"),
    Call("PATCH", "{location}", {"Content-Range": f"1000000-{len(LAYER) - 1}"}, LAYER[1_000_000:]),
    Call("PUT", f"{{location}}&digest={LAYER_DIGEST}"),
    Call("PUT", "/v2/app/manifests/1", MANIFEST, IMAGE.data),
    Call("POST", "/v2/other/blobs/uploads/"),
    Call("PUT", f"{{location}}&digest={UPPER_DIGEST}", {}, b"upper"),
    Call("POST", f"/v2/app/blobs/uploads/?mount={UPPER_DIGEST}&from=other"),
    Call("POST", f"/v2/app/blobs/uploads/?mount={ABSENT}&from=other"),
    Call("DELETE", "{location}"),
    Call("PUT", "/v2/app/manifests/1", MANIFEST, IMAGE.data),
    Call("PUT", f"/v2/app/manifests/{IMAGE.digest}", MANIFEST, IMAGE.data),
    Call("PUT", f"/v2/app/manifests/{ABSENT}", MANIFEST, IMAGE.data),
    Call("PUT", "/v2/app/manifests/attached", MANIFEST, ATTACHED),
    Call("GET", "/v2/app/manifests/1", {"Accept": IMAGE.media_type}),
    Call("HEAD", "/v2/app/manifests/1", {"Accept": IMAGE.media_type}),
    Call("GET", f"/v2/app/manifests/{IMAGE.digest}", {"Accept": IMAGE.media_type}),
    Call("GET", "/v2/app/tags/list"),
    Call("HEAD", f"/v2/app/blobs/{LAYER_DIGEST}"),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}"),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}", {"Range": "bytes=5-9"}),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}", {"Range": "bytes=1000000-"}),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}", {"Range": "bytes=-10"}),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}", {"Range": "bytes=1000000-99999999"}),
    Call("GET", f"/v2/app/blobs/{LAYER_DIGEST}", {"Range": "bytes=99999999-"}),
    Call("GET", f"/v2/app/referrers/{IMAGE.digest}"),
    Call("DELETE", f"/v2/app/manifests/{IMAGE.digest}"),
    Call("GET", "/v2/app/manifests/1", {"Accept": IMAGE.media_type}),
    Call("DELETE", f"/v2/app/blobs/{UPPER_DIGEST}"),
    Call("GET", f"/v2/app/blobs/{UPPER_DIGEST}"),
]
COMPARED = (
    "content-range",
    "content-length",
    "docker-content-digest",
    "range",
    "oci-subject",
    "link",
    "accept-ranges",
)


def conversation(base_url: str) -> list[dict[str, Any]]:
    """What a registry answers to CALLS, as far as clients rely on it."""
    answers = []
    location = ""
    with httpx.Client(base_url=base_url, trust_env=False) as client:
        for call in CALLS:
            path = call.path.format(location=location)
            with client.stream(call.method, path, headers=call.headers, content=call.body) as reply:
                if reply.status_code != 416:  # the real one announces more than it sends then
                    reply.read()
            location = reply.headers.get("location", location)
            answers.append({"call": call[:3], **said_by(reply)})
    return answers


def said_by(reply: httpx.Response) -> dict[str, Any]:
    said: dict[str, Any] = {"status": reply.status_code}
    if reply.is_error:
        if reply.is_stream_consumed and reply.content and "json" in reply.headers.get("content-type", ""):
            said["codes"] = [error["code"] for error in reply.json()["errors"]]
        return said
    said |= {name: reply.headers.get(name) for name in COMPARED}
    if "manifests" in reply.url.path:
        said["type"] = reply.headers.get("content-type")
    if "tags" in reply.url.path:
        return {"status": reply.status_code, "tags": sorted(reply.json()["tags"])}
    if reply.status_code not in (200, 206):
        del said["content-length"]
    return said | {"body": sha256_digest(reply.content)}


def test_our_registry_answers_like_the_real_one(real: str) -> None:
    with Registry(referrers=False) as ours:
        expected, actual = conversation(f"http://{real}"), conversation(ours.base_url)
    for theirs, mine in zip(expected, actual, strict=True):
        assert mine == theirs
