"""Images brought here as a whole."""

from pathlib import Path

from lazyfs.image.whole import fetch_whole
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import image_of

LAYERS = [tar(file(b"large", bytes(range(256)) * 9000)), tar(file(b"small", b"1"))]


async def test_all_content_is_here_then_and_each_layer_tells_how_far_it_is(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(digest: str, done: int, total: int) -> None:
        told.setdefault(digest, []).append((done, total))

    with Registry() as registry:
        registry.push("app", build_image(LAYERS), tag="1")
        async with image_of(f"{registry.host}/app:1", tmp_path / "cache") as opened:
            await fetch_whole(opened.image, progress)
            assert all(layer.entry.complete for layer in opened.image.layers)
    by_size = sorted(told.values(), key=len)
    assert [steps[-1] for steps in by_size] == [(len(data), len(data)) for data in reversed(LAYERS)]
    assert [done for done, _ in by_size[1]] == [1 << 20, 2 << 20, len(LAYERS[0])]
