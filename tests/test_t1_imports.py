"""What the processes of a start do not import: each of these would cost more than the mount itself."""

import subprocess
import sys

import pytest

NETWORK = ("httpx", "http.client", "ssl", "trio", "asyncio")
REST = ("cryptography", "cyclonedx", "fsspec", "google.protobuf", "grpc", "numpy", "sqlite3", "tqdm")


@pytest.mark.parametrize(
    ("modules", "others"),
    [
        ("lazyfs.cli.main, lazyfs.cli.run", (*NETWORK, *REST, "pyfuse3", "zstandard")),
        ("lazyfs.cli.main, lazyfs.cli.mounting", (*NETWORK, *REST, "pyfuse3", "zstandard")),
        ("lazyfs.daemon.process", (*REST, "asyncio")),
    ],
)
def test_a_start_imports_only_what_it_needs(modules: str, others: tuple[str, ...]) -> None:
    program = f"import sys, {modules}; print(*(name for name in {others!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
