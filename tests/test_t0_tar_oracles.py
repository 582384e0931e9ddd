"""The tar parser against two others: what Python's tarfile reads of its own archives, what GNU tar stored."""

import io
import os
import stat
import subprocess
import tarfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from indexer.toc import Kind, Member
from tests.support.tar_reading import content, parse

KINDS = {
    tarfile.REGTYPE: Kind.REGULAR,
    tarfile.AREGTYPE: Kind.REGULAR,
    tarfile.CONTTYPE: Kind.REGULAR,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}
DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
SPARSE_PIECES = 3 + 60
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)

names = st.lists(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
    ).filter(lambda text: text not in {".", ".."}),
    min_size=1,
    max_size=5,
).map("/".join)


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@st.composite
def tarinfos(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    """A member as tarfile describes it, and its contents; a third of them with PAX records of their own."""
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from(sorted(KINDS)))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.tuples(*[st.integers(0, 2**32 - 2) | st.integers(0, 70_000)] * 2))
    info.mtime = draw(st.integers(0, 2**34))
    data = b""
    if info.type in LINKS:
        info.linkname = draw(names)
    elif info.type in DEVICES:
        info.devmajor, info.devminor = draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)))
    elif info.type not in (tarfile.DIRTYPE, tarfile.FIFOTYPE):
        data = draw(st.binary(max_size=1500))
        info.size = len(data)
    records = {}
    if draw(st.integers(0, 2)) == 0:
        seconds = draw(st.integers(-(2**40), 2**40))
        records["mtime"] = f"{seconds}.{draw(st.integers(0, 10**9 - 1)):09}"
        for name, value in draw(st.dictionaries(names, names, max_size=3)).items():
            assume("=" not in name)
            records["SCHILY.xattr.user." + name] = value
    info.pax_headers = records
    return info, data


def as_tarfile_reads(info: tarfile.TarInfo) -> Member:
    """The member we expect where tarfile gives `info`."""
    kind = KINDS[info.type]
    size = info.size if kind is Kind.REGULAR else 0
    exact = Decimal(info.pax_headers.get("mtime", info.mtime))
    prefix = "SCHILY.xattr."
    xattrs = {k.removeprefix(prefix): v for k, v in info.pax_headers.items() if k.startswith(prefix)}
    return Member(
        path=to_bytes(info.name),
        kind=kind,
        mode=0o777 if kind is Kind.SYMLINK else info.mode,
        uid=info.uid,
        gid=info.gid,
        mtime_ns=int(exact * 10**9),
        size=size,
        data_start=info.offset_data if size else 0,
        link=to_bytes(info.linkname) if info.type in LINKS else b"",
        device=(info.devmajor, info.devminor) if info.type in DEVICES else (0, 0),
        xattrs=tuple(sorted((to_bytes(k), to_bytes(v)) for k, v in xattrs.items())),
    )


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(entries=st.lists(tarinfos(), max_size=6))
@settings(max_examples=60)
def test_what_tarfile_writes_we_read_as_it_does(
    tar_format: int, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        for info, data in entries:
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # ustar cannot say it; nothing was written
                assert tar_format == tarfile.USTAR_FORMAT
    data = stream.getvalue()
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        infos = list(archive)
        expected = [(as_tarfile_reads(info), read_back(archive, info)) for info in infos]
    parser = parse(data)
    assert [(m, content(data, parser, m)) for m in parser.members] == expected


def read_back(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The contents of a regular file; of others none."""
    file = archive.extractfile(info) if info.isreg() else None
    return file.read() if file else b""


def make_tree(root: Path) -> None:
    """Files of many kinds and sizes, two of them sparse (of 3 and of 60 pieces), with fixed times."""
    long = root / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    (long / ("f" * 120)).write_bytes(b"long")
    (root / "empty").touch()
    (root / "set").write_bytes(os.urandom(70_001))
    (root / "set").chmod(0o4711)
    (root / "link").symlink_to("l" * 150)
    (root / "hard").hardlink_to(root / "set")
    (root / os.fsdecode(b"\xff \n\\")).write_bytes(b"odd")
    os.mkfifo(root / "fifo", 0o600)
    for name, count in (("few", 3), ("many", 60)):
        with (root / name).open("wb") as file:
            for number in range(count):
                file.seek(number * 20_480)
                file.write(b"%04d" % number * 1000)
            file.truncate(count * 20_480 + 123)
    (root / "hole").touch()
    os.truncate(root / "hole", 1 << 20)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number * 1_111_111_111), follow_symlinks=False)


def gnu_tar(root: Path, *options: str) -> bytes:
    """What GNU tar makes of the tree below `root`; --hole-detection=raw is --sparse on any file system."""
    command = ["tar", "--sort=name", *options, "-cf", "-", "-C", str(root), "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def compare(root: Path, data: bytes, grain_ns: int) -> None:
    """Every member is the file it was made of, and every file has its member."""
    parser = parse(data)
    found = {os.fsdecode(m.path): m for m in parser.members}
    assert set(found) == {"", *(str(path.relative_to(root)) for path in root.rglob("*"))}
    for name, m in found.items():
        status = (root / name).lstat()
        assert (m.uid, m.gid) == (status.st_uid, status.st_gid)
        assert m.mtime_ns == status.st_mtime_ns // grain_ns * grain_ns
        if m.kind is Kind.HARDLINK:
            assert (root / os.fsdecode(m.link)).samefile(root / name)
        elif m.kind is Kind.SYMLINK:
            assert m.link == os.fsencode((root / name).readlink())
        else:
            assert m.mode == stat.S_IMODE(status.st_mode)
            assert (m.kind is Kind.DIRECTORY) == stat.S_ISDIR(status.st_mode)
            assert (m.kind is Kind.FIFO) == stat.S_ISFIFO(status.st_mode)
        if m.kind is Kind.REGULAR:
            assert content(data, parser, m) == (root / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        "--format=oldgnu",
        "--format=gnu",
        "--format=posix",
        "--format=oldgnu --hole-detection=raw",
        "--format=gnu --hole-detection=raw",
        "--format=posix --hole-detection=raw --sparse-version=0.0",
        "--format=posix --hole-detection=raw --sparse-version=0.1",
        "--format=posix --hole-detection=raw --sparse-version=1.0",
    ],
)
def test_what_gnu_tar_stores_we_find(tmp_path: Path, options: str) -> None:
    make_tree(tmp_path)
    data = gnu_tar(tmp_path, *options.split())
    compare(tmp_path, data, 1 if "posix" in options else 10**9)
    assert len(parse(data).extents) == (SPARSE_PIECES if "hole" in options else 0)


def test_gnu_tar_in_old_formats(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"data" * 200)
    (tmp_path / "link").symlink_to("d")
    compare(tmp_path, gnu_tar(tmp_path, "--format=v7"), 10**9)
    compare(tmp_path, gnu_tar(tmp_path, "--format=ustar"), 10**9)


def test_xattrs_that_gnu_tar_stores_we_find(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    xattrs = {"user.b": b"\0\n=\xff", "user.a": b"x" * 1000}
    for name, value in xattrs.items():
        os.setxattr(path, name, value)
    data = gnu_tar(tmp_path, "--xattrs")
    (member,) = (m for m in parse(data).members if m.path == b"file")
    stored = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert dict(member.xattrs) == {os.fsencode(name): value for name, value in stored.items()}
    assert [name for name, _ in member.xattrs] == sorted(name for name, _ in member.xattrs)
    assert set(xattrs) <= set(stored)
