"""Images through fsspec: by URL, chained, by range, and with the errors its users expect."""

import csv
import os
import pickle
import subprocess
import sys
import zipfile
from io import BytesIO

import fsspec
import pytest

from lazyfs.errors import BadReference
from lazyfs.fsspec import LazyFileSystem
from tests.support.images import build_image, write_layout
from tests.support.tars import char, directory, file, symlink, tar

CSV = "".join(f"{n},{n * n}\n" for n in range(200_000)).encode()
ZIPPED = BytesIO()
with zipfile.ZipFile(ZIPPED, "w") as archive:
    archive.writestr("inner.csv", "a,b\n1,2\n")
TAR = tar(
    file(b"data/large.csv", CSV, mtime=1577934245),
    file(b"data/a.zip", ZIPPED.getvalue()),
    file(b"data/!odd", b"!"),
    directory(b"loop"),
    symlink(b"loop/self", b"."),
    symlink(b"link.csv", b"data/large.csv"),
    symlink(b"dangling", b"nowhere"),
    char(b"null", 1, 3),
)


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return f"oci:{write_layout(tmp_path_factory.mktemp('layout'), {'latest': build_image([TAR])})}:latest"


@pytest.fixture
def options(tmp_path_factory):
    """Storage options; whatever was opened with them is closed."""
    opened = []
    yield {"cache_dir": str(tmp_path_factory.getbasetemp() / "fsspec-cache")}
    opened += LazyFileSystem._cache.values()
    for fs in opened:
        fs.close()


@pytest.fixture
def fs(name, options) -> LazyFileSystem:
    return fsspec.filesystem("lazyfs", image=name, **options)


def test_a_url_opens_like_a_local_file(name, options):
    with fsspec.open(f"lazyfs://{name}!/data/large.csv", "rt", newline="", **options) as text:
        rows = list(csv.reader(text))
    assert rows[-1] == ["199999", "39999600001"]
    with fsspec.open("lazyfs:///link.csv", image=name, **options) as raw:
        raw.seek(-10, os.SEEK_END)
        assert raw.read() == CSV[-10:]


def test_a_url_with_a_pattern_opens_what_matches(name, options):
    found = fsspec.open_files(f"lazyfs://{name}!/data/*", **options)
    assert [one.path for one in found] == ["/data/!odd", "/data/a.zip", "/data/large.csv"]


def test_urls_chain(name, options):
    with fsspec.open(f"zip://inner.csv::lazyfs://{name}!/data/a.zip", "rt", lazyfs=options) as text:
        assert text.read() == "a,b\n1,2\n"
    with fsspec.open(f"simplecache::lazyfs://{name}!/data/!odd", lazyfs=options) as raw:
        assert raw.read() == b"!"


def test_a_path_has_a_url_that_leads_back(name, fs, options):
    url = fs.unstrip_protocol("/data/large.csv")
    assert url == f"lazyfs://{name}!/data/large.csv"
    again, path = fsspec.url_to_fs(url, **options)
    assert again is fs
    assert path == "/data/large.csv"


def test_directories_list_names_types_and_sizes(fs):
    assert fs.ls("/data", detail=False) == ["/data/!odd", "/data/a.zip", "/data/large.csv"]
    assert {info["name"]: info["type"] for info in fs.ls("")} == {
        "/dangling": "link",
        "/data": "directory",
        "/link.csv": "file",
        "/loop": "directory",
        "/null": "other",
    }
    assert fs.ls("link.csv")[0]["size"] == fs.size("/link.csv") == len(CSV)
    assert fs.info("link.csv")["destination"] == "data/large.csv"
    assert fs.modified("/data/large.csv").timestamp() == 1577934245


def test_walks_end_in_spite_of_loops(fs):
    assert fs.find("/") == [
        *("/dangling", "/data/!odd", "/data/a.zip", "/data/large.csv", "/link.csv", "/loop/self", "/null")
    ]
    assert fs.isdir("/loop/self/self")
    assert fs.glob("/d*/*.csv") == ["/data/large.csv"]
    assert fs.du("/data") == len(CSV) + len(ZIPPED.getvalue()) + 1


RANGES = [
    (None, None),
    (10, 20),
    (-5, None),
    (None, -5),
    (len(CSV) - 1, len(CSV) + 9),
    (7, 3),
    (1 << 40, None),
]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_ranges_are_those_of_slices(fs, start, end):
    assert fs.cat_file("/data/large.csv", start, end) == CSV[start:end]


def test_what_is_not_there_raises_what_a_file_system_raises(fs):
    for ask in (fs.info, fs.ls, fs.cat_file, fs.open):
        with pytest.raises(FileNotFoundError, match="the image has no /nothing"):
            ask("/nothing")
    with pytest.raises(IsADirectoryError):
        fs.cat_file("/data")
    with pytest.raises(NotImplementedError, match="read-only"):
        fs.open("/data/large.csv", "wb")
    assert not fs.exists("/nothing")


@pytest.mark.parametrize("url", ["lazyfs://python:3.12-slim/etc/passwd", "lazyfs:///etc/passwd"])
def test_a_url_without_an_image_says_how_one_is_written(url, options):
    with pytest.raises(BadReference, match="lazyfs://IMAGE!/path"):
        fsspec.open(url, **options).open()


def test_a_file_system_travels_by_what_it_was_made_of(fs):
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("/data/!odd") == b"!"


def test_a_program_that_closes_nothing_ends(name, tmp_path):
    program = "import fsspec, sys; print(fsspec.open(sys.argv[1], cache_dir=sys.argv[2]).open().read(3))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, f"lazyfs://{name}!/data/large.csv", tmp_path / "c"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("b'0,0'\n", "")
