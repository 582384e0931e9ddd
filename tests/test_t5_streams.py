"""Real mounts from a registry that answers ranges with whole blobs: right bytes, each blob about once."""

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_faults import IgnoreRange
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

RNG = random.Random(11)
LARGE = {f"large-{number}": RNG.randbytes(250_000) for number in range(110)}  # far more than is read past
SMALL = {f"small-{number}": RNG.randbytes(40_000) for number in range(60)}  # 2.3 MiB, all of it within reach
IMAGE = build_image(
    [
        tar(*(file(name.encode(), data) for name, data in layer.items()))
        for layer in (LARGE, SMALL)
    ]
)  # fmt: skip
CONTENT = LARGE | SMALL


@pytest.mark.parametrize("driver", ["fuse", "erofs"])
def test_a_registry_without_ranges_gives_right_bytes_and_each_blob_about_once(driver, tmp_path):
    lazyfs = LazyfsRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")
    point = tmp_path / "mnt"
    point.mkdir()
    with Registry() as registry:
        registry.push("app", IMAGE)
        reference = f"{registry.host}/app:latest"
        lazyfs("index", reference)
        subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)
        registry.faults.add("blob", IgnoreRange(), times=1 << 30)
        lazyfs("mount", "--driver", driver, reference, point)
        try:
            before = _moved(lazyfs, point)
            names = RNG.sample(sorted(CONTENT), len(CONTENT))
            with ThreadPoolExecutor(8) as readers:
                for name, found in zip(names, readers.map(lambda n: _read(point / n), names), strict=True):
                    assert found == CONTENT[name]
            size = sum(len(blob) for blob in IMAGE.blobs.values())
            assert _moved(lazyfs, point) - before <= 1.4 * size
        finally:
            lazyfs("umount", "--lazy", point)


def _read(path: Path) -> bytes:
    with path.open("rb") as opened:
        return os.pread(opened.fileno(), 1 << 20, 0)


def _moved(lazyfs: LazyfsRunner, point: Path) -> int:
    """Bytes of blobs that came so far."""
    return int(json.loads(lazyfs("stats", point, "--json").stdout)["source"]["data_bytes"])
