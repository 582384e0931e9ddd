"""What a container is given beside its image, as it is written on a command line."""

import os
from pathlib import Path

import pytest

from lazyfs.container.given import Tmpfs, Volume, parse_device, parse_size, parse_tmpfs, parse_volume
from lazyfs.errors import ContainerError


def test_a_volume_names_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert parse_volume("./data:/d") == Volume(tmp_path / "data", "/d", read_only=False)
    assert parse_volume(f"{tmp_path}/data:/d:ro") == Volume(tmp_path / "data", "/d", read_only=True)
    for wrong in ("/x", "./data:d", "./data:/d:rx", ":/d", "./absent:/d"):
        with pytest.raises(ContainerError):
            parse_volume(wrong)
    with pytest.raises(ContainerError, match=r"write \./name"):
        parse_volume("name:/d")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1b", 1), ("64k", 64 << 10), ("512M", 512 << 20), ("2g", 2 << 30)],
)
def test_a_size_may_have_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5g", "1mk", "1t", "1 m", "9" * 5000, "²"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ContainerError, match="512m"):
        parse_size(text)


def test_a_tmpfs_is_closed_until_its_options_say_otherwise():
    assert parse_tmpfs("/t") == Tmpfs("/t", ("nosuid", "nodev", "noexec"))
    given = Tmpfs("/t", ("nosuid", "nodev", "size=1m", "exec", "mode=700"))
    assert parse_tmpfs("/t:size=1m,exec,rw,mode=700") == given
    for wrong in ("t", "", ":size=1m", "/t:bind", "/t:size", "/t:lowerdir=/etc"):
        with pytest.raises(ContainerError):
            parse_tmpfs(wrong)


def test_a_device_is_named_as_docker_does():
    null = parse_device("/dev/null")
    assert (null.source, null.target, null.access, null.kind) == (Path("/dev/null"), "/dev/null", "rwm", "c")
    assert os.major(null.status.st_rdev) == 1
    assert (parse_device("/dev/null:/dev/x").target, parse_device("/dev/null:r").access) == ("/dev/x", "r")
    full = parse_device("/dev/null:/dev/x:rw")
    assert (full.target, full.access) == ("/dev/x", "rw")
    for wrong in ("", "/dev/null:x", "/dev/null:/x:z", "/etc/passwd", "/dev/absent", "/dev/null\0"):
        with pytest.raises(ContainerError):
            parse_device(wrong)
