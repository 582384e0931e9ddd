"""RPM's databases in SQLite, ndb and Berkeley DB: the same packages from each, and nobody to be trusted."""

import hashlib
import struct
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FormatError, IndexerError, LimitExceeded, Unsupported
from lazyfs.image.inside.packages.berkeley_db import read_hash
from lazyfs.image.inside.packages.find import Inventory, find_packages
from lazyfs.image.inside.packages.ndb import read_blobs
from lazyfs.image.inside.packages.rpm import read_database
from tests.support.memory_images import memory_image
from tests.support.rpms import (
    HIGHEST,
    Made,
    berkeley_db,
    berkeley_packages,
    database,
    header,
    list_packages,
    make_database,
    ndb,
)
from tests.support.tars import file, symlink, tar

BERKELEY, NDB, SQLITE = b"var/lib/rpm/Packages", b"var/lib/rpm/Packages.db", b"var/lib/rpm/rpmdb.sqlite"
ORDERS = {"little-endian": "db_lorder=1234", "big-endian": "db_lorder=4321"}
PAGES = {size: f"db_pagesize={size}" for size in (512, 4096, 65536)}
HEADERS = {
    1: header({1000: "one", 1001: "1.1", 1002: "1", 1022: "noarch"}),
    2: header({1000: "gpg-pubkey", 1001: "1.2", 1002: "1", 1022: "noarch"}),
    7: header({1000: "seven", 1001: "1.7", 1002: "1", 1022: "noarch"}),
}
SMALL = {number: header({1000: f"n{number}", 1001: "1", 1014: "x" * number * 9}) for number in range(1, 41)}
TINY = {number: SMALL[number] for number in (1, 2, 3, 38, 39, 40)}
PAGE, BIG = 512, 1 << 28


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make_database(tmp_path_factory.mktemp("rpm") / "db")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A Berkeley DB of small pages, some of whose values have pages of their own."""
    return berkeley_packages(tmp_path_factory.mktemp("small") / "x", SMALL, PAGES[PAGE])


async def found(*members: bytes) -> Inventory:
    return await find_packages(memory_image(tar(*members)))


def listed(inventory: Inventory) -> list[str]:
    return [f"{p.name} {p.version} {p.architecture} {p.licence}" for p in inventory.packages]


def names(data: bytes, where: bytes) -> list[str]:
    return [package.name for package in read_database(data, b"", where)]


# What rpm says


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", PAGES)
async def test_rpm_lists_the_same_of_a_berkeley_db(order, size, made, tmp_path):
    data = berkeley_packages(tmp_path / "Packages", made.headers, ORDERS[order], PAGES[size])
    assert list_packages(tmp_path, "bdb_ro") == made.listed
    inventory = await found(file(BERKELEY, data))
    assert listed(inventory) == made.listed
    assert {package.where for package in inventory.packages} == {BERKELEY}
    assert inventory.problems == ()


async def test_an_ndb_tells_what_the_same_headers_tell_elsewhere(made):
    place = b"usr/lib/sysimage/rpm/Packages.db"
    inventory = await found(
        file(place, ndb(made.headers)), symlink(b"var/lib/rpm", b"../../usr/lib/sysimage/rpm")
    )
    assert listed(inventory) == made.listed
    assert {package.where for package in inventory.packages} == {place}
    assert inventory.problems == ()


def test_ndbs_are_made_here_as_rpm_makes_them():
    """The digest is of what rpm 4.18.0 wrote: its rpmpkg.c, compiled alone and given the same headers."""
    digest = "54aaa7465e1b452e7dc84badb78f55dd4d49a2bbb4b9252087d8727d406ed736"
    assert hashlib.sha256(ndb(HEADERS)).hexdigest() == digest


@pytest.mark.parametrize("where", [SQLITE, NDB, BERKELEY])
def test_keys_are_no_packages(where, tmp_path):
    script = "CREATE TABLE Packages(hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL);"
    make = {
        SQLITE: lambda: database(tmp_path / "x", script, list(HEADERS.values())),
        NDB: lambda: ndb(HEADERS),
        BERKELEY: lambda: berkeley_packages(tmp_path / "x", HEADERS),
    }
    assert sorted(names(make[where](), where)) == ["one", "seven"]


async def test_of_several_databases_the_one_counts_that_rpm_would_take(made, tmp_path):
    others = [file(NDB, ndb(HEADERS)), file(BERKELEY, berkeley_packages(tmp_path / "x", {1: SMALL[1]}))]
    assert listed(await found(*others, file(SQLITE, made.sqlite))) == made.listed
    assert [package.name for package in (await found(*others)).packages] == ["one", "seven"]


# SQLite


def test_rows_that_share_their_bytes_are_refused(tmp_path):
    """A file could have a thousand times its size to read."""
    page, pages, on_leaf = 4096, 250, 484
    size = on_leaf + pages * (page - 4)
    rest = size - len(header({1000: "n0", 1001: "1", 1014: ""}))
    blobs = [header({1000: f"n{number}", 1001: "1", 1014: "x" * rest}) for number in range(6)]
    script = f"PRAGMA page_size = {page}; CREATE TABLE Packages(hnum INTEGER PRIMARY KEY, blob BLOB);"
    whole = bytearray(database(tmp_path / "x", script, blobs))
    assert names(bytes(whole), SQLITE) == [f"n{number}" for number in range(6)]
    chains = [whole.index(blob[:on_leaf]) + on_leaf for blob in blobs]
    for chain in chains:
        whole[chain : chain + 4] = whole[chains[0] : chains[0] + 4]
    end = 2 + pages
    whole[28:32] = end.to_bytes(4, "big")
    with pytest.raises(FormatError, match="more bytes than it has itself"):
        names(bytes(whole[: end * page]), SQLITE)


# Berkeley DB


@settings(max_examples=25)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=40), st.integers(0, 3000), max_size=80),
    st.sampled_from(sorted(ORDERS)),
    st.sampled_from([512, 1024, 8192]),
)
def test_what_was_loaded_is_read(tmp_path_factory, sizes, order, page):
    items = {key: (key * size)[:size] for key, size in sizes.items()}
    path = tmp_path_factory.mktemp("berkeley") / "x"
    data = berkeley_db(path, items.items(), ORDERS[order], f"db_pagesize={page}")
    assert dict(read_hash(data, BIG)) == items


def test_buckets_may_be_holes_and_pages_without_a_bucket_do_not_count(small):
    grown = bytearray(small)
    hole = next(start for start in range(PAGE, len(grown), PAGE) if grown[start + 25] == 13)
    lost = struct.unpack_from("<H", grown, hole + 20)[0] // 2
    assert lost
    grown[hole : hole + PAGE] = bytes(PAGE)
    grown += small[hole : hole + PAGE]
    assert len(list(read_hash(bytes(grown), BIG))) == len(SMALL) + 1 - lost


@pytest.mark.parametrize(
    ("settings", "more", "error"),
    [
        (("chksum=1",), {}, Unsupported),
        ((), {"cipher": "secret"}, Unsupported),
        ((), {"kind": "btree"}, FormatError),
        (("duplicates=1",), {}, FormatError),
    ],
)
def test_a_berkeley_db_as_rpm_makes_none_is_told(settings, more, error, tmp_path):
    items = [(bytes(3) + b"\1", value) for value in (b"a", b"b")]
    data = berkeley_db(tmp_path / "x", items, *settings, **more)
    with pytest.raises(error, match="Berkeley DB"):
        read_database(data, b"", BERKELEY)


def test_a_hash_with_other_keys_is_no_database_of_rpm(tmp_path):
    names_as_keys = berkeley_db(tmp_path / "x", [(b"name", b"x"), (b"longer", b"x")])
    two_numbers = berkeley_db(tmp_path / "y", [(HIGHEST, b"x"), (b"\0\0\0\1", b"x")])
    twice_the_highest = patched(two_numbers, two_numbers.rindex(b"\1\0\0\0\1") + 4, "B", 0)
    for data in (names_as_keys, twice_the_highest):
        with pytest.raises(FormatError, match="something else than packages"):
            read_database(data, b"", BERKELEY)


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def pages_of(data: bytes, kind: int) -> list[int]:
    return [start for start in range(PAGE, len(data), PAGE) if data[start + 25] == kind]


def test_chains_of_pages_end(small):
    first, *_ = pages_of(small, 13)
    with pytest.raises(FormatError, match="used twice"):
        list(read_hash(patched(small, first + 16, "<I", first // PAGE), BIG))
    for page in pages_of(small, 7):
        changed = patched(small, page + 16, "<I", page // PAGE)
        if changed != small and struct.unpack_from("<I", small, page + 16) != (0,):
            with pytest.raises(FormatError, match="used twice"):
                list(read_hash(changed, BIG))


def test_counts_and_sizes_are_believed_only_as_far_as_the_file_goes(small):
    with pytest.raises(FormatError, match="4294967295 buckets"):
        list(read_hash(patched(small, 72, "<I", 0xFFFFFFFE), BIG))
    with pytest.raises(FormatError, match="bytes"):
        list(read_hash(small, 100))
    assert dict(read_hash(patched(small, 32, "<I", 0xFFFFFFFF), BIG)) == dict(read_hash(small, BIG))


# ndb


def test_an_ndb_may_be_empty():
    assert list(read_blobs(ndb({}))) == []


def test_what_was_removed_is_not_there():
    assert names(patched(ndb(HEADERS), 32, "<4sIII", b"Slot", 0, 0, 0), NDB) == ["seven"]


def test_packages_in_the_same_place_are_refused():
    data = ndb(HEADERS)
    magic, package, first, blocks = struct.unpack_from("<4sIII", data, 32)
    for start in (first, first + 1):
        with pytest.raises(FormatError, match="something else does"):
            names(patched(data, 48, "<4sIII", magic, package, start, blocks), NDB)


def test_room_for_more_packages_than_any_system_has_is_refused():
    with pytest.raises(LimitExceeded, match="4097 pages"):
        names(patched(ndb(HEADERS), 12, "<I", 4097), NDB)
    with pytest.raises(FormatError, match="cut short"):
        names(patched(ndb(HEADERS), 12, "<I", 4096), NDB)


# Damage


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_an_ndb_is_checked_or_does_not_matter(flip):
    data = ndb(HEADERS)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= flip
        try:
            assert names(bytes(damaged), NDB) == ["one", "seven"]
        except IndexerError:
            continue
        assert at < 4096, "a byte of a package that nobody missed"


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_damaged_byte_of_a_berkeley_db_gives_packages_or_our_own_errors(flip, tmp_path):
    tiny = berkeley_packages(tmp_path / "x", TINY, PAGES[PAGE])
    for at in range(len(tiny)):
        damaged = bytearray(tiny)
        damaged[at] ^= flip
        with suppress(IndexerError):
            read_database(bytes(damaged), b"", BERKELEY)


@pytest.mark.parametrize("where", [NDB, BERKELEY])
def test_a_database_that_is_cut_short_anywhere_is_refused(where, small):
    data = ndb(HEADERS) if where == NDB else small
    for end in range(len(data)):
        with pytest.raises(FormatError):
            read_database(data[:end], b"", where)


@settings(max_examples=300)
@given(st.data())
def test_a_database_damaged_in_many_places_gives_packages_or_our_own_errors(small, data):
    where = data.draw(st.sampled_from([NDB, BERKELEY]))
    raw = bytearray(ndb(SMALL) if where == NDB else small)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 4))
        word = data.draw(st.one_of(st.integers(0, len(raw) // PAGE), st.binary(min_size=4, max_size=4)))
        raw[at : at + 4] = word if isinstance(word, bytes) else word.to_bytes(4, "little")
    with suppress(IndexerError):
        read_database(bytes(raw), b"", where)


@pytest.mark.parametrize("where", [NDB, BERKELEY])
@pytest.mark.parametrize("data", [b"", b"x", bytes(70_000)])
async def test_a_file_that_is_no_database_is_a_problem_and_no_more(where, data):
    inventory = await found(file(where, data), file(b"x/p.dist-info/METADATA", b"Name: p\nVersion: 1\n"))
    assert [package.name for package in inventory.packages] == ["p"]
    assert [problem.path for problem in inventory.problems] == [where]


def test_the_oracle_agrees_that_the_small_database_is_sound(small, tmp_path):
    (tmp_path / "x").write_bytes(small)
    subprocess.run(["db5.3_verify", tmp_path / "x"], check=True, capture_output=True)
    assert pages_of(small, 7), "no value has pages of its own"
    assert any(struct.unpack_from("<I", small, page + 16) != (0,) for page in pages_of(small, 13)), "no chain"
