"""du, diff, layers, packages and export as commands: answers, exit codes, and what they move."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs import api
from lazyfs.cli.output import human, write_table
from tests.support.images import build_image, write_layout
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import directory, file, hardlink, symlink, tar, whiteout

NOISE = random.Random(7).randbytes(2 << 20)
STATUS = "".join(
    f"Package: p{n}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {n}\n\n" for n in range(99)
).encode()
LOWER = tar(
    file(b"a/noise", NOISE),
    directory(b"var/lib/dpkg"),
    file(b"var/lib/dpkg/status", STATUS),
    file(b"etc/os-release", b"ID=debian\nVERSION_ID=12\n"),
    file(b"z/noise", NOISE[::-1]),
    file(b"z/\xff\n", b"odd"),
)
UPPER = tar(
    file(b"b/new", b"new"), whiteout(b"z/noise"), hardlink(b"b/again", b"a/noise"), symlink(b"l", b"a")
)


@pytest.fixture
def reference() -> Iterator[tuple[Registry, str]]:
    """A registry, and the name of a small image there."""
    with Registry() as registry:
        registry.push("app", build_image([LOWER, UPPER]))
        registry.push("app", build_image([LOWER]), tag="lower")
        yield registry, f"{registry.host}/app"


@pytest.fixture
def layout(tmp_path) -> str:
    return f"oci:{write_layout(tmp_path / 'layout', {'latest': build_image([LOWER, UPPER])})}:latest"


def without_content(lazyfs: LazyfsRunner, *references: str) -> None:
    """Leave the indexes of images in the cache, and nothing of their content."""
    for reference in references:
        lazyfs("index", reference)
    subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)


COMMANDS = {
    "du": ["du"],
    "du --layers": ["du", "--layers"],
    "layers": ["layers"],
    "find": ["find", "-name", "*"],
    "tree": ["tree"],
    "ls": ["ls", "-l"],
    "diff --quick": ["diff", "--quick"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_looking_at_names_moves_nothing_but_the_manifest(name, lazyfs, reference):
    registry, image = reference
    without_content(lazyfs, image, f"{image}:lower")
    registry.journal.clear()
    command, *options = COMMANDS[name]
    images = [image, f"{image}:lower"] if command == "diff" else [image]
    done = lazyfs(command, *images, *options, exit_code=int(command == "diff"))
    assert done.stdout
    assert done.stderr == ""
    assert {kind for _, kind in registry.requests} == {"manifest"}
    assert registry.requests.total() == len(images)


def test_packages_moves_the_databases_and_little_around_them(lazyfs, reference):
    registry, image = reference
    without_content(lazyfs, image)
    registry.journal.clear()
    facts = json.loads(lazyfs("packages", image, "--json").stdout)
    assert [package["name"] for package in facts["packages"]] == sorted(f"p{n}" for n in range(99))
    assert facts["packages"][0]["purl"] == "pkg:deb/debian/p0@0?arch=amd64&distro=debian-12"
    assert registry.journal.bytes_sent["blob"] < len(NOISE) // 2


@pytest.mark.parametrize("other", ["python", "nginx"])
async def test_images_that_share_layers_are_compared_for_under_a_hundredth_of_their_bytes(
    other, lab_image, tmp_path
):
    names = [f"oci:{lab_image(name)}:latest" for name in ("base", other)]
    cache = tmp_path / "cache"
    for name in names:
        async with api.open_async(name, cache_dir=cache):
            pass
    await trio.run_process(["rm", "-rf", cache / "layers"])
    async with (
        api.open_async(names[0], cache_dir=cache) as old,
        api.open_async(names[1], cache_dir=cache) as new,
    ):
        found = await old.difference(new)
        layers = [(image, layer) for image in (old.image, new.image) for layer in image.layers]
        moved = sum(layer.statistics().fetched.bytes_fetched for _, layer in layers)
        size = sum(
            layer.descriptor.size for image in (old.image, new.image) for layer in image.resolved.layers
        )
    assert len(found.changes) > 500
    assert moved < size / 100


def test_du_tells_like_du(lazyfs, layout):
    total = len(NOISE) + len(STATUS) + 24 + 3 + 3
    assert lazyfs("du", layout, "-d", "1").stdout.splitlines() == [
        f"{len(NOISE)}\t/a",
        "3\t/b",
        "24\t/etc",
        f"{len(STATUS)}\t/var",
        "3\t/z",
        f"{total}\t/",
    ]
    assert lazyfs("du", layout, "-s", "-H").stdout == "2.1M\t/\n"
    assert lazyfs("du", layout, "/z", "-a").stdout == "3\t/z/\udcff\n\n3\t/z\n"
    largest = lazyfs("du", layout, "--sort", "-d", "1").stdout.splitlines()
    assert largest[:2] == [f"{total}\t/", f"{len(NOISE)}\t/a"]
    facts = json.loads(lazyfs("du", layout, "/z", "-a", "--json").stdout)
    assert facts == [{"path": "/z/\udcff\n", "size": 3, "files": 1}, {"path": "/z", "size": 3, "files": 1}]
    layers = json.loads(lazyfs("du", layout, "--layers", "--json").stdout)
    assert [layer["size"] for layer in layers] == [total - 3, 3]


def test_diff_tells_letters_and_exit_codes(lazyfs, reference):
    _, image = reference
    lower = f"{image}:lower"
    expected = ["A /b", "A /b/again", "A /b/new", "A /l", "D /z/noise"]
    assert lazyfs("diff", lower, image, exit_code=1).stdout.splitlines() == expected
    assert lazyfs("diff", lower, image, "-0", exit_code=1).stdout.split("\0") == [*expected, ""]
    assert lazyfs("diff", image, image).stdout == ""
    facts = json.loads(lazyfs("diff", lower, image, "/z", "--json", exit_code=1).stdout)
    assert facts == {
        "changes": [{"kind": "deleted", "path": "/z/noise"}],
        "read_pairs": 0,
        "read_bytes": 0,
    }
    assert "neither image has /nope" in lazyfs("diff", image, lower, "/nope", exit_code=66).stderr


def test_diff_tells_what_changed(lazyfs, tmp_path):
    images = {
        "old": build_image([tar(file(b"f", b"1", mode=0o600), file(b"g", b"1"))]),
        "new": build_image([tar(file(b"f", b"2"), file(b"g", b"1", mtime=9))]),
    }
    layout = write_layout(tmp_path / "layout", images)
    names = [f"oci:{layout}:old", f"oci:{layout}:new"]
    assert lazyfs("diff", *names, exit_code=1).stdout == "C /f\tmode,content\n"
    assert lazyfs("diff", *names, "--times", exit_code=1).stdout == "C /f\tmode,content\nC /g\tmtime\n"
    facts = json.loads(lazyfs("diff", *names, "--json", exit_code=1).stdout)
    assert facts["changes"][0]["aspects"] == {"mode": {"old": "0600", "new": "0644"}, "content": None}
    assert (facts["read_pairs"], facts["read_bytes"]) == (2, 4)


def test_layers_tells_what_each_does_and_what_is_wasted(lazyfs, layout):
    lines = lazyfs("layers", layout).stdout.splitlines()
    assert lines[0].split() == [
        *("#", "COMPRESSED", "CONTENT", "ADDED", "CHANGED", "HIDDEN", "WASTED"),
        "CREATED",
        "BY",
    ]
    assert lines[2].split()[2:] == ["3", "4", "0", "1", "0", "layer", "1"]
    content = 2 * len(NOISE) + len(STATUS) + 24 + 3 + 3
    efficiency = 100 * (1 - len(NOISE) / content)
    assert lines[4] == f"efficiency {efficiency:.2f} %, {len(NOISE)} of {content} wasted"
    assert lines[-1].split() == [str(len(NOISE)), "1", "/z/noise"]
    facts = json.loads(lazyfs("layers", layout, "--json").stdout)
    assert [layer["created_by"] for layer in facts["layers"]] == ["layer 0", "layer 1"]
    assert facts["layers"][1]["hidden"] == {"names": 1, "size": len(NOISE)}
    assert facts["wasted_files"] == [{"path": "/z/noise", "size": len(NOISE), "layers": [0]}]


def test_packages_tells_a_table_and_bills(lazyfs, layout):
    table = lazyfs("packages", layout).stdout.splitlines()
    assert [line.split() for line in table[:2]] == [
        ["NAME", "VERSION", "ARCHITECTURE", "TYPE", "SOURCE"],
        ["p0", "0", "amd64", "deb"],
    ]
    assert len(table) == 100
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    cyclonedx = json.loads(lazyfs("packages", layout, "--format", "cyclonedx", env=epoch).stdout)
    assert cyclonedx["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    spdx = json.loads(lazyfs("packages", layout, "--format", "spdx", env=epoch).stdout)
    assert spdx["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    assert len(spdx["packages"]) == len(cyclonedx["components"]) + 1 == 101
    assert (
        "SOURCE_DATE_EPOCH" in lazyfs("packages", layout, env={"SOURCE_DATE_EPOCH": "x"}, exit_code=78).stderr
    )


def test_a_database_that_cannot_be_used_is_told_beside_what_the_others_tell(lazyfs, tmp_path):
    image = build_image(
        [tar(file(b"var/lib/rpm/Packages", b"?"), file(b"lib/apk/db/installed", b"P:x\nV:1\n"))]
    )
    layout = write_layout(tmp_path / "layout", {"latest": image})
    done = lazyfs("packages", f"oci:{layout}", exit_code=65)
    assert done.stdout.splitlines()[1].split() == ["x", "1", "apk"]
    problem = "a Berkeley DB is cut short"
    assert done.stderr == f"lazyfs: /var/lib/rpm/Packages: {problem}\n"


def test_export_writes_a_tar_to_a_pipe_or_a_file_and_to_no_terminal(lazyfs, layout, tmp_path):
    lazyfs("index", layout)
    command = [executable(), "export", layout, "--cache-dir", str(lazyfs.cache_dir)]
    environment = lazyfs.environment()
    piped = subprocess.run(command, check=True, capture_output=True, env=environment)
    lazyfs("export", layout, "-o", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == piped.stdout
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["a.tar"]
    with tarfile.open(tmp_path / "a.tar", errors="surrogateescape") as found:
        names = found.getnames()
        assert found.extractfile("a/noise").read() == NOISE
    listed = lazyfs("find", layout, "-0").stdout.split("\0")[:-1]
    assert [f"/{name}".replace("/.", "/", 1) for name in names] == listed
    master, slave = pty.openpty()
    refused = subprocess.run(command, check=False, stdout=slave, stderr=subprocess.PIPE, env=environment)
    os.close(master)
    os.close(slave)
    assert refused.returncode == 64
    assert b"a tar is not for a terminal" in refused.stderr


def test_exports_to_one_file_at_once_are_both_whole(lazyfs, layout, tmp_path):
    lazyfs("index", layout)
    target = tmp_path / "a.tar"
    command = [executable(), "export", layout, "-o", str(target), "--cache-dir", str(lazyfs.cache_dir)]
    environment = lazyfs.environment()
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 4
    piped = subprocess.run([*command[:3], *command[5:]], check=True, capture_output=True, env=environment)
    assert target.read_bytes() == piped.stdout
    assert list(tmp_path.glob("a.tar*")) == [target]


def test_an_export_into_a_pipe_leaves_it_one(lazyfs, layout, tmp_path):
    pipe, told = tmp_path / "pipe", tmp_path / "told"
    os.mkfifo(pipe)
    with told.open("wb") as out, subprocess.Popen(["timeout", "60", "cat", pipe], stdout=out):
        lazyfs("export", layout, "-o", pipe)
    assert pipe.is_fifo()
    with tarfile.open(told, errors="surrogateescape") as found:
        assert found.extractfile("a/noise").read() == NOISE


def test_an_export_that_fails_leaves_nothing_under_its_name(lazyfs, tmp_path):
    image = build_image([tar(file(b"f", NOISE))])
    layout = write_layout(tmp_path / "layout", {"latest": image})
    without_content(lazyfs, f"oci:{layout}")
    blob = next(path for path in (layout / "blobs/sha256").iterdir() if path.stat().st_size > len(NOISE))
    blob.write_bytes(bytes(blob.stat().st_size))
    done = lazyfs("export", f"oci:{layout}", "-o", tmp_path / "a.tar", exit_code=65)
    assert done.stderr
    assert list(tmp_path.glob("a.tar*")) == []


def test_an_export_that_is_killed_leaves_nothing(tmp_path):
    target = tmp_path / "a.tar"
    target.write_bytes(b"old")
    script = (
        "import os, sys; from pathlib import Path; from lazyfs.cli.export import replacing\n"
        "with replacing(Path(sys.argv[1])) as descriptor:\n"
        "    os.write(descriptor, b'new'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.tar": b"old"}


ERRORS = {
    "du": (["du", "{}", "/nope"], 66, "the image has no /nope"),
    "cat": (["cat", "{}", "/nope"], 66, "the image has no /nope"),
    "cat of a directory": (["cat", "{}", "/etc"], 66, "/etc is a directory"),
    "cp": (["cp", "{}", "/etc", "/tmp/never"], 66, "/etc is a directory; copy it with -r"),
    "no image": (["layers", "oci:/nope"], 66, "/nope"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_not_there_in_one_line(name, lazyfs, layout):
    (command, *arguments), code, said = ERRORS[name]
    done = lazyfs(command, *(argument.format(layout) for argument in arguments), exit_code=code)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_names_of_any_bytes_come_out_of_every_listing(lazyfs, layout):
    assert "/z/\udcff\n" in {fact["path"] for fact in json.loads(lazyfs("find", layout, "--json").stdout)}
    assert "/z/\udcff\n" in lazyfs("find", layout, "-0").stdout.split("\0")
    assert Path(os.fsdecode(b"\xff\n")).name in lazyfs("ls", layout, "/z").stdout


def test_a_line_break_in_a_name_makes_no_row(capsysbinary):
    write_table([["SIZE", "PATH"], ["1", "/a\n2  /b\x1b\udcff"]], "rl")
    assert capsysbinary.readouterr().out == b"SIZE  PATH\n   1  /a?2  /b??\n"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0"),
        (1023, "1023"),
        (1025, "1.1K"),
        (10188, "10K"),
        (1047552, "1023K"),
        (1047553, "1.0M"),
        (3 << 50, "3072T"),
    ],
)
def test_sizes_are_rounded_as_du_rounds_them(size, shown):
    assert human(size) == shown
