"""The demo does what it says, cleans up when it is stopped, and its parts are true to their models."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo import host
from demo.registry import Registry, Traffic, serve
from indexer.digest import sha256_digest
from tests.support import lab_oddities
from tests.support.mounts import mounts_below

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / "demo"
COMMAND = [sys.executable, "-m", "demo", "--mbit", "0", "--delay-ms", "0"]


def test_the_demo_ends_well_and_shows_what_was_fetched() -> None:
    done = subprocess.run(
        COMMAND, cwd=ROOT, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hidden by a whiteout" in done.stdout
    assert "are one file" in done.stdout
    rows = {line[:16].strip(): line.split() for line in done.stdout.splitlines() if "MB  " in line}
    assert rows.keys() == {"full pull", "lazyfs, cold", "lazyfs, again"}


def test_a_demo_that_is_stopped_leaves_nothing_mounted(tmp_path: Path) -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = next(
            Path(line.split()[-1]).parent for line in process.stdout if line.startswith("$ lazyfs mount")
        )
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert mounts_below(folder) == []
    assert not folder.exists()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The demo's registry over the image of oddities."""
    layout = tmp_path_factory.mktemp("oddities") / "layout"
    lab_oddities.write_layout(layout)
    with serve(layout) as running:
        yield running


@pytest.fixture
def client(registry: Registry) -> Iterator[httpx.Client]:
    """A client that asks for blobs and manifests of the registry."""
    with httpx.Client(base_url=f"http://{registry.address}/v2/some/repository") as running:
        yield running


def test_the_demo_registry_serves_manifest_and_blobs_and_counts_them(
    registry: Registry, client: httpx.Client
) -> None:
    before = registry.link.traffic()
    by_tag = client.get("/manifests/latest")
    digest = by_tag.headers["docker-content-digest"]
    assert client.get(f"/manifests/{digest}").content == by_tag.content
    layer = by_tag.json()["layers"][0]
    assert sha256_digest(client.get(f"/blobs/{layer['digest']}").content) == layer["digest"]
    head = client.head(f"/blobs/{layer['digest']}")
    assert (head.headers["content-length"], head.content) == (str(layer["size"]), b"")
    sent = 2 * len(by_tag.content) + layer["size"]
    assert registry.link.traffic() - before == Traffic(requests=4, bytes=sent)


@pytest.mark.parametrize(
    "path", ["/manifests/v2", "/blobs/sha256:" + 64 * "0", "/blobs/../../oci-layout", "/tags"]
)
def test_the_demo_registry_has_nothing_else(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=10-", 206, 10, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=0-", 200, 0, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("bytes=99999999-", 416, 0, 0),
        ("bytes=7-6", 416, 0, 0),
    ],
)
def test_the_demo_registry_serves_ranges(
    client: httpx.Client, asked: str, status: int, start: int, end: int | None
) -> None:
    url = "/blobs/" + client.get("/manifests/latest").json()["layers"][1]["digest"]
    whole = client.get(url).content
    answer = client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, whole[start:end])


def test_a_closure_is_all_that_leads_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/file").write_text("found")
    (tmp_path / "relative").symlink_to("real/../real/deep")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    (tmp_path / "absolute/name").symlink_to("../deep/file")
    (tmp_path / "unrelated").write_text("not needed")
    steps = sorted(set(host.closure(tmp_path / "absolute/name")))
    below = [str(step.relative_to(tmp_path)) for step in steps if step.is_relative_to(tmp_path)]
    assert below == [".", "absolute", "real", "real/deep", "real/deep/file", "real/deep/name", "relative"]


def test_what_the_demo_copies_runs_elsewhere(tmp_path: Path) -> None:
    programs = host.tools()
    for step in sorted(
        {s for path in [*programs, *host.shared_libraries(programs)] for s in host.closure(path)}
    ):
        copy = tmp_path / step.relative_to("/")
        if step.is_symlink():
            copy.symlink_to(step.readlink())
        elif step.is_dir():
            copy.mkdir()
        else:
            copy.write_bytes(step.read_bytes())
            copy.chmod(step.stat().st_mode)
    listing = subprocess.run(["chroot", tmp_path, "/bin/sh", "-c", "ls /"], check=True, capture_output=True)
    assert listing.stdout.split() == sorted(os.fsencode(path.name) for path in tmp_path.iterdir())
