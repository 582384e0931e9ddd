"""Tar headers that we write: read back by our parser, by Python's and by GNU tar."""

import io
import subprocess
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.tar.write import END, header
from indexer.toc import Kind, Member
from tests.support.tar_reading import parse
from tests.support.trees import tree_members


def written(members: list[Member]) -> bytes:
    """A tar of members with zeros for contents."""
    return b"".join(header(m) + bytes(m.size) + bytes(-m.size % 512) for m in members) + END


def as_read(member: Member) -> Member:
    """A member as a tar can say it: a PAX record without a value deletes, so there are no empty xattrs."""
    mode = 0o777 if member.kind is Kind.SYMLINK else member.mode
    xattrs = tuple(pair for pair in member.xattrs if pair[1])
    return member._replace(mode=mode, xattrs=xattrs, data_start=0)


@settings(max_examples=150)
@given(tree_members(layers=1, device_size=1 << 14))
def test_what_is_written_reads_back_as_it_was(layers: list[list[Member]]) -> None:
    (members,) = layers
    found = parse(written(members)).members
    expected = [as_read(member) for member in members]
    assert [member._replace(data_start=0) for member in found] == expected


@given(
    st.integers(-(2**40), 2**40),
    st.integers(0, 999_999_999),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**40),
)
def test_numbers_of_any_size_reach_python(seconds: int, nanos: int, owner: int, size: int) -> None:
    mtime_ns = seconds * 10**9 + nanos
    member = Member(b"f", Kind.REGULAR, uid=owner, gid=owner, mtime_ns=mtime_ns, size=size)
    with tarfile.open(fileobj=io.BytesIO(header(member) + END)) as tar:
        found = tar.next()
    assert found is not None
    assert (found.uid, found.gid, found.size) == (owner, owner, size)
    assert abs(found.mtime - mtime_ns / 10**9) <= abs(seconds) * 2**-52 + 1e-9


def test_gnu_tar_lists_names_of_any_bytes(tmp_path) -> None:
    members = [
        Member(b"", Kind.DIRECTORY),
        Member("café ☕".encode(), Kind.REGULAR, size=3),
        Member(b"\xff" * 200, Kind.DIRECTORY),
        Member(b"l", Kind.SYMLINK, link=b"\xfe" * 300),
        Member(b"hard", Kind.HARDLINK, link="café ☕".encode()),
        Member(b"x=y", Kind.FIFO, xattrs=((b"user.a=b", b"\0\xff\n"),)),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(written(members))
    done = subprocess.run(
        ["tar", "tf", path, "--quoting-style=literal", "--show-stored-names"], capture_output=True, check=True
    )
    names = [b"./", "café ☕".encode(), b"\xff" * 200 + b"/", b"l", b"hard", b"x=y"]
    assert done.stdout.split(b"\n")[:-1] == names
    assert done.stderr == b""
