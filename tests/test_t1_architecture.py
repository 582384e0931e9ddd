"""The architecture as a test: who may import whom, which library lives where, how long a file may be."""

from pathlib import Path

import pytest

from tests.support.architecture import Rules, cycles, plain_violations, read_modules, violations

ROOT = Path(__file__).parents[1]

RULES = Rules(
    floors=(
        ("indexer", "demo"),
        ("lazyfs.errors", "lazyfs.flock", "lazyfs.removal", "lazyfs"),
        ("lazyfs.oci",),
        ("lazyfs.source", "lazyfs.cache"),
        ("lazyfs.image",),
        ("lazyfs.mount",),
        ("lazyfs.container",),
        ("lazyfs.snapshotter",),
        (
            *("lazyfs.__main__", "lazyfs.acceptor", "lazyfs.allocator", "lazyfs.api", "lazyfs.assembly"),
            *("lazyfs.cli", "lazyfs.config"),
            *("lazyfs.control", "lazyfs.daemon", "lazyfs.exit_codes", "lazyfs.fsspec", "lazyfs.metrics"),
            *("lazyfs.mount_states", "lazyfs.policy"),
            *("lazyfs.doctor", "lazyfs.log", "lazyfs.portal", "lazyfs.printable", "lazyfs.service"),
            "lazyfs.unix_sockets",
        ),
    ),
    inner={
        "lazyfs.source": (
            *(("lazyfs.source.line",), ("lazyfs.source.base",), ("lazyfs.source.counters",)),
            ("lazyfs.source.checks", "lazyfs.source.copying", "lazyfs.source.once", "lazyfs.source.image"),
            ("lazyfs.source.auth", "lazyfs.source.local"),
            *(("lazyfs.source.http",), ("lazyfs.source.hosts",), ("lazyfs.source.registry",)),
            *(("lazyfs.source.open",), ("lazyfs.source.attachments",), ("lazyfs.source.push",)),
        ),
        "lazyfs.image": (
            ("lazyfs.image.resolve", "lazyfs.image.tasks"),
            *(("lazyfs.image.trust",), ("lazyfs.image.indexes",), ("lazyfs.image.reading",)),
            *(("lazyfs.image.boot",), ("lazyfs.image.image",)),
            ("lazyfs.image.advice", "lazyfs.image.explain", "lazyfs.image.whole"),
            *(("lazyfs.image.inside",), ("lazyfs.image.auditing",)),
            *(("lazyfs.image.pack_maker",), ("lazyfs.image.optimize",)),
        ),
    },
    homes={
        "click": ("lazyfs.cli",),
        "tqdm": ("lazyfs.cli",),
        "httpcore": ("lazyfs.source",),
        "httpx": ("lazyfs.source",),
        "http": ("lazyfs.source", "demo"),
        "ssl": ("lazyfs.source",),
        "blake3": ("indexer.digest",),
        "isal": ("indexer",),
        "numpy": ("indexer",),
        "zstandard": ("indexer", "lazyfs.container"),
        "cryptography": ("lazyfs.image.trust.key_file",),
        "packageurl": ("lazyfs.image.inside.packages",),
        "cyclonedx": ("lazyfs.image.inside.packages",),
        "spdx_tools": ("lazyfs.image.inside.packages",),
        "license_expression": ("lazyfs.image.inside.packages",),
        "boolean": ("lazyfs.image.inside.packages",),
        "fsspec": ("lazyfs.fsspec",),
        "pyfuse3": ("lazyfs.mount",),
        "grpc": ("lazyfs.snapshotter",),
        "google.protobuf": ("lazyfs.snapshotter",),
        "prometheus_client": ("lazyfs.metrics", "lazyfs.snapshotter"),
        "sqlite3": ("lazyfs.snapshotter", "lazyfs.image.inside.packages"),
        # libz in the indexer, mallopt, fallocate in the cache, mount calls and syncfs in the faces.
        "ctypes": (
            *("indexer", "lazyfs.allocator", "lazyfs.cache", "lazyfs.container", "lazyfs.mount"),
            "lazyfs.snapshotter",
        ),
        "msgspec": ("lazyfs", "indexer"),
        "trio": ("lazyfs",),
        "socket": ("lazyfs", "demo"),
        "subprocess": ("lazyfs", "demo"),
        "asyncio": (),
        "urllib.request": ("demo",),
    },
    environment=(
        *("lazyfs.api", "lazyfs.assembly", "lazyfs.config", "lazyfs.daemon", "lazyfs.cli"),
        *("lazyfs.service.survival.keeper", "lazyfs.service.worker", "indexer.__main__", "demo"),
    ),
    max_lines=450,
)


def test_the_floors_the_homes_and_the_sizes_are_kept() -> None:
    assert violations(read_modules(ROOT, ["indexer", "lazyfs", "demo"]), RULES) == []


def test_tests_and_benchmarks_are_small_and_say_what_they_are_for() -> None:
    assert plain_violations(read_modules(ROOT, ["tests", "bench"]), RULES.max_lines) == []


HOUSE = Rules(
    floors=(("formats",), ("house.low",), ("house.left", "house.right"), ("house.top", "house.cli")),
    inner={"house.left": (("house.left.low", "house.left.a"), ("house.left.up",))},
    homes={"click": ("house.cli",), "http.client": ("house.left",), "asyncio": ()},
    environment=("house.cli",),
    max_lines=5,
)

BROKEN = {
    "upward": ("formats/a.py", "import house.low", "formats.a imports house.low: house.low is above formats"),
    "sideways": (
        "house/left/a.py",
        "from house.right import thing",
        "house.left.a imports house.right: house.right is beside house.left",
    ),
    "relative": (
        "house/left/a.py",
        "from ..top import thing",
        "house.left.a imports house.top: house.top is above house.left",
    ),
    "relative in a package": (
        "house/left/__init__.py",
        "from .. import right",
        "house.left imports house.right: house.right is beside house.left",
    ),
    "inside a function": (
        "house/low.py",
        "def f():\n    from house import cli",
        "house.low imports house.cli: house.cli is above house.low",
    ),
    "upward in a room": (
        "house/left/low.py",
        "from house.left.up import thing",
        "house.left.low imports house.left.up: house.left.up is above house.left.low",
    ),
    "no floor in a room": ("house/left/attic.py", "", "house.left.attic: stands on no floor"),
    "a library away from home": (
        "house/top.py",
        "import click.testing",
        "house.top imports click.testing: its home is house.cli",
    ),
    "a submodule with a home": (
        "house/right/a.py",
        "from http import client\nimport http.client",
        "house.right.a imports http.client: its home is house.left",
    ),
    "a library without a home": (
        "house/top.py",
        "import requests",
        "house.top imports requests: it has no home",
    ),
    "a library with no home at all": (
        "house/top.py",
        "import asyncio",
        "house.top imports asyncio: its home is nowhere",
    ),
    "no floor": ("house/attic.py", "", "house.attic: stands on no floor"),
    "the environment": (
        "house/low.py",
        "import os\nos.environ.get('HOME')",
        "house.low: reads the environment",
    ),
    "the environment by name": ("house/low.py", "from os import getenv", "house.low: reads the environment"),
    "length": ("house/low.py", "\n" * 5, "house.low: has 7 lines, more than 5"),
    "a cycle": (
        "house/left/__init__.py",
        "from house.left.a import thing",
        "a cycle: house.left -> house.left.a -> house.left",
    ),
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A tree that keeps the rules of HOUSE."""
    sources = {
        "formats/__init__.py": "",
        "formats/a.py": "import struct",
        "house/low.py": "from formats.a import thing",
        "house/left/__init__.py": "",
        "house/left/a.py": "import http.client\nfrom house.left import other\nfrom house import low",
        "house/left/low.py": "import house.left.a",
        "house/left/up.py": "from house.left.low import thing",
        "house/right/__init__.py": "",
        "house/right/a.py": "from .. import low",
        "house/top.py": "import house.left.a, house.right.a, house.cli",
        "house/cli.py": "import os\nimport click\nos.environ",
    }
    for name, source in sources.items():
        write(tmp_path / name, source)
    return tmp_path


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""Of the house."""\n{source}\n')


def test_a_house_in_order_has_no_violations(house: Path) -> None:
    assert violations(read_modules(house, ["formats", "house"]), HOUSE) == []


@pytest.mark.parametrize("kind", BROKEN)
def test_each_rule_finds_what_breaks_it(house: Path, kind: str) -> None:
    path, source, line = BROKEN[kind]
    write(house / path, source)
    assert line in violations(read_modules(house, ["formats", "house"]), HOUSE)


def test_a_module_without_docstring_is_found(house: Path) -> None:
    (house / "house/low.py").write_text("x = 1\n")
    modules = read_modules(house, ["formats", "house"])
    assert violations(modules, HOUSE) == ["house.low: has no docstring"]
    assert plain_violations(modules, HOUSE.max_lines) == ["house.low: has no docstring"]


def test_a_tree_that_is_not_there_has_no_modules(tmp_path: Path) -> None:
    assert cycles(read_modules(tmp_path, ["absent"])) == []
