"""`python -m bench cold` from the image to the page: one workload, two methods, no distance."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.cold.record import Start, load
from tests.support.docker_release import docker_programs
from tests.support.images import build_image, write_layout
from tests.support.lab import manifest_digest
from tests.support.tars import file, tar

pytestmark = pytest.mark.lab


PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    char version[100] = "";
    FILE *file = fopen("/etc/version", "r");
    fgets(version, sizeof version, file);
    printf("%s %s\\n", version, getenv("WANTED"));
    return 0;
}
"""
UNREAD = 6 << 20


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """An image with a program that reads one file, and a lower layer that nobody reads."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "main.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-o", "main", "main.c"], cwd=folder, check=True)
    image = build_image(
        [
            tar(file(b"unread", random.Random(1).randbytes(UNREAD))),
            tar(file(b"main", (folder / "main").read_bytes(), mode=0o755), file(b"etc/version", b"12.5")),
        ]
    )
    return write_layout(folder / "layout", {"latest": image})


@pytest.fixture
def workloads(layout, tmp_path):
    """A file with one workload."""
    file = tmp_path / "workloads.toml"
    file.write_text(
        f"""
        [[workload]]
        name = "version"
        image = "oci:{layout}:latest"
        command = ["/main"]
        environment = {{ WANTED = "indeed" }}
        ready = {{ line = "12.5 indeed" }}
        """
    )
    return file


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where images and registry of the benchmark are kept, for this test only."""
    monkeypatch.setattr("bench.cold.command.HOME", tmp_path / "bench")
    (tmp_path / "bench").mkdir()
    return tmp_path / "bench"


def test_a_start_is_measured_from_image_to_page(workloads, layout, home, tmp_path, capsys):
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    command = ["cold", "--workloads", str(workloads), "--methods", "full-skopeo,lazyfs-run", "--repeat", "1"]
    main([*command, "--world", "loopback", "--json", str(out), "--html", str(page)])

    record = load(out)
    assert [series.failure for series in record.series] == ["", ""]
    full, lazy = (series.starts for series in record.of("version"))
    manifest = manifest_of(layout)
    sizes = [manifest["config"]["size"], *(layer["size"] for layer in manifest["layers"])]
    assert record.workloads[0].image_bytes == sum(sizes[1:])

    (whole,) = full
    assert whole.requests == len(whole.exchanges) == len(sizes) + 2  # the API's root, the manifest
    blobs = [exchange for exchange in whole.exchanges if "/blobs/" in exchange.target]
    assert sorted(exchange.down for exchange in blobs) > sorted(sizes)
    assert sum(sizes) < whole.down < sum(sizes) + 1000 * whole.requests

    (part,) = lazy
    assert part.requests == len(part.exchanges)
    assert part.down < UNREAD / 2
    for start in (whole, part):
        check_order(start)
    assert {use.name for use in part.processes} >= {"lazyfs"}

    told = capsys.readouterr().out
    assert "full-skopeo" in told
    assert "not measured" not in told
    assert page.read_text().count("data:image/png") == 3
    assert [path.name for path in home.glob("run-*")] == []


def check_order(start: Start) -> None:
    """Pulled, ready, done."""
    assert 0 <= start.pulled_s < start.ready_s <= start.completed_s


def manifest_of(layout):
    digest = manifest_digest(layout).removeprefix("sha256:")
    return json.loads((layout / "blobs" / "sha256" / digest).read_bytes())


def test_another_lazyfs_is_measured_beside_this_one(workloads, home, tmp_path):
    own, other, used, out = (
        Path(sys.executable).parent,
        tmp_path / "lazyfs",
        tmp_path / "used",
        tmp_path / "out",
    )
    for name in ("lazyfs", "python"):
        program = other.with_name(name)
        program.write_text(f'#!/bin/sh\necho "$1" >>{used}\nexec {own / name} "$@"\n')
        program.chmod(0o755)
    methods = f"lazyfs-run,lazyfs-run@{other}"
    main(["cold", "--workloads", str(workloads), "--methods", methods, "--world", "loopback",
          "--repeat", "1", "--json", str(out)])  # fmt: skip

    record = load(out)
    assert [series.method for series in record.series] == methods.split(",")
    assert [series.failure for series in record.series] == ["", ""]
    assert used.read_text().split() == ["run", "-c", "run"]  # warmed up, then measured


def test_docker_is_measured(workloads, home, lab, tmp_path):
    names, out = ["full-docker", "lazyfs-docker", "lazyfs-docker-pack"], tmp_path / "out"
    main(["cold", "--workloads", str(workloads), "--methods", ",".join(names), "--world", "loopback",
          "--repeat", "1", "--programs", str(docker_programs(lab)), "--json", str(out)])  # fmt: skip

    record = load(out)
    assert [series.failure for series in record.series] == ["", "", ""]
    starts = {series.method: series.starts[0] for series in record.of("version")}
    assert list(starts) == names
    assert starts["full-docker"].down > UNREAD
    for name, start in starts.items():
        check_order(start)
        assert start.down < UNREAD / 2 or name == "full-docker"
        assert {use.name for use in start.processes} >= {"dockerd", "containerd"}


@pytest.mark.parametrize("name", ["full-docker", "lazyfs-docker"])
def test_a_method_whose_programs_are_missing_says_which(workloads, home, monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr("bench.cold.methods.tools._PATH", str(tmp_path / "none"))
    for program in ("docker", "containerd", "containerd-shim-runc-v2", "runc"):
        (tmp_path / program).touch(mode=0o755)
    main(["cold", "--workloads", str(workloads), "--methods", name, "--world", "loopback",
          "--programs", str(tmp_path)])  # fmt: skip
    assert "not measured: dockerd not installed: --programs FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--methods", "magic"], "no method magic"),
        (["--methods", "no.such:Thing"], "no method no.such:Thing"),
        (["--methods", "lazyfs-run@"], "no method lazyfs-run@"),
        (["--methods", "full-skopeo@/bin/lazyfs"], "no method full-skopeo@"),
        (["--only", "other"], "no workload other"),
        (["--world", "far"], "no distance like"),
    ],
)
def test_what_cannot_be_measured_is_said(workloads, home, words, complaint):
    with pytest.raises(SystemExit, match=complaint):
        main(["cold", "--workloads", str(workloads), *words])
