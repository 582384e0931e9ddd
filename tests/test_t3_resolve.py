"""What a tag is taken for while its registry is away."""

from pathlib import Path

import pytest
import trio

from lazyfs.cache.cache import Cache
from lazyfs.errors import Unauthorized, Unreachable
from lazyfs.image.resolve import PATIENCE_S, ResolvedImage, Resolver
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import parse_image
from lazyfs.oci.platform import parse_platform
from tests.support.images import BuiltDocument, build_image, write_layout
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import image_of, workshop_of

NAME = "registry.test/app:1"


def built() -> BuiltDocument:
    return build_image([tar(file(b"a", b"content"))])


class Somewhere:
    """A source that can fall silent."""

    def __init__(self, image: BuiltDocument) -> None:
        self._documents = {image.digest: image.data, **image.blobs}
        self._root = Descriptor(image.media_type, image.digest, len(image.data))
        self.silent = False
        self.refusal: Exception | None = None

    async def resolve(self, *, probe: bool = False, patient: bool = True) -> Descriptor:
        del probe, patient
        if self.silent:
            await trio.sleep_forever()
        if self.refusal is not None:
            raise self.refusal
        return self._root

    async def document(self, descriptor: Descriptor, max_bytes: int = 0) -> bytes:
        del max_bytes
        return self._documents[descriptor.digest]


async def resolved(source: Somewhere, cache: Cache) -> ResolvedImage:
    resolver = Resolver(source, cache.documents, cache.references)
    return await resolver.resolve(parse_image(NAME), parse_platform("linux/amd64"))


async def test_a_silent_registry_is_waited_for_seconds_where_its_tag_is_known(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, cache = Somewhere(built()), Cache(tmp_path / "cache")
    before = await resolved(source, cache)
    source.silent = True
    began = autojump_clock.current_time()
    assert await resolved(source, cache) == before
    assert autojump_clock.current_time() - began == PATIENCE_S
    (warning,) = caplog.records
    assert f"docker://{NAME} was when last seen" in warning.getMessage()
    caplog.clear()


async def test_a_silent_registry_is_waited_for_as_long_as_it_takes_where_its_tag_is_not_known(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    source, cache = Somewhere(built()), Cache(tmp_path / "cache")
    source.silent = True
    with pytest.raises(trio.TooSlowError), trio.fail_after(PATIENCE_S * 10):
        await resolved(source, cache)


async def test_who_is_refused_is_told_of_what_is_here(tmp_path: Path) -> None:
    """A login that has expired keeps nobody from what was fetched with it, if that is what he wants."""
    source, cache = Somewhere(built()), Cache(tmp_path / "cache")
    source.refusal = Unauthorized("refused", url="there", status=401)
    with pytest.raises(Unauthorized, match=r"^refused$"):
        await resolved(source, cache)
    source.refusal = None
    await resolved(source, cache)
    source.refusal = Unauthorized("refused", url="there", status=401)
    with pytest.raises(
        Unauthorized, match=r"^refused; what is here of it can be used with --offline$"
    ) as told:
        await resolved(source, cache)
    assert (told.value.url, told.value.status) == ("there", 401)


async def test_nobody_waits_for_a_registry_that_is_down_where_its_tag_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Registry() as registry:
        registry.push("app", built(), tag="1")
        known, unknown = (f"{registry.host}/app:{tag}" for tag in ("1", "2"))
        async with workshop_of(known, tmp_path, retries=5) as workshop:
            await workshop.resolve()
    async with workshop_of(known, tmp_path, retries=5) as workshop:
        await workshop.resolve()
        assert workshop.statistics().retries == 0
    assert "gave up after one attempt" in caplog.text
    caplog.clear()
    async with workshop_of(unknown, tmp_path, retries=5) as workshop:
        with pytest.raises(Unreachable):
            await workshop.resolve()
        assert workshop.statistics().retries == 2


async def test_an_image_on_this_machine_takes_no_registry(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": built()})
    async with image_of(f"oci:{layout}", tmp_path / "cache", offline=True) as opened:
        assert await opened.content(b"a") == b"content"
